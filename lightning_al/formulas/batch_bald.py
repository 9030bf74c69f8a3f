"""BatchBALD: the batch of samples whose joint classes have the most information about the network's weights."""

import math

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget

# Probabilities of configurations that are held at a time, to bound memory.
_ELEMENTS = 2**24
# Configurations that `joint_entropy` sums over at most, to bound time.
_LARGEST_EXACT = 2**22


def batch_bald(log_probs_nkc: Tensor, budget: int, *, generator: torch.Generator, samples: int = 10_000) -> Tensor:
    """Pick greedily the sample that adds most to the information of the batch's classes about the weights.

    BALD adds up the information of each sample, and so counts information that two samples share twice; the joint
    entropy counts it once. A draw k of the weights must be the same network for every sample.

    ``I(y_1, ..., y_b; w) = H(y_1, ..., y_b) - sum_i E_k H(y_i | w_k)``, where ``P(y_1, ..., y_b) = 1/K sum_k prod_i
    p(y_i | w_k)``; at most log K, so that after a batch has reached it only noise decides.

    Args:
        log_probs_nkc: Log-probabilities of shape (N, K, C): samples, draws of the weights, classes. -inf is allowed.
        budget: Number of samples to pick, at least 1.
        generator: Source of the sampled configurations, on the CPU, seeded by the caller.
        samples: The joint entropy is exact while the picks have at most this many configurations of classes, C^b; then
            it is estimated from this many, drawn from their own distribution.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking, on the CPU; ties go to the lower row.

    Raises:
        ValueError: If `budget` or `samples` is no positive integer, or the tensor has another shape, dtype or rows that
            are no distributions.

    Cost: no forward pass; per pick up to N K C `samples` multiplications and as many logarithms over K; memory for 2^24
    numbers. In double precision: gains of later picks are small differences.

    Example:
        >>> sure, torn = [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
        >>> log_probs = torch.tensor([sure, torn, torn]).log()
        >>> batch_bald(log_probs, budget=2, generator=torch.Generator().manual_seed(0))
        tensor([1, 0])

    References:
        Kirsch, van Amersfoort and Gal, "BatchBALD: Efficient and Diverse Batch Acquisition for Deep Bayesian Active
        Learning", 2019, Algorithm 1, sections 3.2 and 3.3.

    """
    check_budget("batch_bald", budget)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"`batch_bald(samples={samples!r})`: expected an integer of at least 1.")
    probs = _checked_probs("batch_bald", log_probs_nkc)
    count, draws, classes = probs.shape
    conditional = torch.special.entr(probs).sum(dim=2).mean(dim=1)
    # P(configuration | k) of the picks (M, K): of all configurations, or of those that were drawn.
    likelihoods = torch.ones(1, draws, dtype=probs.dtype, device=probs.device)
    drawn = False
    free = torch.ones(count, dtype=torch.bool, device=probs.device)
    picks: list[int] = []
    while len(picks) < min(budget, count):
        gains = _joint_entropies(probs, likelihoods, drawn) - conditional
        row = int(_round_to_ties(gains).masked_fill(~free, -math.inf).argmax())
        free[row] = False
        picks.append(row)
        drawn = drawn or len(likelihoods) * classes > samples
        likelihoods = (
            _draw_configurations(probs[picks], samples, generator)
            if drawn
            else _extend_configurations(likelihoods, probs[row])
        )
    return torch.tensor(picks, dtype=torch.long)


def joint_entropy(log_probs_nkc: Tensor) -> Tensor:
    """Return the exact joint entropy of the classes of all samples.

    ``H(y_1, ..., y_N) = -sum_y P(y) log P(y)`` with ``P(y) = 1/K sum_k prod_i p(y_i | w_k)``, in nats.

    Args:
        log_probs_nkc: Log-probabilities of shape (N, K, C).

    Returns:
        A scalar, float64.

    Raises:
        ValueError: If there are more than 2^22 configurations, or the tensor has another shape or dtype.

    Cost: C^N K multiplications.

    Example:
        >>> torn = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()
        >>> joint_entropy(torch.stack([torn, torn]))  # one bit, not two
        tensor(0.6931, dtype=torch.float64)

    """
    probs = _checked_probs("joint_entropy", log_probs_nkc)
    count, draws, classes = probs.shape
    if count * math.log(classes) > math.log(_LARGEST_EXACT):
        raise ValueError(
            f"`joint_entropy(log_probs_nkc)`: {count} samples of {classes} classes have {classes}^{count} "
            f"configurations, more than {_LARGEST_EXACT}; pass fewer samples"
        )
    likelihoods = torch.ones(1, draws, dtype=probs.dtype, device=probs.device)
    for sample in probs:
        likelihoods = _extend_configurations(likelihoods, sample)
    entropy: Tensor = torch.special.entr(likelihoods.mean(dim=1)).sum()
    return entropy


def _joint_entropies(probs: Tensor, likelihoods: Tensor, drawn: bool) -> Tensor:
    """Return the joint entropy (N,) of the picks and each candidate."""
    _, draws, classes = probs.shape
    # A sum over all configurations; an average over drawn ones, each divided by its probability.
    weights = 1 / (len(likelihoods) * likelihoods.mean(dim=1)) if drawn else torch.ones_like(likelihoods[:, 0])
    size = max(1, _ELEMENTS // (len(likelihoods) * classes))
    entropies = []
    for part in probs.split(size):
        # (n * C, K) @ (K, M): the probability of every configuration of the picks and every class of the candidate
        joint = part.transpose(1, 2).reshape(-1, draws) @ likelihoods.T / draws
        entropies.append((torch.special.entr(joint) @ weights).reshape(-1, classes).sum(dim=1))
    return torch.cat(entropies)


def _extend_configurations(likelihoods: Tensor, sample: Tensor) -> Tensor:
    """Multiply configurations (M, K) by the classes (K, C) of one more sample: (M * C, K)."""
    return (likelihoods.unsqueeze(1) * sample.T.unsqueeze(0)).reshape(-1, likelihoods.shape[1])


def _draw_configurations(probs: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Draw configurations of the picks (b, K, C) from their mixture over k; return P(configuration | k) (M, K)."""
    count, draws, _ = probs.shape
    # Stratified over k, of which each has the same probability.
    source = (
        torch.arange(samples) * draws // samples if samples >= draws else torch.randperm(draws, generator=generator)
    )
    source = source[:samples].to(probs.device)
    likelihoods = torch.ones(len(source), draws, dtype=probs.dtype, device=probs.device)
    uniform = torch.rand(count, len(source), dtype=torch.float64, generator=generator).to(probs)
    for sample, number in zip(probs, uniform, strict=True):
        cdf = sample.cumsum(dim=1)[source]  # (M, C)
        chosen = (cdf / cdf[:, -1:] <= number.unsqueeze(1)).sum(dim=1).clamp_max(sample.shape[1] - 1)
        likelihoods *= sample[:, chosen].T
    return likelihoods


def _round_to_ties(gains: Tensor) -> Tensor:
    """Round gains, so that differences by the order of a sum count as ties."""
    return (gains * 1e9).round()


def _checked_probs(name: str, log_probs_nkc: Tensor) -> Tensor:
    """Return validated probabilities in float64."""
    shape = tuple(log_probs_nkc.shape)
    if log_probs_nkc.ndim != 3 or not log_probs_nkc.is_floating_point() or 0 in shape[1:] or shape[2] < 2:
        raise ValueError(
            f"`{name}(log_probs_nkc)`: expected a floating tensor of shape (N, K, C) with at least one draw and two "
            f"classes, got {log_probs_nkc.dtype} of shape {shape}; stack the passes in dimension 1"
        )
    probs = log_probs_nkc.detach().double().exp()
    sums = probs.sum(dim=2)
    wrong = ~((sums - 1).abs() <= max(1e-3, torch.finfo(log_probs_nkc.dtype).eps)).all(dim=1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"`{name}(log_probs_nkc)`: expected log-probabilities whose exponentials sum to 1 in dimension 2, got "
            f"sums of {sums[row].min().item():.4g} to {sums[row].max().item():.4g} in row {row}; use log_softmax"
        )
    return probs / sums.unsqueeze(2)
