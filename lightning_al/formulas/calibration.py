"""Calibration: how far probabilities are from how often they are right, and a temperature that lessens it."""

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_labels, checked_outputs, checked_probs

# The temperatures that the authors of uncertainty herding try; none makes probabilities surer.
_TEMPERATURES = [1 + step / 10 for step in range(190)]


def calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of the most likely classes.

    ``sum_b |sum_{n in b} (confidence_n - correct_n)| / N`` over bins of equal width of the confidence, the largest
    probability of a sample.

    Args:
        probs: Class probabilities of shape (N, C).
        labels: Classes of shape (N,), integers.
        bins: Number of bins, at least 1.

    Returns:
        A number in [0, 1]; 0 if confidences are right on average in every bin.

    Raises:
        ValueError: If a tensor has another shape or dtype, or rows are no probabilities.

    Cost: one pass over N * C numbers.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
        >>> round(calibration_error(probs, torch.tensor([0, 0, 0]), bins=2), 4)
        0.0333

    References:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017.

    """
    probs = checked_probs("calibration_error", "probs", probs)
    check_labels("calibration_error", labels, probs)
    confidences, classes = probs.max(dim=1)
    gaps = confidences - (classes == labels).to(probs)
    rows = (confidences * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, dtype=probs.dtype, device=probs.device).index_add_(0, rows, gaps)
    return float(sums.abs().sum()) / len(probs)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature whose probabilities have the smallest calibration error.

    Args:
        logits: Outputs of shape (N, C) of samples that were not trained on.
        labels: Their classes, of shape (N,), integers.

    Returns:
        The first minimum among 1.0, 1.1, ..., 19.9, with as many bins as classes.

    Raises:
        ValueError: If a tensor has another shape or dtype, or an output is not finite.

    Cost: 190 softmax functions of N * C numbers.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> fit_temperature(logits, torch.tensor([0, 0, 1, 1]))
        3.6

    References:
        Bae, Oliveira and Sutherland, "Uncertainty Herding: One Active Learning Method for All Label Budgets", 2025.

    """
    logits = checked_outputs("fit_temperature", "logits", logits)
    check_labels("fit_temperature", labels, logits)
    errors = [
        calibration_error((logits / temperature).softmax(dim=1), labels, bins=logits.shape[1])
        for temperature in _TEMPERATURES
    ]
    return _TEMPERATURES[errors.index(min(errors))]
