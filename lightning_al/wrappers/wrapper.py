"""The base of wrappers, which hold another acquisition and forward every hook to it."""

import copy
from abc import ABC
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor
from typing_extensions import Self

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.predictor import Predictor
from lightning_al.wrappers.forwarding import forward_lightning_hooks

AcquisitionFactory: TypeAlias = Callable[[int | float], Acquisition]
"""An acquisition class, or a `functools.partial` of one; called with the query size."""


def make_acquisition(name: str, query_size: int | float, factory: AcquisitionFactory) -> Acquisition:
    """Return the acquisition inside a wrapper; raise if the argument cannot make one."""
    acquisition = None if isinstance(factory, Acquisition) or not callable(factory) else factory(query_size)
    if not isinstance(acquisition, Acquisition):
        raise ValueError(
            f"`{name}(acquisition={factory!r})`: expected an acquisition class, or a `functools.partial` of one with "
            "its options, which the wrapper calls with its own query size: MarginAcquisition, or "
            "partial(BALDAcquisition, passes=20)."
        )
    return acquisition


@forward_lightning_hooks(lambda wrapper: [wrapper.inner])
class Wrapper(Acquisition, ABC):
    """An acquisition that holds another one.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        acquisition: The class of the other one, or a `functools.partial` of it.

    """

    def __init__(self, query_size: int | float, acquisition: AcquisitionFactory) -> None:
        super().__init__(query_size)
        self.acquisition = acquisition
        self.inner = make_acquisition(type(self).__name__, query_size, acquisition)
        self.needs_forward = self.inner.needs_forward
        self.needs_labeled = self.inner.needs_labeled
        self.seed = self.inner.seed
        self.min_score = self.inner.min_score

    def copy_for_query(self) -> Self:
        """Return a copy for one query, with a copy of the other acquisition."""
        clone = copy.copy(self)
        clone.inner = self.inner.copy_for_query()
        return clone

    def subsample_candidates(self, indices: Any, budget: int, generator: Any) -> Any:
        """Return the candidates that the other acquisition measures."""
        return self.inner.subsample_candidates(indices, budget, generator)

    def prepare(self, context: QueryContext) -> None:
        """Prepare the other acquisition."""
        self.inner.prepare(context)

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Measure a batch with the other acquisition."""
        return self.inner.measure(predictor, batch)

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Measure a few batches with the other acquisition."""
        return self.inner.measure_chunk(predictor, chunk)

    def score(self, rows: Tensor) -> Tensor | None:
        """Return the scores of the other acquisition."""
        return self.inner.score(rows)

    def rows_to_gather(self, rows: Tensor, budget: int) -> Tensor | None:
        """Return the rows that the other acquisition needs; None for all, if this wrapper selects otherwise."""
        return self.inner.rows_to_gather(rows, budget) if type(self).select is Wrapper.select else None

    def select(self, query: Query) -> list[int]:
        """Select with the other acquisition."""
        return self.inner.select(query)

    def metrics(self, query: Query) -> dict[str, float]:
        """Return the metrics of the other acquisition."""
        return self.inner.metrics(query)


def with_own_seed(acquisition: Acquisition, context: QueryContext) -> QueryContext:
    """Return a context with the seed that an acquisition was given."""
    return context if acquisition.seed is None else replace(context, seed=acquisition.seed)
