"""BAIT: the points whose labels leave the least expected error of the last layer, over all points."""

import math

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget, checked_points, checked_weights

# The authors pick twice as many as asked for, then drop the least useful half.
_OVERSAMPLING = 2
_REMEDY = "p (1 - p) of a probability is never negative"


def bait(
    points: Tensor,
    budget: int,
    *,
    labeled: Tensor,
    weights: Tensor | None = None,
    labeled_weights: Tensor | None = None,
    ridge: float = 1.0,
) -> Tensor:
    """Pick the points that make the Fisher information of the last layer most like that of all points.

    The error of a model that is fitted to the picks, averaged over all points, is about ``trace(M^-1 F)``. Greedy picks
    lower it, twice as many as asked for; then those are dropped, one after another, whose removal raises it least:
    later picks can make an early one useless.

    ``F = mean_x w(x) x x'`` over the pool and the labeled part;
    ``M = ridge I + (sum_labeled w(x) x x' + b sum_picks w(x) x x') / (m + b)`` for m labeled points and a budget b. As
    in the authors' code a pick counts as much as b labeled points.

    Args:
        points: Features of the pool, of shape (N, D), floating.
        budget: Number of points to pick, b, at least 1.
        labeled: Features of the labeled samples, of shape (M, D); M may be 0.
        weights: w of the points, of shape (N,), non-negative; p (1 - p) of the largest class probability p makes it the
            binary form of BAIT, None, all ones, that of a linear regression.
        labeled_weights: w of the labeled samples, of shape (M,); None for ones.
        ridge: Factor of the identity, positive; the authors use 1.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking, on the CPU; ties go to the lower row.

    Raises:
        ValueError: If a number is out of range, or a tensor has another shape or dtype or overflowing values.

    Cost: no forward pass; N D^2 + 6 b N D multiplications in float64: each pick and each removal updates all gains and
        the inverse by rank one. Memory for two copies of the points and two D x D matrices.

    Example:
        >>> points = torch.tensor([[3.0, 0.0], [3.0, 0.1], [0.0, 2.0], [0.1, 0.1]])
        >>> bait(points, budget=2, labeled=torch.zeros(0, 2))
        tensor([1, 2])

    References:
        Ash, Goel, Krishnamurthy and Kakade, "Gone Fishing: Neural Active Learning with Fisher Embeddings", 2021.
        Huseljic, Hahn, Herde, Rauch and Sick, "Fast Fishing: Approximating BAIT for Efficient and Scalable Deep Active
        Image Classification", 2024, for the binary form.

    """
    check_budget("bait", budget)
    points = checked_points("bait", "points", points).double()
    labeled = checked_points("bait", "labeled", labeled.to(points))
    if labeled.shape[1] != points.shape[1] or not 0 < ridge < math.inf:
        raise ValueError(
            f"`bait(labeled, ridge={ridge!r})`: expected a positive finite ridge, and labeled points of shape "
            f"(M, {points.shape[1]}), got {tuple(labeled.shape)}"
        )
    weights = checked_weights("bait", "weights", weights, points, _REMEDY)
    labeled_weights = checked_weights("bait", "labeled_weights", labeled_weights, labeled, _REMEDY)
    total = len(labeled) + budget
    of_labeled = (labeled.T * labeled_weights) @ labeled
    fisher = ((points.T * weights) @ points + of_labeled) / (len(points) + len(labeled))
    start = ridge * torch.eye(points.shape[1]).to(points) + of_labeled / total
    gains = _Gains(points, weights * (budget / total), fisher, torch.linalg.inv(start))
    picks: list[int] = []
    free = torch.ones_like(weights, dtype=torch.bool)
    while len(picks) < min(_OVERSAMPLING * budget, len(points)):
        row = int(gains.of_adding().masked_fill(~free, -math.inf).argmax())
        free[row] = False
        picks.append(row)
        gains.update(row, 1)
    while len(picks) > budget:
        position = int(gains.of_removing(picks).argmin())
        gains.update(picks.pop(position), -1)
    return torch.tensor(picks, dtype=torch.long)


class _Gains:
    """How much trace(M^-1 F) falls if a row is added to M, or rises if it is removed.

    Args:
        points: (N, D), float64.
        weights: Factors (N,) with which rows are added.
        fisher: F (D, D).
        inverse: M^-1 (D, D).

    """

    def __init__(self, points: Tensor, weights: Tensor, fisher: Tensor, inverse: Tensor) -> None:
        self._points, self._weights, self._fisher, self._inverse = points, weights, fisher, inverse
        products = points @ inverse
        self._lengths = (products * points).sum(dim=1)  # x' M^-1 x
        self._errors = ((products @ fisher) * products).sum(dim=1)  # x' M^-1 F M^-1 x

    def of_adding(self) -> Tensor:
        """Return the fall (N,) by adding each row."""
        return self._weights * self._errors / (1 + self._weights * self._lengths)

    def of_removing(self, rows: list[int]) -> Tensor:
        """Return the rise (n,) by removing each of some rows that were added."""
        weights, errors, lengths = (part[rows] for part in (self._weights, self._errors, self._lengths))
        return weights * errors / (1 - weights * lengths)

    def update(self, row: int, sign: int) -> None:
        """Add a row to M, or remove it for the sign -1 (Sherman and Morrison's formula)."""
        weight = sign * self._weights[row]
        inverse_x = self._inverse @ self._points[row]
        error_x = self._fisher @ inverse_x
        step = weight / (1 + weight * (self._points[row] @ inverse_x))
        along, across = (self._points @ torch.stack([inverse_x, self._inverse @ error_x], dim=1)).unbind(1)
        self._errors += step * along * (step * (inverse_x @ error_x) * along - 2 * across)
        self._lengths -= step * along.square()
        self._inverse -= step * torch.outer(inverse_x, inverse_x)
