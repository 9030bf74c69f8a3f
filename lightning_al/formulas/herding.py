"""Herding: points that cover the most weight of a pool, with a kernel that falls off smoothly."""

import math

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget, checked_points, checked_weights
from lightning_al.formulas.greedy import Vectors, nearest_centers, squared_distances

# Points whose gains are computed at a time, in one product with all points.
_BLOCK = 32
# Points whose distances to all points are computed at a time.
_TILE = 256
# The neighbor whose distance is the width of the kernel.
_NEIGHBOR = 10


def herding(points: Tensor, budget: int, *, labeled: Tensor, width: float, weights: Tensor | None = None) -> Tensor:
    """Pick greedily the point that adds most to the weighted coverage of all points.

    The label of a point tells something about those near it, less and less with the distance. Greedy picks cover at
    least 1 - 1/e of what the best ones could. With weights, uncertain regions are covered first.

    ``i_t = argmax_i sum_n w_n max(0, k(x_n, x_i) - c_n)``, where ``c_n`` is the largest kernel value of ``x_n`` with a
    labeled point or an earlier pick, and ``k(a, b) = exp(-(||a - b|| / width)^2)``; ties go to the lower row.

    Args:
        points: Features of the pool, of shape (N, D), floating.
        budget: Number of points to pick, at least 1.
        labeled: Features of the labeled samples, of shape (M, D); M may be 0.
        width: Distance at which the kernel has fallen to 1/e, positive and finite.
        weights: Non-negative, of shape (N,); None for equal ones. Their scale does not matter.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking, on the CPU.

    Raises:
        ValueError: If a number is out of range, or a tensor has another shape or dtype or overflowing values.

    Cost: no forward pass; N (N + M) D multiplications, and for every pick those of a few blocks of N * 32 * D: gains
        only fall, so that a point is looked at again only if its last gain could still be the largest.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [9.0]])
        >>> herding(points, budget=2, labeled=torch.tensor([[9.0]]), width=1.0)
        tensor([1, 3])
        >>> weights = torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0])
        >>> herding(points, budget=2, labeled=torch.tensor([[9.0]]), width=1.0, weights=weights)
        tensor([3, 1])

    References:
        Bae, Ha, Wang, Kim, Yoon and Hong, "Generalized Coverage for More Robust Low-Budget Active Learning", 2024.
        Bae, Oliveira and Sutherland, "Uncertainty Herding: One Active Learning Method for All Label Budgets", 2025.

    """
    check_budget("herding", budget)
    points = checked_points("herding", "points", points)
    labeled = checked_points("herding", "labeled", labeled.to(points))
    if not 0 < width < math.inf or labeled.shape[1] != points.shape[1]:
        raise ValueError(
            f"`herding(labeled, width={width!r})`: expected a positive finite width, and labeled points of shape "
            f"(M, {points.shape[1]}), got {tuple(labeled.shape)}"
        )
    weights = _checked_weights(weights, points)
    mean = points.mean(dim=0)
    vectors, coverage = Vectors(points - mean), torch.zeros_like(weights)
    if len(labeled):
        coverage = (nearest_centers(vectors, Vectors(labeled - mean))[0] / -(width**2)).exp_()
    gains = torch.full_like(weights, math.inf)  # upper bounds, until they are computed
    picks: list[int] = []
    while len(picks) < min(budget, len(points)):
        row = _largest_gain(gains, vectors, coverage, weights, width)
        picks.append(row)
        gains[row] = -math.inf
        torch.maximum(coverage, _kernel(vectors, vectors.take(torch.tensor([row])), width)[:, 0], out=coverage)
    return torch.tensor(picks, dtype=torch.long)


def neighbor_width(points: Tensor) -> float:
    """Return the median distance of points to their tenth neighbor, as the width of a kernel.

    Args:
        points: Features, of shape (N, D), floating.

    Returns:
        The median of the positive distances; 1.0 if there are none.

    Raises:
        ValueError: If the points have another shape or dtype or overflowing values.

    Cost: N^2 D multiplications, in tiles.

    Example:
        >>> neighbor_width(torch.arange(100.0).unsqueeze(1))
        5.0

    """
    points = checked_points("neighbor_width", "points", points)
    vectors, count = Vectors(points - points.mean(dim=0)), min(_NEIGHBOR, len(points) - 1)
    # one of the nearest is the point itself
    tiles = [
        squared_distances(tile, vectors).topk(count + 1, largest=False).values[:, -1] for tile in vectors.tiles(_TILE)
    ]
    distances = torch.cat(tiles)
    positive = distances[distances > 0]
    return math.sqrt(float(positive.median())) if len(positive) else 1.0


def labeled_width(labeled: Tensor) -> float:
    """Return the smallest positive distance between labeled points, which falls as labels grow, as a kernel's width.

    Args:
        labeled: Features of the labeled samples, of shape (M, D), floating.

    Returns:
        The distance; 1.0 if there is none.

    Raises:
        ValueError: If the points have another shape or dtype or overflowing values.

    Cost: M^2 D multiplications, in tiles.

    Example:
        >>> labeled_width(torch.tensor([[0.0], [3.0], [3.0], [5.0]]))
        2.0

    """
    labeled = checked_points("labeled_width", "labeled", labeled)
    vectors = Vectors(labeled - labeled.mean(dim=0) if len(labeled) else labeled)
    squares = [squared_distances(tile, vectors) for tile in vectors.tiles(_TILE)] if len(labeled) else []
    positive = [tile[tile > 0].min() for tile in squares if bool((tile > 0).any())]
    return math.sqrt(float(torch.stack(positive).min())) if positive else 1.0


def _checked_weights(weights: Tensor | None, points: Tensor) -> Tensor:
    """Return the validated weights (N,), scaled to a maximum of 1 if any is positive."""
    checked = checked_weights("herding", "weights", weights, points, "shift or clamp negative scores first")
    if weights is None or not weights.max() > 0:
        return checked
    return (weights / weights.max()).to(points)


def _largest_gain(gains: Tensor, points: Vectors, coverage: Tensor, weights: Tensor, width: float) -> int:
    """Return the row of the largest gain, and lower in place the bounds of those that had to be computed for it."""
    computed = torch.zeros(len(gains), dtype=torch.bool, device=gains.device)
    while True:
        row = int(gains.argmax())
        if computed[row]:
            return row
        outdated = gains.masked_fill(computed, -math.inf)
        block = outdated.topk(min(_BLOCK, len(gains))).indices
        block = block[outdated[block] > -math.inf]
        added = _kernel(points, points.take(block), width).sub_(coverage.unsqueeze(1)).clamp_(min=0)
        gains[block] = weights @ added
        computed[block] = True


def _kernel(points: Vectors, others: Vectors, width: float) -> Tensor:
    """Return the kernel (N, B) of all points with some."""
    return squared_distances(points, others).div_(-(width**2)).exp_()
