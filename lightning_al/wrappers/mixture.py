"""Share a query between several acquisitions."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import make_generator
from lightning_al.wrappers.forwarding import forward_lightning_hooks
from lightning_al.wrappers.wrapper import AcquisitionFactory, make_acquisition, with_own_seed


@forward_lightning_hooks(lambda mixture: mixture.parts)
class Mixture(Acquisition):
    """Label with several acquisitions, of which each picks its share of the query, one after another.

    It combines exploitation and exploration: uncertain samples with typical or random ones. All measure in the same
    pass over the data; each picks from the candidates that those before it did not pick.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        acquisitions: The classes of at least two acquisitions, or `functools.partial`s of them; the first picks first.
        shares: The share of the query that each of them picks, positive; scaled to a sum of 1. None: equal shares.

    Raises:
        ValueError: If an argument is out of range.

    Cost: the sum of their costs, with one read of the data.

    Example:
        >>> from lightning_al import MarginAcquisition, RandomAcquisition
        >>> Mixture(10, [MarginAcquisition, RandomAcquisition], shares=[0.7, 0.3]).budgets(10)
        [7, 3]

    """

    def __init__(
        self,
        query_size: int | float,
        acquisitions: Sequence[Callable[[int | float], Acquisition]],
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__(query_size)
        parts: Sequence[AcquisitionFactory] = acquisitions
        fits = shares is None or (len(shares) == len(parts) and all(0 < share < math.inf for share in shares))
        if len(parts) < 2 or not fits:
            raise ValueError(
                f"`Mixture(acquisitions={acquisitions}, shares={shares})`: expected at least two acquisitions and, "
                "unless None, a positive share for each."
            )
        self.acquisitions = acquisitions
        self.shares = shares
        self.parts = [make_acquisition("Mixture", query_size, part) for part in parts]
        nothing: Sequence[int] = ()
        subsampling = [
            part for part in self.parts if part.subsample_candidates(nothing, 0, make_generator(0)) is not nothing
        ]
        if subsampling:
            name = type(subsampling[0]).__name__
            raise ValueError(
                f"`Mixture(acquisitions=...)`: {name} would pick from all candidates, since all parts share one read "
                f"of the data. Wrap the mixture instead: {name}(..., partial(Mixture, acquisitions=[...]))."
            )
        self.needs_forward = any(part.needs_forward for part in self.parts)
        self.needs_labeled = any(part.needs_labeled for part in self.parts)

    def budgets(self, budget: int) -> list[int]:
        """Return the number of picks of each part; the largest fractions are rounded up, at a tie the earlier one."""
        shares = [1.0] * len(self.parts) if self.shares is None else self.shares
        exact = [budget * share / math.fsum(shares) for share in shares]
        counts = [math.floor(part + 1e-9) for part in exact]
        order = sorted(range(len(exact)), key=lambda position: round(counts[position] - exact[position], 9))
        for position in order[: budget - sum(counts)]:
            counts[position] += 1
        return counts

    def copy_for_query(self) -> Self:
        """Return a copy for one query, with copies of the parts."""
        clone = copy.copy(self)
        clone.parts = [part.copy_for_query() for part in self.parts]
        return clone

    def subsample_candidates(self, indices: Sequence[int], budget: int, generator: torch.Generator) -> Sequence[int]:
        """Return no more candidates than any of the parts takes."""
        for part in self.parts:
            indices = part.subsample_candidates(indices, budget, generator)
        return indices

    def prepare(self, context: QueryContext) -> None:
        """Prepare each part, and store the shape of its measurements."""
        self._shapes: list[tuple[int, ...]] = []
        for part in self.parts:
            if not part.needs_forward:
                self._shapes.append((0,))
                continue
            part.prepare(with_own_seed(part, context))
            self._shapes.append(tuple(part.measure_chunk(context.predictor, [context.batch]).shape[1:]))

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the measurements of a batch by all parts."""
        return self.measure_chunk(predictor, [batch])

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Return the measurements of a few batches by all parts, side by side."""
        rows = [part.measure_chunk(predictor, chunk) for part in self.parts if part.needs_forward]
        return torch.cat([part.reshape(len(part), -1) for part in rows], dim=1)

    def select(self, query: Query) -> list[int]:
        """Choose with each part in turn, among the candidates that are not picked yet."""
        picks: list[int] = []
        shapes = self._shapes if self.needs_forward else [(0,)] * len(self.parts)
        ends = torch.tensor([math.prod(shape) for shape in shapes]).cumsum(0).tolist()
        for part, budget, shape, end in zip(self.parts, self.budgets(query.budget), shapes, ends, strict=True):
            if budget:
                remaining = query.without(picks, budget)
                columns = slice(end - math.prod(shape), end)
                # a part's own seed is combined with that of the query, which depends on the cycle
                seeds = () if part.seed is None else (part.seed, query.generator.initial_seed())
                generator = make_generator(*seeds) if seeds else query.generator
                picks += part.select(replace(_columns(remaining, columns, shape), generator=generator))
        return picks


def _columns(query: Query, columns: slice, shape: tuple[int, ...]) -> Query:
    """Return a query with the measurements of one part."""

    def cut(rows: Tensor) -> Tensor:
        return rows[:, columns].reshape(len(rows), *shape)

    return replace(query, pool=cut(query.pool), labeled=None if query.labeled is None else cut(query.labeled))
