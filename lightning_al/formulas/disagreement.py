"""Uncertainty and disagreement of K predictions of the same samples; a larger score means 'label first'.

The passes are those of Monte-Carlo dropout or the members of a committee. They are read one at a time, once, and
without their gradients: no function holds more than one of them beside its running sums. These are kept in double
precision (single on MPS, which has no other), because a sure model's disagreement lies below the rounding of float32.

Dense outputs (segmentation maps, volumes, sequences) are scored position by position and averaged.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_al.formulas.checks import checked_outputs, checked_probs, mean_over_positions


def expected_entropy(passes: Iterable[Tensor]) -> Tensor:
    """Score samples by the mean entropy of their predictions, the "mean entropy" of MC dropout.

    The part of the uncertainty that remains however well the weights are known: noise in the labels and overlap of
    the classes. The other part is `bald`.

    ``1/K sum_k H(p_k)`` in nats, averaged over the positions.

    Args:
        passes: K >= 1 tensors of probabilities (N, C, ...), also as one tensor (K, N, C, ...) or a generator.

    Returns:
        Scores of shape (N,) in [0, log C], in the dtype of the passes (float32 for float16 and bfloat16).

    Raises:
        ValueError: If there is no pass, shapes differ or a pass holds anything but probabilities; see `entropy`.

    Cost: no forward pass of its own; time proportional to K, memory to one pass.

    Example:
        >>> expected_entropy([torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])])
        tensor([0.0000, 0.6931])

    References:
        Smith and Gal, "Understanding Measures of Uncertainty for Adversarial Example Detection", 2018.
    """
    entropy = _Mean()
    dtype = _read("expected_entropy", passes, lambda probs: entropy.add(_entropies(probs)))
    return entropy.value.to(dtype)


def predictive_entropy(passes: Iterable[Tensor]) -> Tensor:
    """Score samples by the entropy of their mean prediction, the "consensus entropy" of a committee.

    All of the uncertainty about the label: it is large where the passes are unsure and where they contradict each
    other.

    ``H(1/K sum_k p_k)`` in nats, averaged over the positions.

    Args:
        passes: K >= 1 tensors of probabilities (N, C, ...), also as one tensor (K, N, C, ...) or a generator.

    Returns:
        Scores of shape (N,) in [0, log C], in the dtype of the passes (float32 for float16 and bfloat16).

    Raises:
        ValueError: If there is no pass, shapes differ or a pass holds anything but probabilities; see `entropy`.

    Cost: no forward pass of its own; time proportional to K, memory to one pass in double precision.

    Example:
        >>> predictive_entropy([torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])])
        tensor([0.6931, 0.6931])

    References:
        Gal, Islam and Ghahramani, "Deep Bayesian Active Learning with Image Data", 2017.
    """
    mean = _Mean()
    dtype = _read("predictive_entropy", passes, mean.add)
    return _entropies(mean.value).to(dtype)


def bald(passes: Iterable[Tensor]) -> Tensor:
    """Score samples by the mutual information between their label and the weights.

    Large where every pass is confident and the predictions differ, so that a label decides which one is right.
    It is the mean Kullback-Leibler divergence of the predictions from their mean, the name it has for committees.

    ``H(1/K sum_k p_k) - 1/K sum_k H(p_k) = 1/K sum_k KL(p_k || 1/K sum_j p_j)`` in nats, averaged over the positions.

    Args:
        passes: K >= 2 tensors of probabilities (N, C, ...), also as one tensor (K, N, C, ...) or a generator.

    Returns:
        Scores of shape (N,) in [0, min(log C, log K)] and at most `predictive_entropy`, in the dtype of the passes
        (float32 for float16 and bfloat16); exactly 0 where all passes agree.

    Raises:
        ValueError: If there are fewer than 2 passes, shapes differ or a pass holds anything but probabilities; see
            `entropy`.

    Cost: no forward pass of its own; time proportional to K, memory to one pass in double precision.

    Example:
        >>> bald([torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])])
        tensor([0.6931, 0.0000])

    References:
        Houlsby, Huszár, Ghahramani and Lengyel, "Bayesian Active Learning for Classification and Preference
        Learning", 2011.
        McCallum and Nigam, "Employing EM and Pool-Based Active Learning for Text Classification", 1998, for the
        divergence.
    """
    mean, entropy = _Mean(), _Mean()

    def add(probs: Tensor) -> None:
        mean.add(probs)
        entropy.add(_entropies(probs))

    dtype = _read("bald", passes, add, least=2)
    return (_entropies(mean.value) - entropy.value).clamp_min(0).to(dtype)


def variation_ratio(passes: Iterable[Tensor]) -> Tensor:
    """Score samples by the share of passes that do not vote for the most frequent class.

    A vote is the most likely class of a pass, whatever its probability. The score takes few values, so many samples
    tie: let `top_k(..., ties=predictive_entropy(passes))` decide among them.

    ``1 - max_c V_c / K`` with V_c votes for class c, averaged over the positions.

    Args:
        passes: K >= 2 tensors of probabilities (N, C, ...), also as one tensor (K, N, C, ...) or a generator. A pass
            with several most likely classes votes for the lowest.

    Returns:
        Scores of shape (N,) in [0, 1 - 1 / min(C, K)], in the dtype of the passes (float32 for float16 and bfloat16).

    Raises:
        ValueError: If there are fewer than 2 passes, shapes differ or a pass holds anything but probabilities; see
            `entropy`.

    Cost: no forward pass of its own; time proportional to K, memory to one pass.

    Example:
        >>> variation_ratio([torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([[0.8, 0.2], [0.4, 0.6]])])
        tensor([0.0000, 0.5000])

    References:
        Freeman, "Elementary Applied Statistics", 1965.
        Gal, Islam and Ghahramani, "Deep Bayesian Active Learning with Image Data", 2017.
    """
    votes = _Votes()
    dtype = _read("variation_ratio", passes, votes.add, least=2)
    # Whole numbers until the last division, so that equal counts give equal scores.
    dissent = (votes.passes - votes.counts.amax(dim=1)).to(_widest(votes.counts))
    return (mean_over_positions(dissent) / votes.passes).to(dtype)


def vote_entropy(passes: Iterable[Tensor]) -> Tensor:
    """Score samples by the entropy of the votes of the passes.

    Unlike `variation_ratio` it distinguishes a minority that agrees on one class from a split one. The score takes few
    values, so many samples tie: let `top_k(..., ties=predictive_entropy(passes))` decide among them.

    ``-sum_c V_c / K log(V_c / K)`` in nats with V_c votes for class c, averaged over the positions; the constant by
    which papers divide it does not change the order.

    Args:
        passes: K >= 2 tensors of probabilities (N, C, ...), also as one tensor (K, N, C, ...) or a generator. A pass
            with several most likely classes votes for the lowest.

    Returns:
        Scores of shape (N,) in [0, log min(C, K)], in the dtype of the passes (float32 for float16 and bfloat16).

    Raises:
        ValueError: If there are fewer than 2 passes, shapes differ or a pass holds anything but probabilities; see
            `entropy`.

    Cost: no forward pass of its own; time proportional to K, memory to one pass in double precision.

    Example:
        >>> vote_entropy([torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([[0.8, 0.2], [0.4, 0.6]])])
        tensor([0.0000, 0.6931])

    References:
        Dagan and Engelson, "Committee-Based Sampling for Training Probabilistic Classifiers", 1995.
    """
    votes = _Votes()
    dtype = _read("vote_entropy", passes, votes.add, least=2)
    terms = torch.special.entr(votes.counts.to(_widest(votes.counts)) / votes.passes)
    # On this grid a sum is exact in any order, so that equal counts tie whichever classes they went to.
    grid = 16 * torch.finfo(terms.dtype).eps
    return mean_over_positions((terms / grid).round_().sum(dim=1) * grid).to(dtype)


def predictive_variance(passes: Iterable[Tensor]) -> Tensor:
    """Score samples by the variance of their outputs over the passes, for regression.

    Where the passes differ, the data do not determine the output yet. Outputs of large scale weigh more:
    standardize the targets if they differ in unit.

    ``1/K sum_k ||f_k - 1/K sum_j f_j||^2``: the trace of the covariance over the outputs, with the divisor K of the
    population, averaged over the positions.

    Args:
        passes: K >= 2 tensors of raw outputs (N, C, ...), also as one tensor (K, N, C, ...) or a generator.

    Returns:
        Scores of shape (N,), at least 0, in the squared unit of the outputs and the dtype of the passes (float32 for
        float16 and bfloat16); exactly 0 where all passes agree.

    Raises:
        ValueError: If there are fewer than 2 passes, shapes differ or a pass has another shape or dtype, or a NaN or
            infinite value.

    Cost: no forward pass of its own; time proportional to K, memory to one pass in double precision.

    Example:
        >>> predictive_variance([torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([[1.0, 2.0], [2.0, 2.0]])])
        tensor([1., 0.])

    References:
        Gal and Ghahramani, "Dropout as a Bayesian Approximation", 2016.
        Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products", 1962, for the update.
    """
    mean, variance = _Mean(), _Mean()

    def add(outputs: Tensor) -> None:
        before = outputs - mean.value
        mean.add(outputs)
        variance.add(mean_over_positions((before * (outputs - mean.value)).sum(dim=1)))

    dtype = _read("predictive_variance", passes, add, check=checked_outputs, least=2)
    return variance.value.to(dtype)


class _Mean:
    """Running mean, which equal values do not change in any digit."""

    def __init__(self) -> None:
        self.count = 0
        self.value = torch.zeros(())

    def add(self, values: Tensor) -> None:
        self.count += 1
        # The clone is updated in place later; the tensor itself may be the caller's.
        self.value = values.clone() if self.count == 1 else self.value.lerp_(values, 1 / self.count)


class _Votes:
    """Number of passes in which each class is the most likely one."""

    def __init__(self) -> None:
        self.passes = 0
        self.counts = torch.zeros((), dtype=torch.int32)

    def add(self, probs: Tensor) -> None:
        classes = torch.arange(probs.shape[1], device=probs.device).view(-1, *[1] * (probs.ndim - 2))
        self.passes += 1
        # argmax takes the lowest class at a tie, on every device; a comparison is deterministic, unlike scatter_add_.
        ballots = classes == probs.argmax(dim=1, keepdim=True)
        self.counts = ballots.int() if self.passes == 1 else self.counts.add_(ballots)


def _read(
    name: str,
    passes: Iterable[Tensor],
    add: Callable[[Tensor], None],
    *,
    check: Callable[[str, str, Tensor], Tensor] = checked_probs,
    least: int = 1,
) -> torch.dtype:
    """Call `add` with each validated pass in the widest dtype; return the dtype of the result."""
    count, shape, dtype = 0, torch.Size(), torch.float32
    for values in passes:
        values = check(name, f"passes[{count}]", values.detach())
        shape = shape if count else values.shape
        if values.shape != shape:
            raise ValueError(
                f"`{name}(passes[{count}])`: expected the shape of the first pass, {tuple(shape)}, got "
                f"{tuple(values.shape)}; predict the same samples in every pass"
            )
        dtype = torch.promote_types(dtype, values.dtype)
        add(values.to(_widest(values)))
        count += 1
        del values  # the loop would keep it until the next pass is computed
    if count < least:
        remedy = "a generator can be read only once" if count == 0 else "a single one has nothing to disagree with"
        raise ValueError(f"`{name}(passes)`: expected at least {least} of them, got {count}; {remedy}")
    return dtype


def _widest(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64


def _entropies(probs: Tensor) -> Tensor:
    return mean_over_positions(torch.special.entr(probs).sum(dim=1))
