import math

import numpy as np
import pytest

from lightning_al.report.comparison_tables import comparison_to_markdown
from tests.analysis.curves import compare, compare_three, compare_unequal_seeds, make_curves


def tables(comparison):
    """Return the rows of each table by its heading, and by the first cell."""
    rows_by_heading = {}
    for section in comparison_to_markdown(comparison).split("\n## ")[1:]:
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
        rows_by_heading[section.splitlines()[0]] = {row[0]: row[1:] for row in rows}
    return rows_by_heading


def test_the_tables_as_they_are_printed():
    comparison = compare(
        {
            "random": make_curves([[0.5, 0.6, 0.7], [0.4, 0.6, 0.8]]),
            "noise_stability": make_curves([[0.5, 0.8, 0.9], [0.4, 0.7, 0.9]]),
        }
    )
    assert (
        comparison_to_markdown(comparison)
        == """\
# test/accuracy of 2 strategies

Seeds: 0, 1, the same for every strategy.

## Learning curves

Mean ± standard deviation over seeds (higher is better). Area: the mean of the curve over the label axis \
(trapezoid rule).

| strategy        | 10 labels     | 20 labels     | 40 labels     | area          |
|-----------------|---------------|---------------|---------------|---------------|
| random          | 0.450 ± 0.071 | 0.600 ± 0.000 | 0.750 ± 0.071 | 0.625 ± 0.012 |
| noise_stability | 0.450 ± 0.071 | 0.750 ± 0.071 | 0.900 ± 0.000 | 0.750 ± 0.047 |

## Area minus that of random

Paired over 2 seeds, best first; positive is better than random. p: paired t-test, adjusted for 1 comparison (Holm).

| strategy        | difference   | 95 % interval      | p     |
|-----------------|--------------|--------------------|-------|
| noise_stability | +0.1250      | -0.4044 to +0.6544 | 0.205 |

## Labels needed

Median over seeds of the number of labels at which a run's curve first reaches the value (0.75 is random's last mean).

| strategy        | test/accuracy 0.75         |
|-----------------|----------------------------|
| random          | not reached (1 of 2 never) |
| noise_stability | 22                         |

## Seconds per cycle

Mean over cycles and seeds.

| strategy        | fit   | score and select   |
|-----------------|-------|--------------------|
| random          | 2.00  | 0.50               |
| noise_stability | 2.00  | 0.50               |
"""
    )


def test_the_text_says_which_direction_is_better():
    text = comparison_to_markdown(compare_three())
    assert "(higher is better)" in text
    assert "positive is better than random" in text
    assert "positive is better than margin" in text
    text = comparison_to_markdown(compare_three(lower_is_better=True))
    assert "(lower is better)" in text
    assert "negative is better than random" in text


def test_unequal_seeds_have_means_over_all_and_differences_over_the_common_ones():
    comparison = compare_unequal_seeds()
    text = comparison_to_markdown(comparison)
    assert "Finished seeds per strategy: random 4, margin 3." in text
    assert "paired differences over the 2 that all have (1, 2)." in text
    assert "Paired over 2 seeds" in text
    assert tables(comparison)["Learning curves"]["random"][0] == "0.375 ± 0.359"


def test_without_a_common_seed_there_are_means_and_no_differences():
    comparison = compare({"random": make_curves([[0.2] * 3], seeds=[0]), "margin": make_curves([[0.3] * 3], seeds=[1])})
    text = comparison_to_markdown(comparison)
    assert "the 0 that all have." in text
    assert "Area minus" not in text
    assert tables(comparison)["Learning curves"]["margin"][0] == "0.300"


def test_one_seed_has_values_without_spread_and_differences_without_interval():
    comparison = compare({"random": make_curves([[0.5, 0.6, 0.7]]), "margin": make_curves([[0.5, 0.7, 0.9]])})
    rows = tables(comparison)
    assert rows["Learning curves"]["margin"] == ["0.500", "0.700", "0.900", "0.733"]
    assert rows["Area minus that of random"]["margin"] == ["+0.1167", "-", "-"]
    assert "Paired over 1 seed," in comparison_to_markdown(comparison)
    assert "nan" not in comparison_to_markdown(comparison)


def test_a_single_strategy_has_no_differences():
    text = comparison_to_markdown(compare({"margin": make_curves([[0.5, 0.6, 0.7]])}))
    assert text.startswith("# test/accuracy of 1 strategy\n")
    assert "baseline" not in text
    assert "Labels needed" not in text


def test_a_baseline_without_runs_is_named():
    text = comparison_to_markdown(compare({"margin": make_curves([[0.5] * 3]), "entropy": make_curves([[0.5] * 3])}))
    assert "No paired differences to the baseline random: it has no finished run." in text


def test_targets_that_some_runs_or_none_or_the_first_cycle_reach():
    runs = [[0.5, 0.7, 0.9], [0.5, 0.6, 0.7], [0.5, 0.9, 0.95]]
    comparison = compare({"random": make_curves(runs), "margin": make_curves(runs[1:])}, targets=(0.8, 0.3, 0.99))
    rows = tables(comparison)["Labels needed"]
    assert rows["strategy"] == ["test/accuracy 0.8", "test/accuracy 0.3", "test/accuracy 0.99"]
    assert rows["random"] == ["30 (1 of 3 never)", "≤ 10", "not reached (3 of 3 never)"]
    assert rows["margin"] == ["not reached (1 of 2 never)", "≤ 10", "not reached (2 of 2 never)"]
    assert "last mean" not in comparison_to_markdown(comparison)
    needed = comparison.to_dict()["labels_needed"]
    assert [entry["target"] for entry in needed] == [0.8, 0.3, 0.99]
    assert needed[0]["labels"] == {"random": [pytest.approx(30), None, 17.5], "margin": [None, 17.5]}


@pytest.mark.parametrize(("scale", "cell"), [(1, "0.500"), (100, "50.0"), (0.001, "0.000500"), (1e5, "50000")])
def test_cells_show_three_digits_on_any_scale(scale, cell):
    comparison = compare({"random": make_curves(np.array([[0.5, 0.6, 0.7]]) * scale)})
    assert tables(comparison)["Learning curves"]["random"][0] == cell


def test_a_long_curve_shows_some_cycles_with_the_first_and_the_last():
    labels = tuple(float(20 * (cycle + 1)) for cycle in range(30))
    comparison = compare({"random": make_curves([np.linspace(0, 0.9, 30)], labels=labels)})
    head, row = (tables(comparison)["Learning curves"][name] for name in ("strategy", "random"))
    assert len(head) == 9
    assert (head[0], head[-2], head[-1]) == ("20 labels", "600 labels", "area")
    for name, cell in zip(head[:-1], row[:-1], strict=True):
        value = np.linspace(0, 0.9, 30)[labels.index(float(name.split()[0]))]
        assert float(cell) == pytest.approx(value, abs=5e-4)
    assert comparison.to_dict()["labels"] == list(labels)


def test_small_p_values_are_not_zero():
    values = np.linspace(0.1, 0.4, 9)[:, None] * np.ones(3)
    jitter = np.array([1e-3, -1e-3, 0] * 3)[:, None]
    comparison = compare({"random": make_curves(values), "margin": make_curves(values + 0.2 + jitter)})
    assert tables(comparison)["Area minus that of random"]["margin"][-1] == "< 0.001"
    assert 0 < comparison.to_dict()["differences"]["random"]["margin"]["p_value"] < 0.001


def test_cycles_that_queried_nothing_do_not_count_as_fast():
    quick = make_curves([[0.5, 0.6, 0.7]])
    quick.query_seconds[0, -1] = math.nan
    never = make_curves([[0.5, 0.6, 0.7]], query_seconds=math.nan)
    rows = tables(compare({"random": quick, "margin": never}))["Seconds per cycle"]
    assert rows["random"] == ["2.00", "0.50"]
    assert rows["margin"] == ["2.00", "-"]
