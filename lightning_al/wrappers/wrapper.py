"""What all wrappers share: an acquisition of their own, to which they pass on everything but the choice."""

import copy
from abc import ABC
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Self

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Context, Query
from lightning_al.model.predictor import Predictor

AcquisitionFactory: TypeAlias = Callable[[int | float], Acquisition]
"""An acquisition class, or a `functools.partial` of one; called with the query size."""


def make_acquisition(name: str, query_size: int | float, factory: AcquisitionFactory) -> Acquisition:
    """Make what a wrapper holds, or say what it should have been given."""
    made = None if isinstance(factory, Acquisition) or not callable(factory) else factory(query_size)
    if not isinstance(made, Acquisition):
        raise ValueError(
            f"`{name}(acquisition={factory!r})`: expected an acquisition class, or a `functools.partial` of one with "
            "its options, which the wrapper calls with its own query size: MarginAcquisition, or "
            "partial(BALDAcquisition, passes=20)."
        )
    return made


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

    def for_one_cycle(self) -> Self:
        """Copy what is held, too."""
        one = copy.copy(self)
        one.inner = self.inner.for_one_cycle()
        return one

    def narrow(self, indices: Any, budget: int, generator: Any) -> Any:
        """Pass on."""
        return self.inner.narrow(indices, budget, generator)

    def prepare(self, context: Context) -> None:
        """Pass on."""
        self.inner.prepare(context)

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Pass on."""
        return self.inner.measure(predictor, batch)

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Pass on."""
        return self.inner.measure_chunk(predictor, chunk)

    def score(self, rows: Tensor) -> Tensor | None:
        """Pass on."""
        return self.inner.score(rows)

    def shortlist(self, rows: Tensor, budget: int) -> Tensor | None:
        """Ask for all rows, unless the choice is that of the other acquisition."""
        return self.inner.shortlist(rows, budget) if type(self).select is Wrapper.select else None

    def select(self, query: Query) -> list[int]:
        """Pass on."""
        return self.inner.select(query)

    def figures(self, query: Query) -> dict[str, float]:
        """Pass on."""
        return self.inner.figures(query)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check both."""
        super().setup(trainer, pl_module, stage)
        self.inner.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on."""
        self.inner.on_fit_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass on."""
        self.inner.on_train_epoch_end(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Pass on."""
        self.inner.teardown(trainer, pl_module, stage)


def with_own_seed(acquisition: Acquisition, context: Context) -> Context:
    """Return a context with the seed that an acquisition was given."""
    return context if acquisition.seed is None else replace(context, seed=acquisition.seed)
