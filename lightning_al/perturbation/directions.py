r"""Directions in the space of outputs: one backward pass along each gives the norm of a Jacobian.

The squared Frobenius norm of a Jacobian $J$ is the sum of $\|J^T q_j\|^2$ over any orthonormal basis $q_j$ of the
outputs. A basis that follows the eigenvectors of the softmax Jacobian puts nearly all of the sum into its first
vectors. All others take one pass: along $\sum_j e_j q_j$ with random signs $e_j$ the expectation is their sum.
"""

from typing import Literal

import torch
from torch import Tensor

from lightning_al.model.output import Output

Directions = int | Literal["all"]
Response = Output | Literal["probabilities"]
"""The function of a model's outputs on which distances are measured; `"probabilities"`: the model ends in them."""

# Classes of one eigendecomposition, the most probable ones; for all others unit vectors serve as well.
MOST_CLASSES = 32


def output_directions(outputs: Tensor, response: Response, directions: Directions, generic: Tensor) -> Tensor:
    r"""Return vectors $u_j$ such that $\|J\|_F^2 = \sum_j \|J_z^T u_j\|^2$, in expectation over the random signs.

    $J_z$ is the Jacobian of the model's outputs, $J = S J_z$ that of the function that is measured, $u_j = S q_j$.

    Args:
        outputs: (B, C) outputs of the model.
        response: The function that is measured: `"softmax"` or `"sigmoid"` of the outputs, or the outputs themselves.
        directions: How many vectors, at least 1: the most important ones separately, then one for all others with
            random signs; `"all"` is exact.
        generic: (C,) random normal numbers. A vector's sign is that of its product with them, so that it does not
            depend on the batch, nor on the sign that an eigendecomposition happens to return.

    Returns:
        (D, B, C) vectors in the precision of `outputs`; D is at most `directions`, and at most C.

    Example:
        >>> output_directions(torch.zeros(1, 2), "softmax", "all", torch.ones(2)).abs()
        tensor([[[0.3536, 0.3536]]])

    """
    values, generic = outputs.detach().double(), generic.to(outputs.device, torch.float64)
    if response == "sigmoid":
        vectors = _unit_vectors(values.sigmoid() * (-values).sigmoid(), directions, generic)
    elif response == "identity":
        vectors = _unit_vectors(torch.ones_like(values), directions, generic)
    else:
        probs = values.softmax(1) if response == "softmax" else values
        if directions == "all" and probs.shape[1] > MOST_CLASSES:
            rows = torch.eye(probs.shape[1], dtype=probs.dtype, device=probs.device).expand(len(probs), -1, -1)
        else:
            rows = _eigenvectors(probs, directions, generic, with_null=response == "probabilities")
        vectors = (apply_softmax_jacobian(probs, rows) if response == "softmax" else rows).transpose(0, 1)
    return vectors.to(outputs.dtype)


def _unit_vectors(weights: Tensor, directions: Directions, generic: Tensor) -> Tensor:
    """Return (D, B, C) unit vectors times the weights (B, C) of their outputs, the largest first."""
    classes = weights.shape[1]
    count = classes if directions == "all" else min(directions, classes)
    rank = weights.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    separate = [weights * (rank == position) for position in range(count - 1)]
    return torch.stack([*separate, weights * _signs(generic) * (rank >= count - 1)])


def _eigenvectors(probs: Tensor, directions: Directions, generic: Tensor, with_null: bool) -> Tensor:
    """Return (B, D, C) eigenvectors of the softmax Jacobian, by eigenvalue; the last row is the sum of the others.

    Of more than 32 classes only the most probable ones are decomposed; the others keep their unit vectors.
    """
    classes = probs.shape[1]
    size = min(classes, MOST_CLASSES)
    top = probs.topk(size, dim=1).indices  # (B, M)
    vectors = torch.linalg.eigh(_top_block(probs, top)).eigenvectors.flip(2)  # (B, M, M), columns, largest first
    if size == classes and not with_null:
        vectors = vectors[:, :, : max(size - 1, 1)]  # the last one is constant, and probabilities sum to one
    unit_rows = torch.where(probs.new_zeros(len(probs), classes).scatter(1, top, 1.0) > 0, 0.0, _signs(generic))
    count = vectors.shape[2] if directions == "all" else min(directions, vectors.shape[2])
    last = vectors[:, :, count - 1 :]
    signs = _signs((generic[top].unsqueeze(1) @ last).squeeze(1))  # (B, left over)
    rows = torch.cat([vectors[:, :, : count - 1], (last @ signs.unsqueeze(2))], 2).transpose(1, 2)  # (B, D, M)
    directions_in_classes = probs.new_zeros(len(probs), count, classes).scatter(
        2, top.unsqueeze(1).expand(-1, count, -1), rows
    )
    directions_in_classes[:, -1] += unit_rows
    return directions_in_classes


def _top_block(probs: Tensor, top: Tensor) -> Tensor:
    """Return (B, M, M) rows and columns of diag(p) - p p^T for the classes `top` (B, M)."""
    likely = probs.gather(1, top)
    block = -likely.unsqueeze(2) * likely.unsqueeze(1)
    # p (1 - p) from the probabilities of the others: 1 - p has no digits left where the model is sure
    complements = torch.where(
        torch.arange(likely.shape[1], device=probs.device) > 0,
        1 - likely,
        probs.scatter(1, top[:, :1], 0.0).sum(1, keepdim=True),
    )
    block.diagonal(dim1=1, dim2=2).copy_(likely * complements)
    return block


def apply_softmax_jacobian(probs: Tensor, rows: Tensor) -> Tensor:
    """Multiply rows (B, D, C) by the Jacobian diag(p) - p p^T of the softmax at probabilities (B, C)."""
    # a constant has no effect; after subtracting the likeliest class's nothing cancels where the model is sure
    shifted = rows - rows.gather(2, probs.argmax(1).view(-1, 1, 1).expand(-1, rows.shape[1], 1))
    likely = probs.unsqueeze(1)
    return likely * (shifted - (likely * shifted).sum(2, keepdim=True))


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0, -1.0, 1.0).to(numbers.dtype)
