"""Parts of the data, read once each and measured by all processes together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_al.datamodule import ActiveLearningDataModule
from lightning_al.gather import Measured, check_order, collect
from lightning_al.loaders import share_of
from lightning_al.progress import progress_bar
from lightning_al.scoring import measure_pool
from lightning_al.seeding import Stream, make_generator


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
        if not part:
            return Measured([], torch.empty(0), 0, torch.empty(0))
        loader = self.datamodule.pool_dataloader(part)
        title = f"{self.name}, {called}" if called else self.name
        with progress_bar(self.trainer, len(part) // self.trainer.world_size, title) as advance:
            indices, rows = measure_pool(self.measure, loader, self.transfer, advance=advance)
        score = self.score if scored else lambda rows: None
        return collect(self.trainer, self.name, part, share_of(loader), indices, rows, shortlist, ranked, score)

    def read_after_pilot(
        self,
        part: Sequence[int],
        pilot: Sequence[int],
        learn: Callable[[Tensor], Tensor],
        shortlist: Callable[[Tensor], Tensor | None],
    ) -> Measured:
        """Measure some of the samples first, and the others as `learn` decides from them.

        Args:
            part: Dataset indices, ascending.
            pilot: Those of them that come first, ascending.
            learn: Takes the pilot's rows and returns those to select from.
            shortlist: As in `read`, for the others.

        Returns:
            The measurements of the whole part.

        """
        first = self.read(pilot, ranked=False, scored=False, called="pilot")
        rows = learn(first.rows)
        head = set(pilot)
        rest = self.read([index for index in part if index not in head], shortlist, ranked=False)
        whole = Measured(first.indices, rows, len(rows), rows.mean(0), self.score(rows)).joined(rest)
        check_order(self.name, whole.indices, whole.rows, whole.count, whole.mean)
        return whole


def draw_pilot(part: Sequence[int], size: int, seed: int, cycle: int) -> list[int]:
    """Draw some of the candidates at random, the same ones on every process.

    Args:
        part: Dataset indices, ascending.
        size: How many to draw; at least one sample is left over.
        seed: The strategy's seed.
        cycle: The number of the cycle.

    Returns:
        Dataset indices, ascending.

    """
    rows = torch.randperm(len(part), generator=make_generator(Stream.PILOT, seed, cycle))
    return sorted(part[row] for row in rows[: min(size, len(part) - 1)].tolist())
