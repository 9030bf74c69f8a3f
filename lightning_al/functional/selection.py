"""Selectors: from measurements of the pool to the rows that should be labeled next.

Every selector returns `rows`, positions into the measurement tensor: exactly `min(budget, N)` distinct ones in
the order of picking, as a long tensor on the CPU, because a CPU index works on tensors of every device.
"""

import math

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 2**24
# Rounding leaves exact duplicates at up to 3.3 eps * (|x|^2 + |c|^2) (measured up to D = 10,000), never at 0.
_ROUNDING_EPS = 8


def top_k(scores: Tensor, budget: int) -> Tensor:
    """Pick the samples with the largest scores.

    The best choice when the budget is one sample. In a batch it repeats itself, since similar samples have
    similar scores: see `power` for a stochastic and `k_center` for a geometric remedy.

    Args:
        scores: Scores of shape (N,); larger means 'label first'.
        budget: Number of samples to pick, at least 1.

    Returns:
        Rows of shape (min(budget, N),), largest score first; exact ties are ordered by the lower row.

    Raises:
        ValueError: If `budget` is no positive integer, or `scores` has another shape or a NaN or infinite value.

    Cost: no forward pass; one sort, O(N log N) time and O(N) memory.

    Example:
        >>> top_k(torch.tensor([0.1, 0.7, 0.3, 0.7]), budget=3)
        tensor([1, 3, 2])
    """
    _check_budget("top_k", budget)
    _check_scores("top_k", scores)
    # `torch.topk` leaves the order of ties open; only a stable sort gives the same picks on every device.
    return scores.detach().sort(descending=True, stable=True).indices[:budget].cpu()


def power(scores: Tensor, budget: int, *, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Pick a random batch in which large scores are likely, without replacement.

    Scores change once the first samples of a batch are labeled, so their exact order is not to be trusted.
    Sampling in proportion to a power of the score breaks up near-duplicates at the price of top-k.

    ``top-k of log s_i + temperature * g_i, g_i ~ Gumbel(0, 1)``; the first pick is row i with probability
    ``s_i^beta / sum_j s_j^beta`` where ``beta = 1 / temperature``.

    Args:
        scores: Scores of shape (N,), non-negative. Rows with score 0 are picked after all others, in random order.
        budget: Number of samples to pick, at least 1.
        generator: Source of the noise, on the CPU, seeded by the caller.
        temperature: Scale of the noise, positive; the default 1 is the paper's beta = 1. Small values approach
            `top_k`, large ones a uniform draw.

    Returns:
        Rows of shape (min(budget, N),), in the order of the noisy log-scores.

    Raises:
        ValueError: If `budget` is no positive integer, `temperature` is not positive and finite, or `scores`
            has another shape or a negative, NaN or infinite value.

    Cost: no forward pass; two sorts on the CPU, O(N log N) time and O(N) memory.

    Example:
        >>> power(torch.tensor([0.0, 1.0, 1e6]), budget=3, generator=torch.Generator().manual_seed(0))
        tensor([2, 1, 0])

    References:
        Kirsch, Farquhar, Atighehchian, Jesson, Branchaud-Charron and Gal, "Stochastic Batch Acquisition: A Simple
        Baseline for Deep Active Learning", 2023.
    """
    _check_budget("power", budget)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"`power(temperature={temperature!r})`: expected a positive finite number, got {temperature!r}; "
            "for no noise use `top_k`"
        )
    _check_scores("power", scores)
    if bool((scores < 0).any()):
        raise ValueError(
            f"`power(scores)`: expected non-negative scores, got a minimum of {scores.min().item():.4g}; their "
            "logarithm is taken: shift them first, for example 1 + margin"
        )
    logs = scores.detach().cpu().double().log()
    # Inverse CDF of `rand`, not `exponential_`, whose stream differs between builds of PyTorch. A draw of exactly 0
    # would be infinite noise, so it becomes half the grid's step.
    uniform = torch.rand(logs.shape, dtype=torch.float64, generator=generator).clamp_min_(2.0**-54)
    gumbel = -torch.log(-torch.log1p(-uniform))
    # Stable on top of the order of the noise: ties among the -inf of zero scores are broken at random.
    order = gumbel.argsort(descending=True, stable=True)
    keys = (logs + temperature * gumbel)[order]
    return order[keys.sort(descending=True, stable=True).indices[:budget]]


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
        Points coincide if rounding hides their distance: in float32, below 0.14 % of how far they are from the mean.

    Raises:
        ValueError: If `budget` is no positive integer, or a tensor has another shape or dtype or overflowing values.

    Cost: no forward pass; one matrix-vector product (N D) per pick and one matrix product (N M D) at the start, which
    follows `torch.set_float32_matmul_precision`; memory for two copies of the points and blocks of 2^24 distances.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [9.0, 0.0], [8.0, 1.0], [0.0, 5.0]])
        >>> k_center(points, budget=3, centers=torch.zeros(1, 2))
        tensor([1, 3, 2])

    References:
        Gonzalez, "Clustering to Minimize the Maximum Intercluster Distance", 1985.
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", 2018.
    """
    _check_budget("k_center", budget)
    points = _checked_points("k_center", "points", points)
    centers = _checked_centers("k_center", centers, points)
    points, norms, mean = _shifted(points)
    nearest = _nearest(points, norms, centers - mean)
    rows = torch.empty(min(budget, len(points)), dtype=torch.long, device=points.device)
    for step in range(len(rows)):
        # The picked row stays a tensor of shape (1,), so that a GPU never waits for the CPU.
        row = nearest.argmax(dim=0, keepdim=True)
        rows[step : step + 1] = row
        # -inf survives every later minimum: a picked row cannot win again, even among zero distances.
        nearest = torch.minimum(nearest, _to_row(points, norms, row)).index_fill_(0, row, -math.inf)
    return rows.cpu()


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

    Cost: that of `k_center`, and per pick one cumulative sum of N numbers on the CPU.

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
    _check_budget("kmeans_plus_plus", budget)
    points = _checked_points("kmeans_plus_plus", "points", points)
    shifted, norms, mean = _shifted(points)
    if centers is None:
        weights = points.square().sum(dim=1)
    else:
        weights = _nearest(shifted, norms, _checked_centers("kmeans_plus_plus", centers, points) - mean)
    rows: list[int] = []
    while len(rows) < min(budget, len(points)):
        # Not `torch.multinomial`: it takes at most 2^24 rows.
        cdf = weights.cpu().double().cumsum(dim=0)
        if cdf[-1] <= 0:
            rows += _uniform_rest(rows, min(budget, len(points)), len(points), generator)
            break
        draw = cdf[-1] * torch.rand((), dtype=torch.float64, generator=generator)
        rows.append(int(torch.searchsorted(cdf, draw, right=True)))
        row = torch.tensor(rows[-1:], device=points.device)
        distances = _to_row(shifted, norms, row)
        # The origin must not stay on as a ghost center, or points near it would hardly ever be picked.
        weights = distances if centers is None and len(rows) == 1 else torch.minimum(weights, distances)
        weights.index_fill_(0, row, 0)
    return torch.tensor(rows, dtype=torch.long)


def _uniform_rest(rows: list[int], count: int, total: int, generator: torch.Generator) -> list[int]:
    """Draw uniformly, from the rows not picked yet, what is missing to `count`."""
    left = sorted(set(range(total)) - set(rows))
    return [left[i] for i in torch.randperm(len(left), generator=generator)[: count - len(rows)].tolist()]


def _shifted(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the points with their mean removed (N, D), their squared norms (N,) and the mean (D,).

    Distances ignore a shift, but ``|x|^2 - 2 x.c + |c|^2`` is off by about ``eps (|x|^2 + |c|^2)``: far from the origin
    a small spread drowns. About the mean of the points the error is a few ``eps (spread^2 + distance^2)``, wherever the
    centers lie; the mean of the centers would not shift at all if the origin is the only center.
    """
    mean = points.mean(dim=0)
    points = points - mean
    return points, points.square().sum(dim=1), mean


def _nearest(points: Tensor, norms: Tensor, centers: Tensor) -> Tensor:
    """Return squared distances (N,) from each point to the nearest center, block by block of centers."""
    nearest = torch.full_like(norms, math.inf)
    for block in torch.split(centers, max(1, _BLOCK_ELEMENTS // max(1, len(points)))):
        distances = _squared_distances(points, norms.unsqueeze(1), block.T, block.square().sum(dim=1))
        nearest = torch.minimum(nearest, distances.amin(dim=1))
    return nearest


def _to_row(points: Tensor, norms: Tensor, row: Tensor) -> Tensor:
    """Return squared distances (N,) from each point to the point in `row` (1,)."""
    return _squared_distances(points, norms, points.index_select(0, row).squeeze(0), norms.index_select(0, row))


def _squared_distances(points: Tensor, norms: Tensor, centers: Tensor, center_norms: Tensor) -> Tensor:
    """Expand ``|x - c|^2``; what cannot be told from rounding is 0, so that duplicates are exact duplicates."""
    # Autocast would run the product in bfloat16 and rank rounding errors.
    with torch.autocast(points.device.type, enabled=False):
        products = points @ centers
    sums = norms + center_norms
    distances = sums - 2 * products
    return distances.masked_fill_(distances <= _ROUNDING_EPS * torch.finfo(sums.dtype).eps * sums, 0)


def _check_budget(name: str, budget: int) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(
            f"`{name}(budget={budget!r})`: expected an integer of at least 1, got {budget!r}; "
            "turn a share of the dataset into a number of samples first"
        )


def _check_scores(name: str, scores: Tensor) -> None:
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


def _checked_centers(name: str, centers: Tensor, points: Tensor) -> Tensor:
    """Return the validated centers in the dtype and on the device of the points."""
    if centers.ndim != 2 or len(centers) == 0 or centers.shape[1] != points.shape[1]:
        raise ValueError(
            f"`{name}(centers)`: expected shape (M, {points.shape[1]}) with M >= 1, got {tuple(centers.shape)}; "
            f"without covered points pass the origin, `torch.zeros(1, {points.shape[1]})`"
        )
    return _checked_points(name, "centers", centers.to(points))


def _checked_points(name: str, argument: str, points: Tensor) -> Tensor:
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
