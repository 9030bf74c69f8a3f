"""Selectors by distance: rows of the pool that cover it, from one vector per sample.

Every selector returns `rows`, positions into the measurement tensor: exactly `min(budget, N)` distinct ones in
the order of picking, as a long tensor on the CPU, because a CPU index works on tensors of every device.
"""

from functools import partial

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget, checked_centers, checked_points
from lightning_al.formulas.greedy import Vectors, d2_sampling_block, farthest_point_block, greedy_select


def k_center(points: Tensor, budget: int, *, centers: Tensor) -> Tensor:
    """Pick greedily the point farthest from all covered points.

    A loss that changes slowly over the space is bounded by the distances of points to the nearest labeled one.
    Greedy farthest-first picks cover the points with at most twice the smallest possible radius.

    ``i_t = argmax_i min_{c in centers + picks} ||x_i - c||``; ties go to the lower row.

    Args:
        points: Points of shape (N, D), floating; float16 and bfloat16 are computed in float32.
        budget: Number of points to pick, at least 1.
        centers: Points of shape (M, D), M >= 1, that are covered already: the labeled features for a core-set,
            `torch.zeros(1, D)` for the origin.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking; points that coincide with a covered one come last.
        Points coincide if rounding hides their distance: in float32, below 0.24 % of how far they are from the mean.

    Raises:
        ValueError: If `budget` is no positive integer, or a tensor has another shape or dtype or overflowing values.

    Cost: no forward pass; matrix products of N (M + budget) D multiplications, in true float32 whatever autocast and
    TF32 are set to, and per block of up to 256 picks a few passes over N numbers; memory for two copies of the points
    and 2^20 distances. A block is short where one pick covers many points, as the first do in a few dense clusters.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [9.0, 0.0], [8.0, 1.0], [0.0, 5.0]])
        >>> k_center(points, budget=3, centers=torch.zeros(1, 2))
        tensor([1, 3, 2])

    References:
        Gonzalez, "Clustering to Minimize the Maximum Intercluster Distance", 1985.
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", 2018.
    """
    check_budget("k_center", budget)
    points = checked_points("k_center", "points", points)
    centers = checked_centers("k_center", centers, points)
    points, mean = _shifted(points)
    nothing = torch.empty(0, dtype=torch.long)
    return greedy_select(
        Vectors(points), Vectors(centers - mean), nothing, min(budget, len(points)), farthest_point_block
    )


def kmeans_plus_plus(
    points: Tensor, budget: int, *, generator: torch.Generator, centers: Tensor | None = None
) -> Tensor:
    """Pick points at random, each in proportion to its squared distance to the nearest pick.

    The draw favors points that are far from all picks, hence diverse, and, if a long vector means a large
    effect (BADGE's gradients), informative. Being random it picks fewer outliers than `k_center`.

    ``P(i_t = i) ~ min_{c in centers + picks} ||x_i - c||^2``; without centers ``P(i_1 = i) ~ ||x_i||^2``.

    Args:
        points: Points of shape (N, D), floating; float16 and bfloat16 are computed in float32.
        budget: Number of points to pick, at least 1.
        generator: Source of the draws, on the CPU, seeded by the caller.
        centers: Points of shape (M, D), M >= 1, that are covered already. Without them the origin is the center, for
            the first pick only.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking; drawn uniformly once all points left coincide with
        a covered one (see `k_center`).

    Raises:
        ValueError: If `budget` is no positive integer, or a tensor has another shape or dtype or overflowing values.

    Cost: that of `k_center`; the passes per block are on the CPU.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
        >>> rows = kmeans_plus_plus(points, budget=2, generator=torch.Generator().manual_seed(0))
        >>> points[rows].norm(dim=1)
        tensor([3., 0.])

    References:
        Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007.
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, "Deep Batch Active Learning by Diverse, Uncertain Gradient
        Lower Bounds", 2020.
    """
    check_budget("kmeans_plus_plus", budget)
    points = checked_points("kmeans_plus_plus", "points", points)
    count, choose = min(budget, len(points)), partial(d2_sampling_block, generator=generator)
    if centers is not None:
        centers = checked_centers("kmeans_plus_plus", centers, points)
        points, mean = _shifted(points)
        return greedy_select(Vectors(points), Vectors(centers - mean), torch.empty(0, dtype=torch.long), count, choose)
    start = Vectors(points).lengths
    shifted = Vectors(_shifted(points)[0])
    first = choose(shifted, start, 1)
    # The origin is no center after the first pick: points near it would hardly ever be picked.
    return greedy_select(shifted, shifted.take(first), first, count, choose)


def _shifted(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points with their mean removed (N, D), and the mean (D,).

    Distances ignore a shift, but ``|x|^2 - 2 x.c + |c|^2`` is off by about ``eps (|x|^2 + |c|^2)``: far from the origin
    small distances are lost. About the mean of the points the error is a few ``eps (spread^2 + distance^2)``, wherever
    the centers lie; the mean of the centers would not shift at all if the origin is the only center.
    """
    mean = points.mean(dim=0)
    return points - mean, mean
