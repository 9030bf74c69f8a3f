import json
import math

import numpy as np
import pytest
from scipy import stats

from tests.analysis.curves import LABELS, compare, compare_three, compare_unequal_seeds, make_curves


@pytest.fixture
def three():
    return compare_three()


def test_strategies_are_ranked_by_area_and_compared_pair_by_pair(three):
    assert three.best_first() == ["margin", "random", "entropy"]
    assert three.references == ["random", "margin"]
    areas = {name: curves.areas for name, curves in three.curves.items()}
    for reference in three.references:
        differences = three.differences(reference)
        assert list(differences) == [name for name in three.best_first() if name != reference]
        raw = {name: stats.ttest_rel(areas[name], areas[reference]) for name in differences}
        low, high = sorted(raw, key=lambda name: raw[name].pvalue)
        assert differences[low].p_value == pytest.approx(min(1, 2 * raw[low].pvalue))
        assert differences[high].p_value == pytest.approx(max(differences[low].p_value, raw[high].pvalue))
        for name, difference in differences.items():
            interval = raw[name].confidence_interval()
            assert difference.mean == pytest.approx((areas[name] - areas[reference]).mean())
            assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_an_error_is_better_when_it_is_lower(three):
    errors = {name: make_curves(1 - curves.values) for name, curves in three.curves.items()}
    error = compare(errors, "test/error", lower_is_better=True)
    assert error.best_first() == three.best_first()
    assert error.differences("random")["margin"].mean == pytest.approx(-three.differences("random")["margin"].mean)
    np.testing.assert_allclose(error.labels_needed(0.25)["margin"], three.labels_needed(0.75)["margin"])


def test_unequal_seeds_are_paired_over_those_that_all_have():
    comparison = compare_unequal_seeds()
    assert comparison.common_seeds == [1, 2]
    difference = comparison.differences("random")["margin"]
    assert difference.pairs == 2
    assert difference.mean == pytest.approx(((0.9 - 0.2) + (0.5 - 0.3)) / 2)


def test_the_ranking_is_over_common_seeds_so_that_a_lucky_seed_of_one_does_not_count():
    comparison = compare({"random": make_curves([[0.2] * 3, [0.9] * 3]), "margin": make_curves([[0.3] * 3])})
    assert comparison.best_first() == ["margin", "random"]


def test_without_a_common_seed_there_are_no_differences():
    comparison = compare({"random": make_curves([[0.2] * 3], seeds=[0]), "margin": make_curves([[0.3] * 3], seeds=[1])})
    assert comparison.differences("random") == {}
    assert comparison.best_first() == ["margin", "random"]


def test_a_strategy_without_a_mean_comes_last_whichever_way_is_better():
    curves = {
        "nan": make_curves([[0.5, math.nan, 0.5]]),
        "random": make_curves([[0.2] * 3]),
        "margin": make_curves([[0.3] * 3]),
    }
    assert compare(curves).best_first() == ["margin", "random", "nan"]
    assert compare(curves, lower_is_better=True).best_first() == ["random", "margin", "nan"]
    assert compare(curves).to_dict()["strategies"]["nan"]["values"] == [[0.5, None, 0.5]]


def test_the_last_mean_of_the_baseline_is_the_default_target():
    three = compare_three()
    assert three.baseline_final == pytest.approx(0.7)
    assert three.targets == (three.baseline_final,)
    assert compare_three(targets=(0.5,)).targets == (0.5,)
    absent = compare(three.curves, baseline="absent")
    assert (absent.baseline_final, absent.targets) == (None, ())


def test_other_numbers_of_labels_are_refused():
    with pytest.raises(ValueError, match=r"for random and \[10\.0, 20\.0\] for margin; leave one out"):
        compare({"random": make_curves([[0.2] * 3]), "margin": make_curves([[0.3] * 2], labels=(10.0, 20.0))})


def test_json_holds_all_numbers_and_no_nan(three):
    numbers = json.loads(json.dumps(three.to_dict(), allow_nan=False))
    assert numbers["labels"] == list(LABELS)
    assert numbers["common_seeds"] == [0, 1, 2]
    margin = numbers["strategies"]["margin"]
    curves = three.curves["margin"]
    assert margin["values"] == curves.values.tolist()
    np.testing.assert_allclose(margin["sd"], curves.values.std(0, ddof=1))
    assert margin["area_mean"] == pytest.approx(curves.areas.mean())
    assert margin["area_sd"] == pytest.approx(stats.tstd(curves.areas))
    assert set(numbers["differences"]) == {"random", "margin"}
    assert numbers["differences"]["margin"]["entropy"] == vars(three.differences("margin")["entropy"])
    assert numbers["labels_needed"][0]["target"] == pytest.approx(0.7)

    single = compare({"random": make_curves([[0.5] * 3]), "margin": make_curves([[0.6] * 3])}).to_dict()
    assert single["differences"]["random"]["margin"]["p_value"] is None
    assert single["strategies"]["random"]["area_sd"] is None
    json.dumps(single, allow_nan=False)
