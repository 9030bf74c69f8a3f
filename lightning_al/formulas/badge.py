"""BADGE: a diverse batch of samples whose loss gradients are large."""

from functools import partial

import torch
from torch import Tensor

from lightning_al.formulas.checks import check_budget, checked_points
from lightning_al.formulas.greedy import OuterProducts, d2_sampling_block, greedy_select


def badge(residuals: Tensor, features: Tensor, budget: int, *, generator: torch.Generator) -> Tensor:
    """Pick samples by k-means++ over the gradients of their losses in the last layer.

    A gradient is long if the model is unsure, and its direction is that of the update by the sample, so picks that lie
    far apart are both uncertain and different. The gradient of a linear layer is an outer product, whose inner products
    are those of its factors: neither it nor a distance matrix is ever formed.

    ``g_i = (p_i - e_{argmax p_i}) h_i^T``; ``P(i_1 = i) ~ ||g_i||^2``, then ``P(i_t = i) ~ min_{c in picks}
    ||g_i - g_c||^2``.

    Args:
        residuals: Gradients with respect to the logits, of shape (N, C), floating: probabilities minus the one-hot
            vector of the most likely class, as `hypothetical_residuals` gives them.
        features: Inputs of the last layer, of shape (N, D), floating; append a column of ones for its bias.
        budget: Number of samples to pick, at least 1.
        generator: Source of the draws, on the CPU, seeded by the caller.

    Returns:
        Rows of shape (min(budget, N),), in the order of picking, on the CPU; drawn uniformly once all gradients left
        coincide with a picked one.

    Raises:
        ValueError: If `budget` is no positive integer, or a tensor has another shape or dtype or overflowing values.

    Cost: no forward pass; matrix products of N budget (C + D) multiplications; memory for 2^20 distances.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> residuals = hypothetical_residuals(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]]))
        >>> badge(residuals, features, budget=2, generator=torch.Generator().manual_seed(0))
        tensor([2, 0])

    References:
        Ash, Zhang, Krishnamurthy, Langford and Agarwal, "Deep Batch Active Learning by Diverse, Uncertain Gradient
        Lower Bounds", 2020, Algorithm 1.

    """
    check_budget("badge", budget)
    residuals = checked_points("badge", "residuals", residuals)
    features = checked_points("badge", "features", checked_points("badge", "features", features).to(residuals))
    if len(residuals) != len(features):
        raise ValueError(
            f"`badge(residuals, features)`: expected one row of each per sample, got {len(residuals)} and "
            f"{len(features)}; measure both in the same forward pass"
        )
    gradients, choose = OuterProducts(residuals, features), partial(d2_sampling_block, generator=generator)
    # the factors may fit while their product does not, of which a distance has four
    if not bool((gradients.lengths <= torch.finfo(residuals.dtype).max / 16).all()):
        row = int(gradients.lengths.argmax())
        raise ValueError(
            f"`badge(residuals, features)`: expected finite values whose products fit {residuals.dtype}, got a squared "
            f"norm of {gradients.lengths[row].item()} in row {row}; scale the features down"
        )
    first = choose(gradients, gradients.lengths, 1)
    return greedy_select(gradients, gradients.take(first), first, min(budget, len(residuals)), choose)


def hypothetical_residuals(probs: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy with respect to the logits, with the most likely class as the label.

    ``p_i - e_{argmax p_i}``, the lower class at a tie.

    Args:
        probs: Probabilities of shape (N, C).

    Returns:
        Gradients of shape (N, C).

    Example:
        >>> hypothetical_residuals(torch.tensor([[0.75, 0.25]]))
        tensor([[-0.2500,  0.2500]])

    """
    label = probs == probs.amax(dim=1, keepdim=True)
    return probs - (label & (label.cumsum(dim=1) == 1)).to(probs.dtype)


def hypothetical_label_residuals(probs: Tensor) -> Tensor:
    """Return the gradient of the binary cross-entropies with respect to the logits, with the likelier value as label.

    ``p_l - [p_l >= 1/2]``

    Args:
        probs: Probabilities of labels that are each present or absent, of shape (N, L).

    Returns:
        Gradients of shape (N, L).

    Example:
        >>> hypothetical_label_residuals(torch.tensor([[0.75, 0.25]]))
        tensor([[-0.2500,  0.2500]])

    """
    return probs - (probs >= 0.5).to(probs.dtype)
