"""Measure parts of the data, each in one pass shared by all processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_al.data.dataloaders import local_indices
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.scoring.failing_together import raised_on_all_processes
from lightning_al.scoring.measure import measure_pool
from lightning_al.scoring.processes import Measurements, gather_measurements
from lightning_al.scoring.progress import Progress


def _none_of(rows: Tensor) -> None:
    """Return None, for rows without a score and for rows that are all gathered."""


@dataclass(frozen=True)
class ScoringPass:
    """The measurement of samples for one query.

    Args:
        name: The strategy, for messages.
        trainer: The trainer at fit end.
        datamodule: Provides the samples.
        transfer: Moves a batch to the device.
        measure: Maps a chunk, a list of batches on the device, to one row per sample.
        progress: Shows the progress of the pass.

    """

    name: str
    trainer: Trainer
    datamodule: ActiveLearningDataModule
    transfer: Callable[[Any], Any]
    measure: Callable[[list[Any]], Tensor]
    progress: Progress

    def run(
        self,
        indices: Sequence[int],
        *,
        part: str = "",
        ranked: bool = True,
        rows_to_gather: Callable[[Tensor], Tensor | None] = _none_of,
        score: Callable[[Tensor], Tensor | None] = _none_of,
    ) -> Measurements:
        """Measure some samples.

        Args:
            indices: Dataset indices, ascending.
            part: The name of this part of the data, for the progress bar.
            ranked: Whether samples are picked by these measurements.
            rows_to_gather: Returns which rows of one process all processes need, or None for all.
            score: Maps rows to one number each, or to None.

        Returns:
            The measurements, the same on every process.

        """
        loader = self.datamodule.pool_dataloader(indices)
        title = f"{self.name}, {part}" if part else self.name
        bar = self.progress.bar(len(indices) // self.trainer.world_size, title)
        with raised_on_all_processes(self.trainer), bar as advance:
            measured, rows = measure_pool(self.measure, loader, self.transfer, advance=advance)
        return gather_measurements(
            self.trainer,
            self.name,
            expected=indices,
            expected_here=local_indices(loader),
            indices=measured,
            rows=rows,
            rows_to_gather=rows_to_gather,
            ranked=ranked,
            score=score,
        )
