"""Principal components: the directions in which points vary most."""

import torch
from torch import Tensor

from lightning_al.formulas.checks import checked_points


def principal_components(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean of points, and the orthonormal directions of their largest variances.

    Args:
        points: Points of shape (N, D), floating.
        count: Number of directions, at least 1; fewer are returned if the points vary in fewer.

    Returns:
        The mean (D,) and the directions (D, count), the largest variance first, in the dtype of the points.

    Raises:
        ValueError: If `count` is below 1, all points coincide, or they have another shape or dtype.

    Cost: N D min(N, D) multiplications and min(N, D)^3 more, in float64.

    Example:
        >>> points = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
        >>> mean, directions = principal_components(points, count=2)
        >>> mean.tolist(), directions.abs().tolist()
        ([2.0, 1.0], [[1.0], [0.0]])

    """
    points = checked_points("principal_components", "points", points)
    centered = points.double()
    centered = centered - centered.mean(dim=0)
    wide = centered.shape[1] > len(centered)
    # of a wide matrix X the smaller product X X' has the same positive eigenvalues as X' X
    variances, vectors = torch.linalg.eigh(centered @ centered.T if wide else centered.T @ centered)
    rounding = max(centered.shape) * torch.finfo(centered.dtype).eps * variances[-1]
    kept = min(count, int((variances > rounding).sum()))
    if kept < 1:
        raise ValueError(
            f"`principal_components(points, count={count})`: expected at least 1 direction, and points that differ"
        )
    vectors = vectors[:, -kept:].flip(1)
    if wide:
        vectors = centered.T @ vectors / variances[-kept:].flip(0).sqrt()
    return points.mean(dim=0), vectors.to(points)
