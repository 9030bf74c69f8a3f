"""Uncertainty of class probabilities, one number per sample; a larger one means 'label first'.

Dense outputs (segmentation maps, volumes, sequences) are scored position by position and averaged, so that
samples of different sizes stay comparable.
"""

import torch
from torch import Tensor

from lightning_al.formulas.checks import checked_probs, mean_over_positions


def entropy(probs: Tensor) -> Tensor:
    """Score samples by the Shannon entropy of their class probabilities.

    The entropy is the expected information of the label: it is larger the more evenly the model distributes its
    probability over *all* classes. With many classes its long tail counts; see `margin`.

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
    probs = checked_probs("entropy", "probs", probs)
    return mean_over_positions(torch.special.entr(probs).sum(dim=1))


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
    probs = checked_probs("margin", "probs", probs)
    first, second = probs.topk(2, dim=1).values.unbind(dim=1)
    # Second minus first, not the negated difference, so that a tie gives 0.0 and not -0.0.
    return mean_over_positions(second - first)


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
    probs = checked_probs("least_confidence", "probs", probs)
    return mean_over_positions(1 - probs.amax(dim=1))
