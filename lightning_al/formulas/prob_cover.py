"""ProbCover: points whose balls contain the most uncovered points."""

import math

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget, checked_points
from lightning_al.formulas.clusters import k_means
from lightning_al.formulas.greedy import Vectors, squared_distances

# Points on each side of a tile of distances, which fits the cache of a processor.
_TILE = 2**10
# Factor of a distance that excludes the point at this distance in spite of rounding.
_BELOW = 1 - 1e-6


def prob_cover(points: Tensor, budget: int, *, labeled: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Pick greedily the point with the most uncovered points within a radius.

    If labels are equal within the radius, the label of a point is that of all points in its ball. Greedy picks cover at
    least 1 - 1/e of what the best ones could.

    ``i_t = argmax_i |{j uncovered: ||x_i - x_j|| <= radius}|``, itself included; ties go to the lower row.

    Args:
        points: Features of the pool, of shape (N, D), floating.
        budget: Number of points to pick, at least 1.
        labeled: Features of the labeled samples, of shape (M, D); M may be 0. Points in their balls are covered.
        radius: The radius, finite and at least 0.
        generator: Source of the draw once everything is covered, on the CPU, seeded by the caller.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking, on the CPU; drawn uniformly once all is covered.

    Raises:
        ValueError: If a number is out of range, or a tensor has another shape or dtype or overflowing values.

    Cost: no forward pass; N (2 N + M + budget) D multiplications at most, in tiles: no N x N matrix is formed.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [2.0], [5.0], [5.5], [9.0]])
        >>> generator = torch.Generator().manual_seed(0)
        >>> prob_cover(points, budget=2, labeled=torch.tensor([[9.0]]), radius=1.0, generator=generator)
        tensor([1, 3])

    References:
        Yehuda, Dekel, Hacohen and Weinshall, "Active Learning Through a Covering Lens", 2022, Algorithm 1.

    """
    check_budget("prob_cover", budget)
    points = checked_points("prob_cover", "points", points)
    labeled = checked_points("prob_cover", "labeled", labeled.to(points))
    if not (math.isfinite(radius) and radius >= 0) or labeled.shape[1] != points.shape[1]:
        raise ValueError(
            f"`prob_cover(labeled, radius={radius!r})`: expected a finite radius of at least 0, and labeled points of "
            f"shape (M, {points.shape[1]}), got {tuple(labeled.shape)}"
        )
    mean = points.mean(dim=0)
    balls, limit = Vectors(points - mean), radius**2
    uncovered = _count_within(balls, Vectors(labeled - mean), limit) == 0
    degrees = _count_within(balls, balls.take(uncovered.nonzero().flatten()), limit)
    free = torch.ones_like(uncovered)
    picks: list[int] = []
    while len(picks) < min(budget, len(points)):
        row = int(degrees.masked_fill(~free, -1).argmax())
        if not degrees[row]:
            remaining = free.nonzero().flatten().cpu()
            order = torch.randperm(len(remaining), generator=generator)[: min(budget, len(points)) - len(picks)]
            return torch.cat([torch.tensor(picks, dtype=torch.long), remaining[order]])
        free[row] = False
        picks.append(row)
        ball = squared_distances(balls, balls.take(torch.tensor([row])))[:, 0] <= limit
        covered = (uncovered & ball).nonzero().flatten()
        uncovered[covered] = False
        degrees -= _count_within(balls, balls.take(covered), limit)
    return torch.tensor(picks, dtype=torch.long)


def purity_radius(points: Tensor, *, clusters: int, seed: int, purity: float = 0.95) -> float:
    """Return the largest radius at which most balls contain points of one cluster only.

    Clusters stand for the unknown classes. The share of pure balls at a radius is that of the points whose nearest
    point of another cluster lies beyond it, so the radius is a quantile of these distances, without a grid search.

    Args:
        points: Features, of shape (N, D), floating.
        clusters: Number of clusters, at least 2: the number of classes.
        seed: Seed of the clustering, in [0, 2^32).
        purity: The share of pure balls, in (0, 1].

    Returns:
        The radius, just below the distance at which the next ball would stop being pure.

    Raises:
        ValueError: If an argument is out of range, or all points coincide.
        ModuleNotFoundError: Without scikit-learn.

    Cost: k-means, and N^2 D multiplications.

    Example:
        >>> round(purity_radius(torch.tensor([[0.0], [1.0], [5.0], [6.0]]), clusters=2, seed=0), 3)
        4.0

    References:
        Yehuda, Dekel, Hacohen and Weinshall, "Active Learning Through a Covering Lens", 2022, section 3.3.

    """
    points = checked_points("purity_radius", "points", points)
    if clusters < 2 or not 0 < purity <= 1:
        raise ValueError(
            f"`purity_radius(clusters={clusters}, purity={purity})`: expected at least 2 clusters and a share in (0, 1]"
        )
    labels = k_means(points, clusters, seed).to(points.device)
    if bool((labels == labels[0]).all()):
        raise ValueError("`purity_radius(points)`: expected points that fall into clusters, got points that coincide")
    vectors = Vectors(points - points.mean(dim=0))
    foreign = [
        squared_distances(tile, vectors).masked_fill_(tile_labels.unsqueeze(1) == labels, math.inf).amin(dim=1)
        for tile, tile_labels in zip(vectors.tiles(_TILE // 8), labels.split(_TILE // 8), strict=True)
    ]
    ordered = torch.cat(foreign).sort().values
    return math.sqrt(float(ordered[len(points) - math.ceil(purity * len(points))])) * _BELOW


def _count_within(points: Vectors, others: Vectors, limit: float) -> Tensor:
    """Return for each point (N,) how many of the others are within a squared distance."""
    counts = torch.zeros(len(points.values), dtype=torch.long, device=points.values.device)
    for block in others.tiles(_TILE) if len(others.values) else []:
        for tile, count in zip(points.tiles(_TILE), counts.split(_TILE), strict=True):
            count += (squared_distances(tile, block) <= limit).sum(dim=1)
    return counts
