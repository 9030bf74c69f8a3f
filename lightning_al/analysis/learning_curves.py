"""Learning curves of finished runs, and the numbers that summarize them.

A curve is a metric against the number of labels. Rows are runs (seeds), columns are cycles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_al.storage.cycles_table import metric_names, read_cycles

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LearningCurves:
    """The curves of one strategy over seeds.

    Attributes:
        seeds: The seed of each of the S runs, ascending.
        labels: The number of labels in each of the T cycles, of shape (T,).
        values: The metric, of shape (S, T).
        fit_seconds: Time to fit, of shape (S, T).
        query_seconds: Time to score and select, of shape (S, T); NaN in a cycle that queried nothing.

    """

    seeds: tuple[int, ...]
    labels: Array
    values: Array
    fit_seconds: Array
    query_seconds: Array

    @property
    def areas(self) -> Array:
        """The normalized area under each run's curve, of shape (S,)."""
        return area(self.labels, self.values)

    @property
    def seconds_passed(self) -> Array:
        """The seconds of fits and queries until each cycle's test, which precedes its query, of shape (S, T)."""
        queries = np.nan_to_num(self.query_seconds)
        passed: Array = self.fit_seconds.cumsum(1) + queries.cumsum(1) - queries
        return passed

    @property
    def mean_query_seconds(self) -> float:
        """The mean over the cycles with a query; NaN if there is none."""
        queries = self.query_seconds[~np.isnan(self.query_seconds)]
        return float(queries.mean()) if len(queries) else math.nan

    def select(self, seeds: Sequence[int]) -> "LearningCurves":
        """Return the curves of these seeds, in this order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return LearningCurves(
            tuple(seeds), self.labels, self.values[rows], self.fit_seconds[rows], self.query_seconds[rows]
        )


def read_curves(folders: Mapping[int, Path], metric: str) -> LearningCurves:
    r"""Read the `cycles.csv` of one strategy's run folders.

    Args:
        folders: The run folder of each seed; at least one.
        metric: A column of `cycles.csv`, such as `test/accuracy`.

    Returns:
        The curves, by ascending seed.

    Raises:
        ValueError: If a run has no such metric, labels that do not grow, or other numbers of labels than the first.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> text = "cycle,labeled,queried,test/accuracy,fit_seconds,score_seconds,select_seconds\n"
        >>> text += "0,20,10,0.5,3,1,0.5\n1,30,0,0.75,4,0,0\n"
        >>> _ = (folder / "cycles.csv").write_text(text)
        >>> read_curves({0: folder}, "test/accuracy").values
        array([[0.5 , 0.75]])

    """
    if not folders:
        raise ValueError("`read_curves(folders={})`: expected at least one run folder, got none; finish a run first.")
    seeds = tuple(sorted(folders))
    runs = [_read_run(folders[seed], metric) for seed in seeds]
    for seed, run in zip(seeds, runs, strict=True):
        if not np.array_equal(run[0], runs[0][0]):
            raise ValueError(
                f"{folders[seed]} has {_format_labels(run[0])} labels, {folders[seeds[0]]} has "
                f"{_format_labels(runs[0][0])}: runs with different numbers of labels cannot be averaged; leave one "
                "out, or give both the same cycles."
            )
    _, values, fit_seconds, query_seconds = (np.stack(columns) for columns in zip(*runs, strict=True))
    return LearningCurves(seeds, runs[0][0], values, fit_seconds, query_seconds)


def group_by_labels(curves: Mapping[str, LearningCurves]) -> list[dict[str, LearningCurves]]:
    """Return the curves in groups that have the same numbers of labels, in the order of their first ones."""
    groups: dict[tuple[float, ...], dict[str, LearningCurves]] = {}
    for name, curve in curves.items():
        groups.setdefault(tuple(curve.labels.tolist()), {})[name] = curve
    return list(groups.values())


def area(labels: Array, values: Array) -> Array:
    """Average a curve over its label axis: the area under it, divided by its width.

    It summarizes all cycles in one number on the scale of the metric. The trapezoid rule weighs cycles by the labels
    between them, so query sizes may differ.

    ``sum_t (labels_{t+1} - labels_t) (values_t + values_{t+1}) / 2 / (labels_T - labels_1)``

    Args:
        labels: Numbers of labels of shape (T,), increasing.
        values: The metric of shape (..., T).

    Returns:
        Areas of shape (...); a curve of a single cycle has its only value.

    Raises:
        ValueError: If `labels` has another shape than (T,), does not increase, or does not match `values`.

    Example:
        >>> area(np.array([10.0, 20.0, 40.0]), np.array([[0.0, 1.0, 1.0], [0.5, 0.5, 0.5]]))
        array([0.83333333, 0.5       ])

    """
    labels, values = np.asarray(labels, dtype=np.float64), np.asarray(values, dtype=np.float64)
    _check_axis("area", labels, values)
    if len(labels) == 1:
        return values[..., 0]
    result: Array = np.trapezoid(values, labels, axis=-1) / (labels[-1] - labels[0])
    return result


def mean_and_sd(values: Array) -> tuple[Array, Array]:
    """Return mean and sample standard deviation over the runs.

    Args:
        values: Of shape (S, ...), S >= 1.

    Returns:
        Two arrays of shape (...); the standard deviation of one run is NaN.

    Example:
        >>> mean, sd = mean_and_sd(np.array([[1.0, 2.0], [3.0, 2.0]]))
        >>> mean, sd
        (array([2., 2.]), array([1.41421356, 0.        ]))

    """
    values = np.asarray(values, dtype=np.float64)
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], math.nan)


def labels_to_target(labels: Array, values: Array, target: float, *, lower_is_better: bool = False) -> Array:
    """Return how many labels each run needs until its curve first reaches a target.

    Between two cycles the curve is a straight line:
    ``labels_t + (target - values_t) / (values_{t+1} - values_t) (labels_{t+1} - labels_t)``.

    Args:
        labels: Numbers of labels of shape (T,), increasing.
        values: The metric of shape (S, T).
        target: The value to reach.
        lower_is_better: Whether a run reaches the target from above, as with an error.

    Returns:
        Numbers of labels of shape (S,): the first entry of `labels` where a run begins at the target or beyond,
        infinity where it never reaches it. A value of NaN does not reach the target, and is not interpolated from.

    Raises:
        ValueError: If `labels` has another shape than (T,), does not increase, or does not match `values`.

    Example:
        >>> curves = np.array([[0.5, 0.75, 1.0], [0.5, 0.5, 0.75], [0.9, 0.7, 0.9]])
        >>> labels_to_target(np.array([10.0, 20.0, 30.0]), curves, target=0.875)
        array([25., inf, 10.])

    """
    labels, values = np.asarray(labels, dtype=np.float64), np.asarray(values, dtype=np.float64)
    _check_axis("labels_to_target", labels, values)
    gaps = (target - values) if lower_is_better else (values - target)
    result = np.full(len(gaps), math.inf)
    for row, gap in enumerate(gaps):
        reached = np.flatnonzero(gap >= 0)
        if not len(reached):
            continue
        column = int(reached[0])
        result[row] = labels[column]
        if column and not math.isnan(gap[column - 1]):
            share = gap[column - 1] / (gap[column - 1] - gap[column])
            result[row] = labels[column - 1] + share * (labels[column] - labels[column - 1])
    return result


def _read_run(folder: Path, metric: str) -> tuple[Array, Array, Array, Array]:
    """Return labels, values, seconds of the fit and of the query, each of shape (T,)."""
    table = folder / "cycles.csv"
    records = read_cycles(table)
    if not records or any(metric not in record.metrics for record in records):
        available = metric_names(records) if records else []
        raise ValueError(f"{table} has no `{metric}` in every row; it has {', '.join(available) or 'no metric'}.")
    labels = np.array([record.labeled for record in records], dtype=np.float64)
    values = np.array([record.metrics[metric] for record in records], dtype=np.float64)
    if bool((np.diff(labels) <= 0).any()):
        raise ValueError(
            f"{table} has {_format_labels(labels)} labels, which do not grow from cycle to cycle, so there is no "
            "curve: a query labels nothing after a fit that trained no batch. Train at least one epoch, or leave the "
            "run out."
        )
    fit_seconds = np.array([record.fit_seconds for record in records], dtype=np.float64)
    query_seconds = [record.query_seconds if record.queried else math.nan for record in records]
    return labels, values, fit_seconds, np.array(query_seconds, dtype=np.float64)


def _check_axis(name: str, labels: Array, values: Array) -> None:
    if labels.ndim != 1 or values.shape[-1:] != labels.shape or not len(labels) or bool((np.diff(labels) <= 0).any()):
        raise ValueError(
            f"`{name}(labels, values)`: expected increasing labels of shape (T,) and values of shape (..., T), got "
            f"{labels.shape} and {values.shape}; sort the cycles, and keep one row per cycle"
        )


def _format_labels(labels: Array) -> str:
    return ", ".join(f"{count:g}" for count in labels)
