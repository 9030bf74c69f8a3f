"""The redundancy of the picks of one query."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

# Rows whose similarities to all others are held at a time, to bound memory.
BLOCK = 1024


def redundancy(features: Tensor) -> Tensor:
    r"""Return the mean similarity of each sample to the most similar other one.

    A batch of near-duplicates costs as many labels as a diverse one and improves the model less. Features are centered
    first, because after a ReLU all have similar directions.

    $\frac{1}{N} \sum_i \max_{j \ne i} \cos(h_i - \bar h, h_j - \bar h)$

    Args:
        features: (N, D) features of the samples, N >= 2.

    Returns:
        A scalar in [-1, 1]: 1 if each sample has a duplicate; larger is more redundant.

    Raises:
        ValueError: If there are no two rows.

    Cost: N^2 D operations, memory for 1,024 rows of N similarities.

    Example:
        >>> twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
        >>> spread = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> round(float(redundancy(twins)), 3), round(float(redundancy(spread)), 3)
        (1.0, 0.0)

    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"`redundancy(features)`: expected at least two rows (N, D), got shape {tuple(features.shape)}; a single "
            "sample resembles no other"
        )
    directions = normalize(features - features.mean(0), dim=1)
    nearest = []
    for begin in range(0, len(directions), BLOCK):
        similarities = directions[begin : begin + BLOCK] @ directions.T
        rows = torch.arange(len(similarities), device=features.device)
        similarities[rows, begin + rows] = -torch.inf
        nearest.append(similarities.amax(1))
    return torch.cat(nearest).mean()
