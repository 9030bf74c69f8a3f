"""The arguments of a strategy: its context, once per query before it measures, and the query to select from."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_al.model.predictor import Predictor


@dataclass(frozen=True)
class QueryContext:
    """The model and the first candidates, for a strategy to prepare a query.

    Attributes:
        predictor: The clone of the model as a function from a batch to outputs (B, C, *positions).
        batch: The first candidates, on the device; the same on every process.
        seed: The strategy's seed, or the datamodule's.
        cycle: The number of this cycle.
        num_candidates: How many samples can be picked.
        budget: How many of them will be picked.
        candidates: Their dataset indices, ascending.
        read: Returns batches of any samples, by dataset indices, on the device; the same on every process.
        read_validation: Returns batches of the validation data, in the same way.
        rehearsal: Whether this is the rehearsal before training, with a few candidates and the untrained weights: what
            a strategy takes from the training, such as weights of earlier epochs, is not there yet.

    """

    predictor: Predictor
    batch: Any
    seed: int
    cycle: int
    num_candidates: int
    budget: int
    candidates: Sequence[int]
    read: Callable[[Sequence[int]], Iterable[Any]]
    read_validation: Callable[[], Iterable[Any]]
    rehearsal: bool = False


@dataclass(frozen=True)
class Query:
    """The measurements of the candidates, for a strategy to select from.

    Attributes:
        pool: (N, ...) measurements, one row per candidate, in ascending order of the dataset index. On several
            processes, a strategy with `rows_to_gather` gets only the rows that this method returned.
        indices: N dataset indices, ascending.
        budget: How many to pick, at least 1 and below N.
        generator: The only randomness a strategy may use, seeded from (seed, cycle), on the CPU.
        labeled: (M, ...) measurements of the labeled part, if the strategy sets `needs_labeled`.
        candidate_scores: Scores of all candidates, gathered or not, in any order; None where rows have none.
        labeled_indices: Dataset indices of the labeled part, in the order of the rows of `labeled`.

    """

    pool: Tensor
    indices: Sequence[int]
    budget: int
    generator: torch.Generator
    labeled: Tensor | None = None
    candidate_scores: Tensor | None = None
    labeled_indices: Sequence[int] = ()

    def pick(self, rows: Tensor) -> list[int]:
        """Return the dataset indices of rows of `pool`."""
        return [self.indices[row] for row in rows.tolist()]

    def labeled_rows(self) -> Tensor:
        """Return `labeled`.

        Raises:
            ValueError: If there are no such rows.

        """
        if self.labeled is None:
            raise ValueError(
                "`Query(labeled=None)`: this strategy selects by the rows of the labeled part. Pass them, of shape "
                "(0, ...) if nothing is labeled; a strategy gets them if its `needs_labeled` is True."
            )
        return self.labeled

    def scores_of(self, picks: Sequence[int], scores: Tensor) -> list[float]:
        """Return the scores of some candidates, given those of the rows of `pool`."""
        rows = np.searchsorted(np.asarray(self.indices), np.asarray(picks))
        numbers: list[float] = scores[torch.from_numpy(rows)].tolist()
        return numbers

    def without(self, picks: Sequence[int], budget: int, others: Sequence[int] = ()) -> "Query":
        """Return the query that remains after some picks, which count as labeled.

        Args:
            picks: Dataset indices that were picked.
            budget: How many to pick of the remaining candidates.
            others: Dataset indices that are excluded as well.

        Returns:
            A query without the picks and the excluded candidates.

        """
        indices = np.array(self.indices, dtype=np.int64)
        picked = np.isin(indices, picks)
        remaining = ~(picked | np.isin(indices, others))
        return replace(
            self,
            pool=self.pool[torch.from_numpy(remaining)],
            indices=array("q", indices[remaining].tobytes()),
            budget=budget,
            labeled=None if self.labeled is None else torch.cat([self.labeled, self.pool[torch.from_numpy(picked)]]),
            labeled_indices=[*self.labeled_indices, *indices[picked].tolist()],
        )
