import json
import math

import numpy as np
import pytest
from scipy import stats

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import LearningCurves

LABELS = (10.0, 20.0, 40.0)


def make(values, seeds=None, labels=LABELS, query=0.5):
    values = np.array(values, dtype=float)
    seeds = tuple(range(len(values))) if seeds is None else tuple(seeds)
    return LearningCurves(seeds, np.array(labels), values, np.full(values.shape, 2.0), np.full(values.shape, query))


def compare(curves, **options):
    return Comparison(curves, options.pop("metric", "test/accuracy"), options.pop("baseline", "random"), **options)


def tables(comparison):
    """The rows of each table by its heading, and by the first cell."""
    found = {}
    for section in comparison.to_markdown().split("\n## ")[1:]:
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
        found[section.splitlines()[0]] = {row[0]: row[1:] for row in rows}
    return found


@pytest.fixture
def three():
    """Three seeds of three strategies: margin is always above random, and entropy mostly below."""
    return compare(
        {
            "random": make([[0.5, 0.6, 0.7], [0.4, 0.6, 0.8], [0.5, 0.5, 0.6]]),
            "margin": make([[0.5, 0.8, 0.9], [0.4, 0.7, 0.9], [0.5, 0.7, 0.75]]),
            "entropy": make([[0.5, 0.4, 0.6], [0.4, 0.5, 0.9], [0.5, 0.3, 0.65]]),
        },
        against=("margin",),
    )


# ------------------------------------------------------------------ the numbers


def test_strategies_are_ranked_by_area_and_compared_pair_by_pair(three):
    assert three.best_first() == ["margin", "random", "entropy"]
    assert three.references == ["random", "margin"]
    areas = {name: own.areas for name, own in three.curves.items()}
    for reference in three.references:
        found = three.differences(reference)
        assert list(found) == [name for name in three.best_first() if name != reference]
        raw = {name: stats.ttest_rel(areas[name], areas[reference]) for name in found}
        low, high = sorted(raw, key=lambda name: raw[name].pvalue)
        assert found[low].p_value == pytest.approx(min(1, 2 * raw[low].pvalue))
        assert found[high].p_value == pytest.approx(max(found[low].p_value, raw[high].pvalue))
        for name, difference in found.items():
            interval = raw[name].confidence_interval()
            assert difference.mean == pytest.approx((areas[name] - areas[reference]).mean())
            assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_an_error_is_better_when_it_is_lower(three):
    error = compare(
        {name: make(1 - own.values) for name, own in three.curves.items()}, lower_is_better=True, metric="test/error"
    )
    assert error.best_first() == three.best_first()
    assert error.differences("random")["margin"].mean == pytest.approx(-three.differences("random")["margin"].mean)
    np.testing.assert_allclose(error.labels_needed(0.25)["margin"], three.labels_needed(0.75)["margin"])
    text = error.to_markdown()
    assert "(lower is better)" in text
    assert "negative is better than random" in text
    assert "(higher is better)" in three.to_markdown()
    assert "positive is better than random" in three.to_markdown()


def test_unequal_seeds_are_paired_over_those_that_all_have():
    comparison = compare(
        {
            "random": make([[0.2] * 3, [0.3] * 3, [0.1] * 3, [0.9] * 3], seeds=(1, 2, 5, 6)),
            "margin": make([[0.3] * 3, [0.9] * 3, [0.5] * 3], seeds=(0, 1, 2)),
        }
    )
    assert comparison.common_seeds == [1, 2]
    difference = comparison.differences("random")["margin"]
    assert difference.pairs == 2
    assert difference.mean == pytest.approx(((0.9 - 0.2) + (0.5 - 0.3)) / 2)
    text = comparison.to_markdown()
    assert "Finished seeds per strategy: random 4, margin 3." in text
    assert "paired differences over the 2 that all have (1, 2)." in text
    assert "Paired over 2 seeds" in text
    assert tables(comparison)["Learning curves"]["random"][0] == "0.375 ± 0.359"  # over all four


def test_the_ranking_is_over_common_seeds_so_that_a_lucky_seed_of_one_does_not_count():
    comparison = compare({"random": make([[0.2] * 3, [0.9] * 3]), "margin": make([[0.3] * 3])})
    assert comparison.best_first() == ["margin", "random"]


def test_without_a_common_seed_there_are_means_and_no_differences():
    comparison = compare({"random": make([[0.2] * 3], seeds=[0]), "margin": make([[0.3] * 3], seeds=[1])})
    assert comparison.differences("random") == {}
    assert comparison.best_first() == ["margin", "random"]
    text = comparison.to_markdown()
    assert "the 0 that all have." in text
    assert "Area minus" not in text


def test_a_strategy_without_a_mean_comes_last_whichever_way_is_better():
    curves = {"nan": make([[0.5, math.nan, 0.5]]), "random": make([[0.2] * 3]), "margin": make([[0.3] * 3])}
    assert compare(curves).best_first() == ["margin", "random", "nan"]
    assert compare(curves, lower_is_better=True).best_first() == ["random", "margin", "nan"]
    assert compare(curves).to_dict()["strategies"]["nan"]["values"] == [[0.5, None, 0.5]]


def test_other_numbers_of_labels_are_refused():
    with pytest.raises(ValueError, match=r"for random and \[10\.0, 20\.0\] for margin; leave one out"):
        compare({"random": make([[0.2] * 3]), "margin": make([[0.3] * 2], labels=(10.0, 20.0))})


# ------------------------------------------------------------------ the tables


def test_the_tables_as_they_are_printed():
    comparison = compare(
        {
            "random": make([[0.5, 0.6, 0.7], [0.4, 0.6, 0.8]]),
            "noise_stability": make([[0.5, 0.8, 0.9], [0.4, 0.7, 0.9]]),
        }
    )
    assert (
        comparison.to_markdown()
        == """\
# test/accuracy of 2 strategies

Seeds: 0, 1, the same for every strategy.

## Learning curves

Mean ± standard deviation over seeds (higher is better). Area: the mean of the curve over the label axis \
(trapezoid rule).

| strategy        | 10 labels     | 20 labels     | 40 labels     | area          |
| --------------- | ------------- | ------------- | ------------- | ------------- |
| random          | 0.450 ± 0.071 | 0.600 ± 0.000 | 0.750 ± 0.071 | 0.625 ± 0.012 |
| noise_stability | 0.450 ± 0.071 | 0.750 ± 0.071 | 0.900 ± 0.000 | 0.750 ± 0.047 |

## Area minus that of random

Paired over 2 seeds, best first; positive is better than random. p: paired t-test, adjusted for 1 comparison (Holm).

| strategy        | difference | 95 % interval      | p     |
| --------------- | ---------- | ------------------ | ----- |
| noise_stability | +0.1250    | -0.4044 to +0.6544 | 0.205 |

## Labels needed

Median over seeds of the number of labels at which a run's curve first reaches the value (0.75 is random's last mean).

| strategy        | test/accuracy 0.75         |
| --------------- | -------------------------- |
| random          | not reached (1 of 2 never) |
| noise_stability | 22                         |

## Seconds per cycle

Mean over cycles and seeds.

| strategy        | fit  | score and select |
| --------------- | ---- | ---------------- |
| random          | 2.00 | 0.50             |
| noise_stability | 2.00 | 0.50             |
"""
    )


def test_one_seed_has_values_without_spread_and_differences_without_interval():
    comparison = compare({"random": make([[0.5, 0.6, 0.7]]), "margin": make([[0.5, 0.7, 0.9]])})
    found = tables(comparison)
    assert found["Learning curves"]["margin"] == ["0.500", "0.700", "0.900", "0.733"]
    assert found["Area minus that of random"]["margin"] == ["+0.1167", "-", "-"]
    assert "Paired over 1 seed," in comparison.to_markdown()
    assert "nan" not in comparison.to_markdown()


def test_a_single_strategy_has_no_differences():
    text = compare({"margin": make([[0.5, 0.6, 0.7]])}).to_markdown()
    assert text.startswith("# test/accuracy of 1 strategy\n")
    assert "baseline" not in text
    assert "Labels needed" not in text


def test_a_baseline_without_runs_is_named():
    text = compare({"margin": make([[0.5] * 3]), "entropy": make([[0.5] * 3])}).to_markdown()
    assert "No paired differences to the baseline random: it has no finished run." in text


def test_targets_that_some_runs_or_none_or_the_first_cycle_reach():
    runs = [[0.5, 0.7, 0.9], [0.5, 0.6, 0.7], [0.5, 0.9, 0.95]]
    comparison = compare({"random": make(runs), "margin": make(runs[1:])}, targets=(0.8, 0.3, 0.99))
    found = tables(comparison)["Labels needed"]
    assert found["strategy"] == ["test/accuracy 0.8", "test/accuracy 0.3", "test/accuracy 0.99"]
    assert found["random"] == ["30 (1 of 3 never)", "≤ 10", "not reached (3 of 3 never)"]
    assert found["margin"] == ["not reached (1 of 2 never)", "≤ 10", "not reached (2 of 2 never)"]
    assert "last mean" not in comparison.to_markdown()
    needed = comparison.to_dict()["labels_needed"]
    assert [entry["target"] for entry in needed] == [0.8, 0.3, 0.99]
    assert needed[0]["labels"] == {"random": [pytest.approx(30), None, 17.5], "margin": [None, 17.5]}


@pytest.mark.parametrize(("scale", "cell"), [(1, "0.500"), (100, "50.0"), (0.001, "0.000500"), (1e5, "50000")])
def test_cells_show_three_digits_on_any_scale(scale, cell):
    comparison = compare({"random": make(np.array([[0.5, 0.6, 0.7]]) * scale)})
    assert tables(comparison)["Learning curves"]["random"][0] == cell


def test_a_long_curve_shows_some_cycles_with_the_first_and_the_last():
    labels = tuple(float(20 * (cycle + 1)) for cycle in range(30))
    comparison = compare({"random": make([np.linspace(0, 0.9, 30)], labels=labels)})
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
    comparison = compare({"random": make(values), "margin": make(values + 0.2 + jitter)})
    assert tables(comparison)["Area minus that of random"]["margin"][-1] == "< 0.001"
    assert 0 < comparison.to_dict()["differences"]["random"]["margin"]["p_value"] < 0.001


def test_cycles_that_queried_nothing_do_not_count_as_fast():
    quick = make([[0.5, 0.6, 0.7]])
    quick.query_seconds[0, -1] = math.nan
    never = make([[0.5, 0.6, 0.7]], query=math.nan)
    found = tables(compare({"random": quick, "margin": never}))["Seconds per cycle"]
    assert found["random"] == ["2.00", "0.50"]
    assert found["margin"] == ["2.00", "-"]


# ------------------------------------------------------------------ JSON


def test_json_holds_all_numbers_and_no_nan(three):
    numbers = json.loads(json.dumps(three.to_dict(), allow_nan=False))
    assert numbers["labels"] == list(LABELS)
    assert numbers["common_seeds"] == [0, 1, 2]
    margin = numbers["strategies"]["margin"]
    own = three.curves["margin"]
    assert margin["values"] == own.values.tolist()
    np.testing.assert_allclose(margin["sd"], own.values.std(0, ddof=1))
    assert margin["area_mean"] == pytest.approx(own.areas.mean())
    assert margin["area_sd"] == pytest.approx(stats.tstd(own.areas))
    assert set(numbers["differences"]) == {"random", "margin"}
    assert numbers["differences"]["margin"]["entropy"] == vars(three.differences("margin")["entropy"])
    assert numbers["labels_needed"][0]["target"] == pytest.approx(0.7)

    single = compare({"random": make([[0.5] * 3]), "margin": make([[0.6] * 3])}).to_dict()
    assert single["differences"]["random"]["margin"]["p_value"] is None
    assert single["strategies"]["random"]["area_sd"] is None
    json.dumps(single, allow_nan=False)
