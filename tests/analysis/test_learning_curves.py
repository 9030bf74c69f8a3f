import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import trapezoid

from lightning_al.analysis.learning_curves import LearningCurves, area, labels_to_target, mean_and_sd, read_curves

HEAD = "cycle,labeled,queried,test/accuracy,test/loss,fit_seconds,score_seconds,select_seconds"
VALUES = st.floats(-10, 10).map(lambda value: round(value, 3))


@st.composite
def curves(draw, runs=3):
    """Increasing numbers of labels of shape (T,), and values of shape (S, T)."""
    count = draw(st.integers(1, 7))
    steps = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    return np.cumsum(steps).astype(float), draw(arrays(np.float64, (runs, count), elements=VALUES))


def write_run(folder, *rows, head=HEAD):
    folder.mkdir()
    (folder / "cycles.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


# ------------------------------------------------------------------ reading


def test_curves_are_read_by_ascending_seed_whatever_the_order_given(tmp_path):
    nine = write_run(tmp_path / "nine", "0,20,10,0.5,1.5,3,1,0.5", "1,30,0,0.75,1.25,4,0,0")
    two = write_run(tmp_path / "two", "0,20,10,0.25,2.5,5,2,0.25", "1,30,0,0.5,2.25,6,0,0")
    curves = read_curves({9: nine, 2: two}, "test/accuracy")
    assert curves.seeds == (2, 9)
    np.testing.assert_array_equal(curves.labels, [20, 30])
    np.testing.assert_array_equal(curves.values, [[0.25, 0.5], [0.5, 0.75]])
    np.testing.assert_array_equal(curves.fit_seconds, [[5, 6], [3, 4]])
    np.testing.assert_array_equal(curves.query_seconds, [[2.25, math.nan], [1.5, math.nan]])
    np.testing.assert_array_equal(read_curves({9: nine, 2: two}, "test/loss").values, [[2.5, 2.25], [1.5, 1.25]])


def test_a_metric_that_is_missing_is_named_with_those_that_are_there(tmp_path):
    folder = write_run(tmp_path / "run", "0,20,10,0.5,1.5,3,1,0.5", "1,30,0,,1.25,4,0,0")
    with pytest.raises(ValueError, match=r"cycles.csv has no `val/f1` in every row; it has test/loss\."):
        read_curves({0: folder}, "val/f1")
    with pytest.raises(ValueError, match="no `test/accuracy` in every row"):
        read_curves({0: folder}, "test/accuracy")
    with pytest.raises(ValueError, match=r"in every row; it has no metric\."):
        read_curves({0: write_run(tmp_path / "empty")}, "test/accuracy")


def test_labels_that_do_not_grow_are_refused(tmp_path):
    run = write_run(tmp_path / "run", "0,20,0,0.5,1,3,1,0.5", "1,20,0,0.75,1,4,0,0")
    with pytest.raises(ValueError, match=r"cycles\.csv has 20, 20 labels, which do not grow .*Train at least"):
        read_curves({0: run}, "test/accuracy")


def test_runs_with_other_numbers_of_labels_are_refused(tmp_path):
    long = write_run(tmp_path / "long", "0,20,10,0.5,1,3,1,0.5", "1,30,0,0.75,1,4,0,0")
    short = write_run(tmp_path / "short", "0,20,10,0.5,1,3,1,0.5")
    with pytest.raises(ValueError, match=r"short has 20 labels, .*long has 20, 30: runs with different numbers"):
        read_curves({0: long, 1: short}, "test/accuracy")
    with pytest.raises(ValueError, match=r"`read_curves\(folders=\{\}\)`: expected at least one"):
        read_curves({}, "test/accuracy")


def test_select_keeps_all_of_a_run_together():
    table = np.arange(6.0).reshape(3, 2)
    curves = LearningCurves((1, 4, 7), np.array([10.0, 20.0]), table, table + 10, table + 20)
    chosen = curves.select([7, 1])
    assert chosen.seeds == (7, 1)
    for part, expected in (
        (chosen.values, table),
        (chosen.fit_seconds, table + 10),
        (chosen.query_seconds, table + 20),
    ):
        np.testing.assert_array_equal(part, expected[[2, 0]])
    with pytest.raises(ValueError, match="not in tuple"):
        curves.select([2])


# ------------------------------------------------------------------ the area


@given(curves())
def test_the_area_is_the_trapezoid_rule_over_the_width(case):
    labels, values = case
    if len(labels) == 1:
        np.testing.assert_array_equal(area(labels, values), values[:, 0])
    else:
        expected = trapezoid(values, labels, axis=-1) / (labels[-1] - labels[0])
        np.testing.assert_allclose(area(labels, values), expected, rtol=1e-12, atol=1e-12)


@given(curves(), VALUES, VALUES)
def test_the_area_is_on_the_scale_of_the_metric(case, scale, shift):
    labels, values = case
    areas = area(labels, values)
    assert (areas >= values.min(1) - 1e-9).all()
    assert (areas <= values.max(1) + 1e-9).all()
    np.testing.assert_allclose(area(3 * labels + 5, scale * values + shift), scale * areas + shift, atol=1e-9)


def test_the_area_of_one_run_is_that_of_its_row():
    labels, values = np.array([10.0, 20.0, 60.0]), np.array([[0.0, 1.0, 0.5], [0.25, 0.5, 1.0]])
    curves = LearningCurves((0, 1), labels, values, values, values)
    np.testing.assert_allclose(curves.areas, [(10 * 0.5 + 40 * 0.75) / 50, (10 * 0.375 + 40 * 0.75) / 50])
    assert area(labels, values[1]) == curves.areas[1]
    assert area(labels, values[:, None, :]).shape == (2, 1)


@pytest.mark.parametrize(
    ("labels", "shape"),
    [([10, 10], (2, 2)), ([20, 10], (2, 2)), ([10, 20], (2, 3)), ([], (2, 0)), ([[10, 20]], (2, 2))],
)
def test_an_axis_that_does_not_fit_is_refused(labels, shape):
    with pytest.raises(ValueError, match=r"`area\(labels, values\)`: expected increasing labels"):
        area(labels, np.zeros(shape))
    with pytest.raises(ValueError, match=r"`labels_to_target\(labels, values\)`: expected increasing labels"):
        labels_to_target(labels, np.zeros(shape), 0.5)


# ------------------------------------------------------------------ mean and standard deviation


@given(curves())
def test_mean_and_sd_are_those_of_the_sample(case):
    _, values = case
    mean, sd = mean_and_sd(values)
    np.testing.assert_allclose(mean, [statistics.fmean(column) for column in values.T], atol=1e-12)
    np.testing.assert_allclose(sd, [statistics.stdev(column) for column in values.T], atol=1e-12)


def test_one_run_has_no_spread():
    mean, sd = mean_and_sd([[1.0, 2.0]])
    np.testing.assert_array_equal(mean, [1, 2])
    np.testing.assert_array_equal(sd, [math.nan, math.nan])


# ------------------------------------------------------------------ labels to a target


@given(curves(), VALUES)
def test_the_target_is_reached_at_the_answer_and_at_no_earlier_point(case, target):
    labels, values = case
    for needed, run in zip(labels_to_target(labels, values, target), values, strict=True):
        grid = np.linspace(labels[0], min(needed, labels[-1]), 200)
        if math.isinf(needed):
            assert run.max() < target
            continue
        assert labels[0] <= needed <= labels[-1]
        assert np.interp(needed, labels, run) == pytest.approx(max(target, run[0]), abs=1e-6)
        assert (np.interp(grid[:-1], labels, run) <= target + 1e-6).all() or needed == labels[0]


@given(curves(), VALUES)
def test_an_error_is_reached_as_its_negative_is(case, target):
    labels, values = case
    np.testing.assert_array_equal(
        labels_to_target(labels, -values, -target, lower_is_better=True), labels_to_target(labels, values, target)
    )


def test_the_first_crossing_counts_and_an_exact_hit_is_one():
    labels = np.array([10.0, 20.0, 40.0])
    runs = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.25, 0.75, 0.0], [0.0, 0.25, 0.75], [0.0, 0.25, 0.25]])
    np.testing.assert_array_equal(labels_to_target(labels, runs, 0.5), [20, 10, 15, 30, math.inf])


def test_a_cycle_without_a_value_draws_no_line():
    labels, runs = np.array([10.0, 20.0]), np.array([[math.nan, 0.75], [0.25, math.nan], [math.nan, math.nan]])
    np.testing.assert_array_equal(labels_to_target(labels, runs, 0.5), [20, math.inf, math.inf])
