"""Parts of the data, read once each and measured by all processes together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_al.data.dataloaders import share_of
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.scoring.measure import measure_pool
from lightning_al.scoring.processes import Measured, collect
from lightning_al.scoring.progress import progress_bar


@dataclass(frozen=True)
class Survey:
    """How the samples of one cycle are measured.

    Args:
        name: The strategy, for messages.
        trainer: The trainer at fit end.
        datamodule: Where samples come from.
        transfer: Moves a batch to the device.
        measure: Maps a chunk, a list of batches on the device, to one row per sample.
        score: Maps rows to one number each, or to None.

    """

    name: str
    trainer: Trainer
    datamodule: ActiveLearningDataModule
    transfer: Callable[[Any], Any]
    measure: Callable[[list[Any]], Tensor]
    score: Callable[[Tensor], Tensor | None] = lambda rows: None

    def read(
        self,
        part: Sequence[int],
        shortlist: Callable[[Tensor], Tensor | None] = lambda rows: None,
        ranked: bool = True,
        scored: bool = True,
        called: str = "",
    ) -> Measured:
        """Measure some samples.

        Args:
            part: Dataset indices, ascending.
            shortlist: Returns which rows of one process all processes need, or None for all.
            ranked: Whether samples will be picked by these.
            scored: Whether these rows have scores.
            called: What these samples are, for the progress bar.

        Returns:
            The measurements, the same on every process.

        """
        loader = self.datamodule.pool_dataloader(part)
        title = f"{self.name}, {called}" if called else self.name
        with progress_bar(self.trainer, len(part) // self.trainer.world_size, title) as advance:
            indices, rows = measure_pool(self.measure, loader, self.transfer, advance=advance)
        score = self.score if scored else lambda rows: None
        return collect(self.trainer, self.name, part, share_of(loader), indices, rows, shortlist, ranked, score)
