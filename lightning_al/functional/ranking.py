"""Selectors by score: the rows of the pool that should be labeled next, from one number per sample.

Every selector returns `rows`, positions into the measurement tensor: exactly `min(budget, N)` distinct ones in
the order of picking, as a long tensor on the CPU, because a CPU index works on tensors of every device.
"""

import math

import torch
from torch import Tensor

from lightning_al.functional.checks import check_budget, check_scores


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
    check_budget("top_k", budget)
    check_scores("top_k", scores)
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
    check_budget("power", budget)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"`power(temperature={temperature!r})`: expected a positive finite number, got {temperature!r}; "
            "for no noise use `top_k`"
        )
    check_scores("power", scores)
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
