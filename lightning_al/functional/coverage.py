"""Selectors by distance: rows of the pool that cover it, from one vector per sample.

Every selector returns `rows`, positions into the measurement tensor: exactly `min(budget, N)` distinct ones in
the order of picking, as a long tensor on the CPU, because a CPU index works on tensors of every device.

A product of all points with one pick is bound by memory, with many picks by arithmetic, which is many times faster per
pick. So both selectors pick in blocks: among a few candidates, from their distances to each other alone, until the
candidates no longer decide what the next pick is. Only then all points learn of the block's picks, in one product.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_al.functional.checks import check_budget, checked_centers, checked_points
from lightning_al.precision import true_float32

_CANDIDATES = 256
# Distances in flight: few enough for the cache of a processor, enough to keep a GPU busy.
_BLOCK_ELEMENTS = 2**20
# Rounding leaves exact duplicates at up to 6 eps * (|x|^2 + |c|^2) if coordinates are normal, at up to 18 if a few of
# them dominate (lognormal; measured up to D = 50,000), never at 0.
_ROUNDING_EPS = 24


def k_center(points: Tensor, budget: int, *, centers: Tensor) -> Tensor:
    """Pick, one after another, the point farthest from everything that is covered already.

    A loss that changes slowly over the space is bounded by how far points lie from the nearest labeled one.
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
    return _grow(points, centers - mean, torch.empty(0, dtype=torch.long), min(budget, len(points)), _farthest)


def kmeans_plus_plus(
    points: Tensor, budget: int, *, generator: torch.Generator, centers: Tensor | None = None
) -> Tensor:
    """Pick points at random, each in proportion to its squared distance to the nearest pick.

    The draw favors points that are far from all picks, hence diverse, and, if a long vector means a large
    effect (BADGE's gradients), informative. Being random it chases outliers less than `k_center`.

    ``P(i_t = i) ~ min_{c in centers + picks} ||x_i - c||^2``; without centers ``P(i_1 = i) ~ ||x_i||^2``.

    Args:
        points: Points of shape (N, D), floating; float16 and bfloat16 are computed in float32.
        budget: Number of points to pick, at least 1.
        generator: Source of the draws, on the CPU, seeded by the caller.
        centers: Points of shape (M, D), M >= 1, that are covered already. Without them the origin stands in, but for
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
    count, draw = min(budget, len(points)), partial(_draw, generator=generator)
    if centers is not None:
        centers = checked_centers("kmeans_plus_plus", centers, points)
        points, mean = _shifted(points)
        return _grow(points, centers - mean, torch.empty(0, dtype=torch.long), count, draw)
    start = points.square().sum(dim=1)
    points, _ = _shifted(points)
    first = draw(points, start, 1)
    # The origin must not stay on as a ghost center, or points near it would hardly ever be picked.
    return _grow(points, points[first], first, count, draw)


def _shifted(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points with their mean removed (N, D), and the mean (D,).

    Distances ignore a shift, but ``|x|^2 - 2 x.c + |c|^2`` is off by about ``eps (|x|^2 + |c|^2)``: far from the origin
    a small spread drowns. About the mean of the points the error is a few ``eps (spread^2 + distance^2)``, wherever the
    centers lie; the mean of the centers would not shift at all if the origin is the only center.
    """
    mean = points.mean(dim=0)
    return points - mean, mean


def _grow(
    points: Tensor, centers: Tensor, rows: Tensor, count: int, choose: Callable[[Tensor, Tensor, int], Tensor]
) -> Tensor:
    """Extend `rows` to `count` picks, block by block.

    Args:
        points: Points of shape (N, D).
        centers: What is covered already, the points in `rows` included.
        rows: The rows picked already.
        count: Number of rows to return.
        choose: Picks a block of 1 to n rows, given the points, their squared distances to the nearest center or pick
            (N,), which are -inf in rows picked already, and n.
    """
    norms = points.square().sum(dim=1)
    nearest = torch.full_like(norms, math.inf)
    while len(rows) < count:
        _lower(nearest, points, norms, centers)
        # -inf survives every later minimum: a picked row cannot win again, even among zero distances.
        nearest[rows] = -math.inf
        block = choose(points, nearest, count - len(rows))
        rows, centers = torch.cat([rows, block]), points[block]
    return rows


def _farthest(points: Tensor, nearest: Tensor, count: int) -> Tensor:
    """Pick among the candidates farthest out while the best of them surely beats every point left aside.

    Distances only fall: a point that is no candidate never rises above the last candidate's distance at the start. So
    every pick is the one that a search of all points would make, ties included.
    """
    size = min(_CANDIDATES, len(points))
    bound = nearest.topk(size).values[-1]
    # `topk` leaves open which of the ties it takes.
    above, ties = (nearest > bound).nonzero(), (nearest == bound).nonzero()
    rows, order = torch.cat([above, ties[: size - len(above)]]).flatten().sort()
    last = float(bound), -int(order.argmax())
    # On the CPU, so that a GPU waits once in a block and not at every pick.
    distances, now = _pairwise(points[rows]), nearest[rows].cpu()
    picks: list[int] = []
    while len(picks) < count:
        position = int(now.argmax())
        if (float(now[position]), -position) < last:
            break
        picks.append(position)
        now = torch.minimum(now, distances[position])
        now[position] = -math.inf
    return rows.cpu()[picks]


def _draw(points: Tensor, nearest: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw in proportion to `nearest`, which falls from pick to pick, by rejection.

    Candidates are drawn from the weights at the start; one that is accepted with probability ``now / start`` is a draw
    from the weights as they are now. The first always is, and once nearly all are refused the weights are fresh again.
    """
    # Not `torch.multinomial`: it takes at most 2^24 rows.
    weights = nearest.cpu().double()
    cdf = weights.clamp(min=0).cumsum(dim=0)
    if not (weights > 0).any():
        left = (weights >= 0).nonzero().flatten()
        return left[torch.randperm(len(left), generator=generator)[:count]]
    # No more than a small budget can use: their distances to each other would cost more than the picks.
    uniform = torch.rand(2, min(_CANDIDATES, 2 * count), dtype=torch.float64, generator=generator)
    rows = torch.searchsorted(cdf, cdf[-1] * uniform[0], right=True)
    # A row that is drawn twice must not be accepted twice.
    distances = _pairwise(points[rows.to(points.device)]).masked_fill_(rows == rows.unsqueeze(1), 0)
    start, now = weights[rows], weights[rows]
    picks: list[int] = []
    for position, threshold in enumerate(uniform[1].tolist()):
        if len(picks) < count and now[position] / start[position] > threshold:
            picks.append(position)
            now = torch.minimum(now, distances[position])
    return rows[picks]


def _lower(nearest: Tensor, points: Tensor, norms: Tensor, centers: Tensor) -> None:
    """Lower `nearest` (N,) in place to the squared distances to the nearest center, tile by tile."""
    for block in centers.split(_CANDIDATES):
        lengths, size = block.square().sum(dim=1), max(1, _BLOCK_ELEMENTS // len(block))
        for tile, norm, out in zip(points.split(size), norms.split(size), nearest.split(size), strict=True):
            torch.minimum(out, _squared_distances(tile, norm, block, lengths).amin(dim=1), out=out)


def _pairwise(points: Tensor) -> Tensor:
    """Return the squared distances (B, B) between the candidates of a block, on the CPU."""
    norms = points.square().sum(dim=1)
    return _squared_distances(points, norms, points, norms).cpu()


def _squared_distances(points: Tensor, norms: Tensor, centers: Tensor, center_norms: Tensor) -> Tensor:
    """Expand ``|x - c|^2``; what cannot be told from rounding is 0, so that duplicates are exact duplicates."""
    # Autocast and TF32 would rank rounding errors.
    with true_float32(points.device):
        products = points @ centers.T
    sums = norms.unsqueeze(1) + center_norms
    distances = torch.sub(sums, products, alpha=2, out=products)
    return distances.masked_fill_(distances <= sums.mul_(_ROUNDING_EPS * torch.finfo(sums.dtype).eps), 0)
