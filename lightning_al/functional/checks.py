"""What the selectors demand of their arguments, with messages that say what to do instead."""

import torch
from torch import Tensor


def check_budget(name: str, budget: int) -> None:
    """Refuse everything but a positive integer."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(
            f"`{name}(budget={budget!r})`: expected an integer of at least 1, got {budget!r}; "
            "turn a share of the dataset into a number of samples first"
        )


def check_scores(name: str, scores: Tensor) -> None:
    """Refuse everything but one finite number per sample."""
    if scores.ndim != 1:
        raise ValueError(
            f"`{name}(scores)`: expected shape (N,), got {tuple(scores.shape)}; reduce each sample to one number first"
        )
    finite = scores.isfinite()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"`{name}(scores)`: expected finite scores, got {scores[row].item()} in row {row}; check the model's output"
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
    """Return the validated points in at least float32, cut off from autograd."""
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
