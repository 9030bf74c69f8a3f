"""TypiClust: the most typical point of each cluster that holds no label yet."""

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget, checked_points
from lightning_al.formulas.clusters import k_means

# Points up to which a cluster counts as outliers, which the authors leave out.
_SMALLEST = 5
# Distances computed at a time, to bound memory.
_BLOCK_ELEMENTS = 2**22


def typiclust(
    points: Tensor, budget: int, *, labeled: Tensor, seed: int, max_clusters: int = 500, neighbors: int = 20
) -> Tensor:
    """Pick the most typical points of the clusters with the fewest labels.

    There are as many clusters as labels after the query, so one per label. With few labels typical samples, in the
    densest part of a cluster, improve the model more than samples at the boundary, where an early model is unreliable.

    ``typicality(x) = 1 / mean distance to the k nearest neighbors in its cluster``; clusters in the order of their
    labels and picks (fewest first), then of their size (largest first).

    Args:
        points: Features of the pool, of shape (N, D), floating.
        budget: Number of points to pick, at least 1.
        labeled: Features of the labeled samples, of shape (M, D); M may be 0.
        seed: Seed of the clustering, in [0, 2^32).
        max_clusters: Upper bound on the number of clusters, which is M + budget.
        neighbors: k, at least 1; fewer in a cluster with no more points.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking, on the CPU. Clusters of at most 5 come last.

    Raises:
        ValueError: If a number is out of range, or a tensor has another shape or dtype or overflowing values.
        ModuleNotFoundError: Without scikit-learn.

    Cost: no forward pass; k-means over N + M points, then n^2 D multiplications for each cluster of n points.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.3]])
        >>> typiclust(points, budget=1, labeled=torch.tensor([[0.1]]), seed=0)
        tensor([4])

    References:
        Hacohen, Dekel and Weinshall, "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets",
        2022, Algorithm 1.

    """
    check_budget("typiclust", budget)
    points = checked_points("typiclust", "points", points)
    labeled = checked_points("typiclust", "labeled", labeled.to(points))
    if max_clusters < 1 or neighbors < 1 or labeled.shape[1] != points.shape[1]:
        raise ValueError(
            f"`typiclust(labeled, max_clusters={max_clusters}, neighbors={neighbors})`: expected at least 1 of both, "
            f"and labeled points of shape (M, {points.shape[1]}), got {tuple(labeled.shape)}"
        )
    clusters = k_means(torch.cat([points, labeled]), min(len(labeled) + budget, max_clusters), seed)
    return typical_rows(points, clusters[: len(points)], clusters[len(points) :], budget, neighbors)


def typical_rows(
    points: Tensor, clusters: Tensor, labeled_clusters: Tensor, budget: int, neighbors: int = 20
) -> Tensor:
    """Pick the most typical points, given the cluster of each.

    Args:
        points: Points of shape (N, D).
        clusters: The cluster of each point, (N,), on the CPU.
        labeled_clusters: The cluster of each labeled point, (M,).
        budget: Number of points to pick.
        neighbors: How many nearest neighbors count.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking.

    """
    count = int(torch.cat([clusters, labeled_clusters]).max()) + 1
    labels = torch.bincount(labeled_clusters, minlength=count).tolist()
    sizes = torch.bincount(torch.cat([clusters, labeled_clusters]), minlength=count).tolist()
    ordered_rows: dict[int, list[int]] = {}  # the rows of the clusters that were picked from, the most typical first
    num_unpicked = torch.bincount(clusters, minlength=count).tolist()
    picks: list[int] = []
    while len(picks) < min(budget, len(points)):
        best = min(
            (cluster for cluster in range(count) if num_unpicked[cluster]),
            key=lambda cluster: (sizes[cluster] <= _SMALLEST, labels[cluster], -sizes[cluster], cluster),
        )
        if best not in ordered_rows:
            rows = (clusters == best).nonzero().flatten()
            ordered_rows[best] = rows[_mean_distances(points[rows], neighbors).sort(stable=True).indices].tolist()
        picks.append(ordered_rows[best][-num_unpicked[best]])
        num_unpicked[best] -= 1
        labels[best] += 1
    return torch.tensor(picks, dtype=torch.long)


def _mean_distances(points: Tensor, neighbors: int) -> Tensor:
    """Return the mean distance (n,) of each point to its nearest neighbors, the inverse of its typicality."""
    count = min(neighbors, len(points) - 1)
    size = max(1, _BLOCK_ELEMENTS // len(points))
    nearest = [
        # exact differences: an expanded square would lose small distances. One of the nearest is the point itself.
        torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist").topk(count + 1, largest=False).values
        for part in points.split(size)
    ]
    return torch.cat(nearest).sum(dim=1).cpu() / max(count, 1)
