"""Paired comparisons of strategies over seeds.

A seed fixes the initial labels and the initial network alike for every strategy: what its runs have in common cancels
in the difference, so pairs distinguish strategies with fewer seeds than means of independent runs would.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_al.analysis.learning_curves import Array

# A spread of this share of the mean is the rounding of float64, from which no variance can be estimated. It covers
# every case in which SciPy would warn of cancellation.
ROUNDING = 20 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences with its confidence interval, p-value and number of pairs.

    Attributes:
        mean: Mean of the differences.
        low: Lower end of the confidence interval; NaN for one pair.
        high: Upper end.
        p_value: Two-sided p-value of the paired t-test; NaN for one pair.
        pairs: The number of pairs.

    """

    mean: float
    low: float
    high: float
    p_value: float
    pairs: int


def paired_difference(values: Array, reference: Array, *, level: float = 0.95) -> PairedDifference:
    """Compare two strategies seed by seed: the mean difference with Student's t interval.

    ``d_s = values_s - reference_s``; the interval is ``mean(d) ± t_{(1 + level) / 2, S - 1} sd(d) / sqrt(S)``, and the
    p-value that of ``mean(d) sqrt(S) / sd(d)`` under a t distribution with S - 1 degrees of freedom.

    Args:
        values: One number per seed, of shape (S,).
        reference: The other strategy's numbers with the same seeds, of shape (S,).
        level: Of the confidence interval, in (0, 1).

    Returns:
        Mean, interval, p-value and S. Differences without any spread but that of rounding have an interval of width 0
        and a p-value of 1 if they are 0, else 0.

    Raises:
        ValueError: If the shapes are not (S,) with S >= 1, or `level` is out of range.
        ModuleNotFoundError: If SciPy is missing.

    Example:
        >>> difference = paired_difference(np.array([0.5, 0.75, 0.625]), np.array([0.25, 0.5, 0.5]))
        >>> f"{difference.mean:.3f} [{difference.low:.3f}, {difference.high:.3f}], p = {difference.p_value:.3f}"
        '0.208 [0.029, 0.388], p = 0.038'

    References:
        Student, "The Probable Error of a Mean", 1908.

    """
    values, reference = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if values.ndim != 1 or values.shape != reference.shape or not len(values):
        raise ValueError(
            f"`paired_difference(values, reference)`: expected two arrays of the same shape (S,), S >= 1, got "
            f"{values.shape} and {reference.shape}; pass the same seeds of both"
        )
    if not 0 < level < 1:
        raise ValueError(f"`paired_difference(level={level!r})`: expected a number in (0, 1), got {level!r}; try 0.95")
    differences = values - reference
    mean, pairs = float(differences.mean()), len(differences)
    if pairs == 1:
        return PairedDifference(mean, math.nan, math.nan, math.nan, pairs)
    if np.ptp(differences) <= ROUNDING * abs(mean):
        return PairedDifference(mean, mean, mean, float(mean == 0), pairs)
    test = _ttest_rel()(values, reference)
    interval = test.confidence_interval(level)
    return PairedDifference(mean, float(interval.low), float(interval.high), float(test.pvalue), pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of comparisons, by Holm's step-down rule.

    Among many strategies one differs by chance; the probability that any true null hypothesis has an adjusted p below
    0.05 is below 0.05, whatever the dependence between the comparisons.

    ``p'_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))`` for the sorted ``p_(1) <= ... <= p_(m)``.

    Args:
        p_values: m numbers in [0, 1]; NaN stays NaN and does not count.

    Returns:
        The adjusted p-values, in the order of `p_values`.

    Example:
        >>> holm([0.5, 0.25, 0.125])
        [0.5, 0.5, 0.375]

    References:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.

    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p_value, position) for position, p_value in enumerate(p_values) if not math.isnan(p_value))
    largest = 0.0
    for rank, (p_value, position) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_value))
        adjusted[position] = largest
    return adjusted


def _ttest_rel() -> Callable[[Array, Array], Any]:
    """Return SciPy's paired t-test, or raise if SciPy is missing."""
    try:
        from scipy.stats import ttest_rel  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Confidence intervals need SciPy: pip install "lightning_al[report]".', name="scipy"
        ) from error
    test: Callable[[Array, Array], Any] = ttest_rel
    return test
