"""A random part of the samples."""

from collections.abc import Sequence

import torch


def draw_part(indices: Sequence[int], count: int, generator: torch.Generator) -> Sequence[int]:
    """Return some dataset indices, ascending, drawn at random; the same object if there are no more than that."""
    if len(indices) <= count:
        return indices
    rows = torch.randperm(len(indices), generator=generator)[:count].sort().values
    return [indices[row] for row in rows.tolist()]
