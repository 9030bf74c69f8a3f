"""LCMD: diverse picks that are dense where the points are."""

import math

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget, checked_centers, checked_points
from lightning_al.formulas.greedy import Vectors, nearest_centers, squared_distances


def lcmd(points: Tensor, budget: int, *, centers: Tensor) -> Tensor:
    """Pick greedily the farthest point of the largest cluster.

    Every point belongs to its nearest center or pick, and the size of a cluster is the sum of its squared distances. So
    a single outlier does not precede a dense region, as it does for `k_center`, and a dense region is not picked from
    twice in a row, as by `top_k`. The name stands for "largest cluster maximum distance".

    ``c_t = argmax_c sum_{i in c} ||x_i - c||^2``, ``i_t = argmax_{i in c_t} ||x_i - c_t||``; ties go to the earlier
    center and the lower row.

    Args:
        points: Points of shape (N, D), floating; float16 and bfloat16 are computed in float32.
        budget: Number of points to pick, at least 1.
        centers: Points of shape (M, D), M >= 1, that are covered already, such as the labeled ones.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking, on the CPU; points that coincide with a covered one
        come last, by row.

    Raises:
        ValueError: If `budget` is no positive integer, or a tensor has another shape or dtype or overflowing values.

    Cost: no forward pass; N (M + budget) D multiplications, one pass over the points per pick.

    Example:
        >>> points = torch.tensor([[1.0], [2.0], [2.1], [2.2], [9.0], [-3.0]])
        >>> lcmd(points, budget=3, centers=torch.tensor([[0.0], [9.5]]))
        tensor([5, 3, 0])

    References:
        Holzmuller, Zaverkin, Kastner and Steinwart, "A Framework and Benchmark for Deep Batch Active Learning for
        Regression", 2023, section 4.3.

    """
    check_budget("lcmd", budget)
    points = checked_points("lcmd", "points", points)
    centers = checked_centers("lcmd", centers, points)
    mean = points.mean(dim=0)  # distances ignore a shift; rounding does not
    vectors = Vectors(points - mean)
    distances, owners = nearest_centers(vectors, Vectors(centers - mean))
    # On the CPU, where sums are reproducible; a cluster's sum adds its points in ascending order.
    distances, owners = distances.cpu().double(), owners.cpu()
    free = torch.ones(len(points), dtype=torch.bool)
    sizes = torch.zeros(len(centers) + min(budget, len(points)), dtype=torch.float64)
    picks: list[int] = []
    while len(picks) < min(budget, len(points)):
        sizes.zero_().index_add_(0, owners, distances)
        in_largest = free & (owners == sizes.argmax())
        in_largest = in_largest if bool(in_largest.any()) else free
        row = int(distances.masked_fill(~in_largest, -math.inf).argmax())
        free[row] = False
        distances_to_pick = squared_distances(vectors, vectors.take(torch.tensor([row])))[:, 0].cpu().double()
        closer = distances_to_pick < distances
        distances = torch.where(closer, distances_to_pick, distances)
        owners[closer] = len(centers) + len(picks)
        picks.append(row)
    return torch.tensor(picks, dtype=torch.long)
