"""Checks of the arguments of formulas, with messages that state the remedy."""

from collections.abc import Sequence

import torch
from torch import Tensor

# How far the sum of probabilities may be from 1: more than rounding in single precision, less than a missing softmax.
_TOLERANCE = 1e-3


class NonFiniteError(ValueError):
    """NaN or infinite values, where numbers are to be ranked.

    Args:
        message: The reason and the remedy.
        rows: The rows of the tensor that have such values.

    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = rows


def check_budget(name: str, budget: int) -> None:
    """Raise unless the budget is a positive integer."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(
            f"`{name}(budget={budget!r})`: expected an integer of at least 1, got {budget!r}; "
            "turn a share of the dataset into a number of samples first"
        )


def check_scores(name: str, scores: Tensor, argument: str = "scores") -> None:
    """Raise unless there is one finite number per sample."""
    if scores.ndim != 1:
        raise ValueError(
            f"`{name}({argument})`: expected shape (N,), got {tuple(scores.shape)}; "
            "reduce each sample to one number first"
        )
    finite = scores.isfinite()
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"`{name}({argument})`: expected finite scores, got {scores[rows[0]].item()} in row {rows[0]}; "
            "check the model's output",
            rows,
        )


def checked_weights(name: str, argument: str, weights: Tensor | None, points: Tensor, remedy: str) -> Tensor:
    """Return weights (N,) of points (N, D) in their dtype, ones for None; raise unless they are non-negative."""
    if weights is None:
        return points.new_ones(len(points))
    check_scores(name, weights, argument)
    if len(weights) != len(points) or bool((weights < 0).any()):
        smallest = f" from {weights.min().item():.4g} on" if len(weights) else ""
        raise ValueError(
            f"`{name}({argument})`: expected {len(points)} non-negative weights, one per point, got "
            f"{len(weights)}{smallest}; {remedy}"
        )
    return weights.to(points)


def check_labels(name: str, labels: Tensor, outputs: Tensor) -> None:
    """Raise unless there is one class per row of outputs (N, C)."""
    if outputs.ndim != 2 or labels.shape != outputs.shape[:1] or labels.is_floating_point() or not len(labels):
        raise ValueError(
            f"`{name}(labels)`: expected integer classes of shape (N,) for outputs of shape (N, C), N >= 1, got "
            f"{labels.dtype} of shape {tuple(labels.shape)} for {tuple(outputs.shape)}"
        )


def checked_centers(name: str, centers: Tensor, points: Tensor) -> Tensor:
    """Return the validated centers in the dtype and on the device of the points."""
    if centers.ndim != 2 or len(centers) == 0 or centers.shape[1] != points.shape[1]:
        raise ValueError(
            f"`{name}(centers)`: expected shape (M, {points.shape[1]}) with M >= 1, got {tuple(centers.shape)}; "
            f"without covered points pass the origin, `torch.zeros(1, {points.shape[1]})`"
        )
    return checked_points(name, "centers", centers.to(points))


def checked_points(name: str, argument: str, points: Tensor) -> Tensor:
    """Return the validated points in at least float32, detached from autograd."""
    if points.ndim != 2 or points.shape[1] == 0 or not points.is_floating_point():
        raise ValueError(
            f"`{name}({argument})`: expected a floating tensor of shape (N, D) with D >= 1, got {points.dtype} of "
            f"shape {tuple(points.shape)}; flatten each sample to one vector first"
        )
    points = points.detach() if points.dtype == torch.float64 else points.detach().float()
    # A sixteenth leaves room for the squared distances after the shift; NaN fails the comparison.
    norms = points.square().sum(dim=1)
    fits = norms <= torch.finfo(points.dtype).max / 16
    if not bool(fits.all()):
        row = int((~fits).nonzero()[0])
        raise ValueError(
            f"`{name}({argument})`: expected finite values whose squares fit {points.dtype}, got a squared norm of "
            f"{norms[row].item()} in row {row}; check the model's output for this sample, or scale the values down"
        )
    return points


def mean_over_positions(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average scores of shape (N, ...) to (N,), over the positions where a mask of the same shape is true."""
    if mask is None:
        return scores.unsqueeze(-1).flatten(1).mean(dim=1)
    return scores.masked_fill(~mask, 0).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)


def checked_probs(name: str, argument: str, probs: Tensor) -> Tensor:
    """Return the validated class probabilities (N, C, ...) in at least float32."""
    shape = tuple(probs.shape)
    if not probs.is_floating_point():
        raise ValueError(
            f"`{name}({argument})`: expected a floating dtype, got {probs.dtype}; "
            "pass the softmax of the model's output, not labels"
        )
    if probs.ndim < 2 or 0 in shape[2:]:
        raise ValueError(
            f"`{name}({argument})`: expected shape (N, C, ...) with classes in dimension 1 and at least one position, "
            f"got {shape}; add the batch dimension or move the classes to dimension 1"
        )
    if shape[1] < 2:
        raise ValueError(
            f"`{name}({argument})`: expected at least 2 classes in dimension 1, got shape {shape}; one output has no "
            'class probabilities; for regression use NoiseStabilityAcquisition(output="identity")'
        )
    # A bfloat16 softmax rounds every probability by up to 0.4 %, so its rows legitimately miss 1 by more than 1e-3.
    tolerance = max(_TOLERANCE, torch.finfo(probs.dtype).eps)
    probs = probs if probs.dtype == torch.float64 else probs.float()
    sums = probs.sum(dim=1)
    # Written so that NaN fails; one `bool` means one device synchronization.
    if not bool(((sums - 1).abs() <= tolerance).all() & (probs >= 0).all()):
        _raise_if_non_finite(name, argument, "probabilities", probs)
        raise ValueError(f"`{name}({argument})`: {_complaint(probs, sums, tolerance)}")
    return probs


def checked_outputs(name: str, argument: str, outputs: Tensor) -> Tensor:
    """Return the validated raw outputs (N, C, ...) in at least float32."""
    if outputs.ndim < 2 or 0 in outputs.shape[1:] or not outputs.is_floating_point():
        raise ValueError(
            f"`{name}({argument})`: expected a floating tensor of shape (N, C, ...) with at least one output and "
            f"position, got {outputs.dtype} of shape {tuple(outputs.shape)}; give a single output its dimension with "
            "unsqueeze(1)"
        )
    _raise_if_non_finite(name, argument, "outputs", outputs)
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _raise_if_non_finite(name: str, argument: str, kind: str, values: Tensor) -> None:
    """Raise if a row of values (N, C, ...) is not finite, naming the first one."""
    rows = (~values.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if rows:
        raise NonFiniteError(
            f"`{name}({argument})`: expected finite {kind}, got NaN or inf in row {rows[0]}; check the model's output "
            "for this sample",
            rows,
        )


def _complaint(probs: Tensor, sums: Tensor, tolerance: float) -> str:
    """Return an error message for rejected probabilities that names the first wrong sample."""
    wrong = ((sums - 1).abs() > tolerance) | (probs < 0).any(dim=1)
    row = int(wrong.unsqueeze(-1).flatten(1).any(dim=1).nonzero()[0])
    low, high = (value.item() for value in sums[row].aminmax())
    return (
        f"expected probabilities that are at least 0 and sum to 1 over dimension 1 (within {tolerance:.1g}), got "
        f"minimum {probs[row].min().item():.4g} and sums from {low:.4g} to {high:.4g} in row {row}; "
        "apply softmax over dimension 1 first"
    )
