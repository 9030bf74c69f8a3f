"""Uncertainty of class probabilities, one number per sample; a larger one means 'label first'.

Dense outputs (segmentation maps, volumes, sequences) are scored position by position and averaged, so that
samples of different sizes stay comparable.
"""

import torch
from torch import Tensor

_TOLERANCE = 1e-3


def entropy(probs: Tensor) -> Tensor:
    """Score samples by the Shannon entropy of their class probabilities.

    The entropy is the expected surprise of the label: the more evenly the model spreads its belief over
    *all* classes, the more an answer tells. With many classes its long tail counts; see `margin`.

    ``H(p) = -sum_c p_c log p_c`` with ``0 log 0 = 0``, in nats, averaged over the positions.

    Args:
        probs: Probabilities of shape (N, C, ...) with C >= 2 classes in dimension 1; any number of position
            dimensions may follow: (N, C, T), (N, C, H, W), (N, C, D, H, W).

    Returns:
        Scores of shape (N,) in [0, log C], in the dtype of `probs` (float32 for float16 and bfloat16).

    Raises:
        ValueError: If `probs` has another shape or dtype, a negative or non-finite value, or rows that do not
            sum to 1 within 1e-3 (within the rounding error of bfloat16 for bfloat16).

    Cost: no forward pass; time and temporary memory proportional to the number of elements of `probs`.

    Example:
        >>> entropy(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5]]))
        tensor([0.0000, 0.3251, 0.6931])

    References:
        Shannon, "A Mathematical Theory of Communication", 1948.
        Settles, "Active Learning Literature Survey", 2009, section 3.1.
    """
    probs = _validated("entropy", probs)
    return _mean_over_positions(torch.special.entr(probs).sum(dim=1))


def margin(probs: Tensor) -> Tensor:
    """Score samples by how close their two most likely classes are.

    A small gap means that the sample lies near the decision boundary between two classes. Unlike the
    entropy it ignores the tail of unlikely classes, which often makes it the better score for many classes.

    ``-(p_first - p_second)``, averaged over the positions.

    Args:
        probs: Probabilities of shape (N, C, ...) with C >= 2 classes in dimension 1; any number of position
            dimensions may follow: (N, C, T), (N, C, H, W), (N, C, D, H, W).

    Returns:
        Scores of shape (N,) in [-1, 0], in the dtype of `probs` (float32 for float16 and bfloat16).

    Raises:
        ValueError: If `probs` has another shape or dtype, a negative or non-finite value, or rows that do not
            sum to 1 within 1e-3 (within the rounding error of bfloat16 for bfloat16).

    Cost: no forward pass; time and temporary memory proportional to the number of elements of `probs`.

    Example:
        >>> margin(torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25], [0.5, 0.5, 0.0]]))
        tensor([-0.5000, -0.2500,  0.0000])

    References:
        Scheffer, Decomain and Wrobel, "Active Hidden Markov Models for Information Extraction", 2001.
    """
    probs = _validated("margin", probs)
    first, second = probs.topk(2, dim=1).values.unbind(dim=1)
    # Second minus first, not the negated difference, so that a tie gives 0.0 and not -0.0.
    return _mean_over_positions(second - first)


def least_confidence(probs: Tensor) -> Tensor:
    """Score samples by the probability that the predicted class is wrong.

    If the model is calibrated this is its own estimate of the error rate at the sample; it looks at the
    most likely class only.

    ``1 - max_c p_c``, averaged over the positions.

    Args:
        probs: Probabilities of shape (N, C, ...) with C >= 2 classes in dimension 1; any number of position
            dimensions may follow: (N, C, T), (N, C, H, W), (N, C, D, H, W).

    Returns:
        Scores of shape (N,) in [0, 1 - 1 / C], in the dtype of `probs` (float32 for float16 and bfloat16).

    Raises:
        ValueError: If `probs` has another shape or dtype, a negative or non-finite value, or rows that do not
            sum to 1 within 1e-3 (within the rounding error of bfloat16 for bfloat16).

    Cost: no forward pass; time and temporary memory proportional to the number of elements of `probs`.

    Example:
        >>> least_confidence(torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5]]))
        tensor([0.0000, 0.2500, 0.5000])

    References:
        Lewis and Gale, "A Sequential Algorithm for Training Text Classifiers", 1994.
    """
    probs = _validated("least_confidence", probs)
    return _mean_over_positions(1 - probs.amax(dim=1))


def _mean_over_positions(scores: Tensor) -> Tensor:
    """Average scores of shape (N, ...) to (N,)."""
    return scores.unsqueeze(-1).flatten(1).mean(dim=1)


def _validated(name: str, probs: Tensor) -> Tensor:
    """Return `probs` in at least float32, or raise a `ValueError` that names the function and the remedy."""
    shape = tuple(probs.shape)
    if not probs.is_floating_point():
        raise ValueError(
            f"`{name}(probs)`: expected a floating dtype, got {probs.dtype}; "
            "pass the softmax of the model's output, not labels"
        )
    if probs.ndim < 2 or 0 in shape[2:]:
        raise ValueError(
            f"`{name}(probs)`: expected shape (N, C, ...) with classes in dimension 1 and at least one position, "
            f"got {shape}; add the batch dimension or move the classes to dimension 1"
        )
    if shape[1] < 2:
        raise ValueError(
            f"`{name}(probs)`: expected at least 2 classes in dimension 1, got shape {shape}; one output has no "
            'class probabilities; for regression use NoiseStabilityAcquisition(output="identity")'
        )
    # A bfloat16 softmax rounds every probability by up to 0.4 %, so its rows legitimately miss 1 by more than 1e-3.
    tolerance = max(_TOLERANCE, torch.finfo(probs.dtype).eps)
    probs = probs if probs.dtype == torch.float64 else probs.float()
    sums = probs.sum(dim=1)
    # Written so that NaN fails; one `bool` means one device synchronization.
    if not bool(((sums - 1).abs() <= tolerance).all() & (probs >= 0).all()):
        raise ValueError(f"`{name}(probs)`: {_complaint(probs, sums, tolerance)}")
    return probs


def _complaint(probs: Tensor, sums: Tensor, tolerance: float) -> str:
    """Say what is wrong with rejected probabilities, naming the first sample at fault."""
    finite = probs.isfinite()
    if not bool(finite.all()):
        row = int((~finite).flatten(1).any(dim=1).nonzero()[0])
        return f"expected finite probabilities, got NaN or inf in row {row}; check the model's output for this sample"
    wrong = ((sums - 1).abs() > tolerance) | (probs < 0).any(dim=1)
    row = int(wrong.unsqueeze(-1).flatten(1).any(dim=1).nonzero()[0])
    low, high = (value.item() for value in sums[row].aminmax())
    return (
        f"expected probabilities that are at least 0 and sum to 1 over dimension 1 (within {tolerance:.1g}), got "
        f"minimum {probs[row].min().item():.4g} and sums from {low:.4g} to {high:.4g} in row {row}; "
        "apply softmax over dimension 1 first"
    )
