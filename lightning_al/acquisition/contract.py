"""The callback that labels at fit end: the methods that a strategy may override, and when they run."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import Self

from lightning_al.acquisition.agreement import check_agreement
from lightning_al.acquisition.checks import check_before_training
from lightning_al.acquisition.embeddings import EmbeddingSource
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.acquisition.rehearsal import rehearse
from lightning_al.acquisition.run_query import run_query, should_query
from lightning_al.data.draw import draw_part
from lightning_al.data.sizes import check_size, resolve_size
from lightning_al.formulas.ranking import top_k
from lightning_al.model.predictor import Predictor


class Acquisition(Callback, ABC):
    """Label the most useful part of the pool when a fit ends.

    A strategy defines what is measured per sample and how samples are selected; this class does the rest.
    It scores a clone on the trainer's device, out of autocast and in true single precision, with one pass over the
    candidates shared by all processes; the user's module and the global random numbers stay bit-identical.

    Subclasses are final. `prepare` and `select` are optional; a larger measurement means 'label first'.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].

    Raises:
        ValueError: If `query_size` is neither.

    """

    needs_forward: bool = True
    """Whether the pool is read at all."""
    needs_labeled: bool = False
    """Whether `Query.labeled` holds the measurements of the labeled part."""
    seed: int | None = None
    """Seed of the strategy; None takes the datamodule's."""
    min_score: float = 0.0
    """The smallest possible score, of a sample that is worth nothing to the strategy."""
    max_candidates: int | None = None
    """Most candidates per query, drawn at random, for a cost that grows with their square; None for all."""
    embedding_source: EmbeddingSource | None = None
    """Where the vectors of a strategy that measures distances come from."""

    def __init__(self, query_size: int | float) -> None:
        self.query_size = check_size(f"`{type(self).__name__}(query_size={query_size!r})`", query_size, "the dataset")
        self._trained = False

    def budget(self, dataset_size: int) -> int:
        """Return how many samples a query labels, for a dataset of this size."""
        return resolve_size(self.query_size, dataset_size)

    def copy_for_query(self) -> Self:
        """Return a copy for one query, so that what `prepare` stores on it is dropped afterwards."""
        return copy.copy(self)

    def subsample_candidates(self, indices: Sequence[int], budget: int, generator: torch.Generator) -> Sequence[int]:
        """Return which of the candidates to measure, ascending; by default all, or `max_candidates` of them."""
        return indices if self.max_candidates is None else draw_part(indices, self.max_candidates, generator)

    def prepare(self, context: QueryContext) -> None:
        """Prepare one query; what is stored on `self` is dropped after it.

        It also runs before training, with `context.rehearsal`, a few candidates and the untrained weights. Let those
        stand in for what only the training provides.

        """

    @abstractmethod
    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Measure one batch.

        Args:
            predictor: The clone of the model.
            batch: A batch on the device.

        Returns:
            (B,) scores, or (B, ...) rows for a strategy with its own `select`.

        """

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Measure a few batches; override it to make the passes the outer loop."""
        return torch.cat([self.measure(predictor, batch) for batch in chunk])

    def select(self, query: Query) -> list[int]:
        """Choose what to label; by default the largest scores.

        Args:
            query: Measurements, dataset indices and budget.

        Returns:
            `query.budget` distinct dataset indices.

        """
        return query.pick(top_k(query.pool, query.budget))

    def score(self, rows: Tensor) -> Tensor | None:
        """Return one number per row to keep with each pick, or None if rows have no such number."""
        return rows if rows.ndim == 1 else None

    def rows_to_gather(self, rows: Tensor, budget: int) -> Tensor | None:
        """Return which of one process's rows `select` may need; None gathers all rows on every process."""
        return top_k(rows, budget) if type(self).select is Acquisition.select else None

    def metrics(self, query: Query) -> dict[str, float]:
        """Return numbers to log about this query, by name."""
        return {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise before training if the pool could not be scored after it."""
        if stage == "fit":
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            check_before_training(self, trainer, sum(isinstance(callback, Acquisition) for callback in callbacks))
            check_agreement(trainer, trainer.datamodule)  # type: ignore[attr-defined]
            self._trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise before training if a few candidates cannot be scored."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # one that a wrapper holds is rehearsed with the wrapper
        if any(callback is self for callback in callbacks):
            rehearse(self.copy_for_query(), trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record that this fit trained a batch."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the candidates, select, label, and write the pool file."""
        if should_query(type(self).__name__, trainer, self._trained):
            run_query(self.copy_for_query(), trainer, pl_module)
