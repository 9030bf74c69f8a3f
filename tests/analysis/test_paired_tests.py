import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lightning_al.analysis.paired_tests import holm, paired_difference

NUMBERS = st.floats(-5, 5).map(lambda value: round(value, 3))
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12).map(np.array)
P_VALUES = st.lists(st.floats(0, 1), max_size=6)


@given(PAIRS, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_difference_is_that_of_a_paired_t_test(pairs, level):
    values, reference = pairs.T
    assume(np.ptp(values - reference) > 1e-3)
    difference = paired_difference(values, reference, level=level)
    error, freedom = stats.sem(values - reference), len(pairs) - 1
    interval = stats.t.interval(level, freedom, loc=difference.mean, scale=error)
    p_value = 2 * stats.t.sf(abs(difference.mean) / error, freedom)
    assert difference.pairs == len(pairs)
    assert difference.mean == pytest.approx((values - reference).mean(), abs=1e-12)
    assert (difference.low, difference.high) == pytest.approx(interval, rel=1e-6, abs=1e-9)
    assert difference.p_value == pytest.approx(p_value, rel=1e-6, abs=1e-9)


@given(PAIRS)
def test_exchanging_the_strategies_mirrors_everything_but_the_p_value(pairs):
    values, reference = pairs.T
    one, other = paired_difference(values, reference), paired_difference(reference, values)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.p_value == pytest.approx(other.p_value)
    assert one.low <= one.mean <= one.high
    assert 0 <= one.p_value <= 1


@given(PAIRS, st.lists(st.integers(-40, 40), min_size=12, max_size=12))
def test_what_a_seed_gives_to_both_cancels(pairs, luck):
    values, reference = np.round(8 * pairs.T) / 8  # sums are exact
    shared = np.array(luck[: len(pairs)], dtype=float)
    assert paired_difference(values + shared, reference + shared) == paired_difference(values, reference)


def test_the_interval_excludes_zero_exactly_when_p_is_below_its_complement():
    generator = np.random.default_rng(0)
    outcomes = set()
    for shift in np.linspace(0, 2, 21):
        difference = paired_difference(generator.normal(shift, 1, 8), np.zeros(8), level=0.9)
        significant = difference.p_value < 0.1
        assert significant == (difference.low > 0 or difference.high < 0)
        outcomes.add(significant)
    assert outcomes == {True, False}


def test_one_pair_has_a_difference_and_nothing_else():
    difference = paired_difference([0.75], [0.5])
    assert (difference.mean, difference.pairs) == (0.25, 1)
    assert all(math.isnan(number) for number in (difference.low, difference.high, difference.p_value))


@pytest.mark.parametrize(("reference", "p_value"), [([0.5, 0.75], 1.0), ([0.25, 0.5], 0.0), ([0.75, 1.0], 0.0)])
def test_differences_without_spread_are_certain(reference, p_value):
    difference = paired_difference([0.5, 0.75], reference)
    assert difference.low == difference.mean == difference.high == 0.5 - reference[0]
    assert difference.p_value == p_value


@pytest.mark.parametrize(
    ("values", "reference"), [([], []), ([1.0, 2.0], [1.0]), ([[1.0, 2.0]], [[1.0, 2.0]]), (1.0, 2.0)]
)
def test_what_is_not_paired_is_refused(values, reference):
    with pytest.raises(ValueError, match=r"`paired_difference\(values, reference\)`: expected two arrays of the same"):
        paired_difference(values, reference)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan])
def test_a_level_out_of_range_is_refused(level):
    with pytest.raises(ValueError, match=rf"`paired_difference\(level={level}\)`: expected a number in \(0, 1\)"):
        paired_difference([1.0, 2.0], [0.0, 0.0], level=level)


def test_a_missing_scipy_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning_al\[report\]") as caught:
        paired_difference([1.0, 3.0], [0.0, 0.0])
    assert caught.value.name == "scipy"


# ------------------------------------------------------------------ Holm


def closed_testing(p_values):
    """Holm's rule by its proof: a hypothesis falls if Bonferroni refutes every set of them that it belongs to."""
    positions = range(len(p_values))
    subsets = [subset for size in positions for subset in itertools.combinations(positions, size + 1)]
    return [
        max(
            min(1.0, len(subset) * min(p_values[place] for place in subset)) for subset in subsets if position in subset
        )
        for position in positions
    ]


@given(P_VALUES)
def test_holm_is_the_closure_of_bonferroni(p_values):
    assert holm(p_values) == pytest.approx(closed_testing(p_values))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(P_VALUES, st.integers(0, 6))
def test_an_unknown_p_value_stays_unknown_and_does_not_count(p_values, place):
    place = min(place, len(p_values))
    adjusted = holm([*p_values[:place], math.nan, *p_values[place:]])
    assert math.isnan(adjusted.pop(place))
    assert adjusted == holm(p_values)


@given(st.permutations([0.001, 0.02, 0.02, 0.3, 0.9]))
def test_holm_does_not_depend_on_the_order(p_values):
    adjusted = dict(zip(p_values, holm(p_values), strict=True))
    assert adjusted == pytest.approx({0.001: 0.005, 0.02: 0.08, 0.3: 0.6, 0.9: 0.9})
