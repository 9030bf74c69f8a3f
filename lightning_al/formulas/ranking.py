"""Selectors by score: the rows of the pool that should be labeled next, from one number per sample.

Every selector returns `rows`, positions into the measurement tensor: exactly `min(budget, N)` distinct ones in
the order of picking, as a long tensor on the CPU, because a CPU index works on tensors of every device.
"""

import math

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget, check_scores


def top_k(scores: Tensor, budget: int, *, ties: Tensor | None = None) -> Tensor:
    """Pick the samples with the largest scores.

    The best choice when the budget is one sample. A batch has near-duplicates, since similar samples have
    similar scores: see `power` for a stochastic and `k_center` for a geometric remedy.

    Args:
        scores: Scores of shape (N,); larger means 'label first'.
        budget: Number of samples to pick, at least 1.
        ties: Second scores of shape (N,) that decide among equal scores, which are frequent for votes.

    Returns:
        Rows of shape (min(budget, N),), largest score first; exact ties are ordered by the lower row.

    Raises:
        ValueError: If `budget` is no positive integer, or scores have another shape or a NaN or infinite value.

    Cost: no forward pass; one sort, O(N log N) time and O(N) memory.

    Example:
        >>> top_k(torch.tensor([0.1, 0.7, 0.3, 0.7]), budget=3)
        tensor([1, 3, 2])
    """
    check_budget("top_k", budget)
    check_scores("top_k", scores)
    # `torch.topk` does not define the order of ties; a stable sort gives the same picks on every device.
    if ties is None:
        return scores.detach().sort(descending=True, stable=True).indices[:budget].cpu()
    check_scores("top_k", ties, "ties")
    if len(ties) != len(scores):
        raise ValueError(f"`top_k(ties)`: expected one per score, got {len(ties)} for {len(scores)} scores")
    order = ties.detach().sort(descending=True, stable=True).indices
    return order[scores.detach()[order].sort(descending=True, stable=True).indices[:budget]].cpu()


def power(scores: Tensor, budget: int, *, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Pick a random batch in which large scores are likely, without replacement.

    Scores change once the first samples of a batch are labeled, so their exact order is unreliable.
    Sampling in proportion to a power of the score separates near-duplicates at the cost of top-k.

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
    check_budget("power", budget)
    _check_temperature("power", temperature)
    check_scores("power", scores)
    if bool((scores < 0).any()):
        raise ValueError(
            f"`power(scores)`: expected non-negative scores, got a minimum of {scores.min().item():.4g}; their "
            "logarithm is taken: shift them first, for example 1 + margin"
        )
    return _noisy_top_k(scores.detach().cpu().double().log(), budget, temperature, generator)


def boltzmann(scores: Tensor, budget: int, *, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Pick a random batch in which large scores are likely, by their differences and without replacement.

    The counterpart of `power` for scores that may be negative, or whose differences mean more than their ratios; the
    temperature has the unit of the scores. Its paper calls it softmax acquisition.

    ``top-k of s_i + temperature * g_i, g_i ~ Gumbel(0, 1)``; the first pick is row i with probability
    ``softmax(s / temperature)_i``.

    Args:
        scores: Scores of shape (N,).
        budget: Number of samples to pick, at least 1.
        generator: Source of the noise, on the CPU, seeded by the caller.
        temperature: Scale of the noise, positive.

    Returns:
        Rows of shape (min(budget, N),), in the order of the noisy scores.

    Raises:
        ValueError: If `budget` is no positive integer, `temperature` is not positive and finite, or `scores` has
            another shape or a NaN or infinite value.

    Cost: no forward pass; two sorts on the CPU, O(N log N) time and O(N) memory.

    Example:
        >>> boltzmann(torch.tensor([-1e3, 0.0, 1e3]), budget=3, generator=torch.Generator().manual_seed(0))
        tensor([2, 1, 0])

    References:
        Kirsch et al., "Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning", 2023.
    """
    check_budget("boltzmann", budget)
    _check_temperature("boltzmann", temperature)
    check_scores("boltzmann", scores)
    return _noisy_top_k(scores.detach().cpu().double(), budget, temperature, generator)


def soft_rank(scores: Tensor, budget: int, *, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Pick a random batch in which high ranks are likely, without replacement.

    It uses the order of the scores only, so that it suits scores of any scale and sign.

    ``top-k of -log r_i + temperature * g_i, g_i ~ Gumbel(0, 1)``, where the largest score has rank r = 1; the first
    pick is row i with probability proportional to ``r_i^(-1 / temperature)``.

    Args:
        scores: Scores of shape (N,); exact ties are ranked by the lower row.
        budget: Number of samples to pick, at least 1.
        generator: Source of the noise, on the CPU, seeded by the caller.
        temperature: Scale of the noise, positive.

    Returns:
        Rows of shape (min(budget, N),), in the order of the noisy ranks.

    Raises:
        ValueError: If `budget` is no positive integer, `temperature` is not positive and finite, or `scores` has
            another shape or a NaN or infinite value.

    Cost: no forward pass; three sorts, O(N log N) time and O(N) memory.

    Example:
        >>> scores = torch.tensor([-3.0, -1.0, -2.0])
        >>> soft_rank(scores, budget=3, generator=torch.Generator().manual_seed(0), temperature=0.01)
        tensor([1, 2, 0])

    References:
        Kirsch et al., "Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning", 2023.
    """
    check_budget("soft_rank", budget)
    _check_temperature("soft_rank", temperature)
    check_scores("soft_rank", scores)
    order = top_k(scores, len(scores)) if len(scores) else torch.empty(0, dtype=torch.long)
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    return _noisy_top_k(-ranks.log(), budget, temperature, generator)


def _check_temperature(name: str, temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"`{name}(temperature={temperature!r})`: expected a positive finite number, got {temperature!r}; "
            "for no noise use `top_k`"
        )


def _noisy_top_k(keys: Tensor, budget: int, temperature: float, generator: torch.Generator) -> Tensor:
    """Pick the largest keys (N,) after Gumbel noise is added to them."""
    # Inverse CDF of `rand`, not `exponential_`, whose stream differs between builds of PyTorch. A draw of exactly 0
    # would be infinite noise, so it becomes half the grid's step.
    uniform = torch.rand(keys.shape, dtype=torch.float64, generator=generator).clamp_min_(2.0**-54)
    gumbel = -torch.log(-torch.log1p(-uniform))
    # Stable on top of the order of the noise: ties among keys of -inf are broken at random.
    order = gumbel.argsort(descending=True, stable=True)
    noisy = (keys + temperature * gumbel)[order]
    return order[noisy.sort(descending=True, stable=True).indices[:budget]]
