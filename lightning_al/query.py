"""What a strategy is told: once per cycle, and when it selects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_al.adapters import Predictor


@dataclass(frozen=True)
class Context:
    """What a strategy may look at once per cycle, before it measures.

    Attributes:
        predictor: The clone of the model, as a function from a batch to outputs (B, C, *positions).
        batch: The first candidates, on the device; the same on every process.
        seed: The strategy's seed, or the datamodule's.
        cycle: The number of this cycle.
        candidates: How many samples there are to choose from.
        budget: How many of them will be picked.

    """

    predictor: Predictor
    batch: Any
    seed: int
    cycle: int
    candidates: int
    budget: int


@dataclass(frozen=True)
class Query:
    """What a strategy selects from.

    Attributes:
        pool: (N, ...) measurements, one row per candidate, in ascending order of the dataset index. On several
            processes, a strategy with a `shortlist` gets those candidates only that are on one.
        indices: N dataset indices.
        budget: How many to pick, at least 1 and below N.
        generator: The only randomness a strategy may use, seeded from (seed, cycle), on the CPU.
        labeled: (M, ...) measurements of the labeled part, if the strategy says `needs_labeled`.
        mean: (...) mean row over all candidates, on a shortlist or not.

    """

    pool: Tensor
    indices: Sequence[int]
    budget: int
    generator: torch.Generator
    labeled: Tensor | None = None
    mean: Tensor | None = None

    def pick(self, rows: Tensor) -> list[int]:
        """Return the dataset indices of rows of `pool`."""
        return [self.indices[row] for row in rows.tolist()]
