"""What loggers learn in the course of a run of cycles."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_al.storage.cycles_table import CycleRecord
from lightning_al.storage.environment import environment_of
from lightning_al.storage.run_folder import RunFolder
from lightning_al.storage.tracking_notes import read_notes, update_notes
from lightning_al.tracking.failures import warn_on_failure, warn_once
from lightning_al.tracking.tracker import tracker_for


class CycleTracker:
    """Report the cycles of a run to the loggers of its trainers.

    Every cycle has a fresh trainer, whose loggers would count its steps from zero and draw all cycles over each other.
    Here the step under which values are logged goes on; `trainer.global_step`, schedules and checkpoints count as ever.

    Args:
        folder: The run folder, which remembers how far the steps got.
        config: The settings of the run.
        target: Values of test metrics whose cost in labels is reported.

    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], target: Mapping[str, float]) -> None:
        self.folder = folder
        self.config = config
        self.target = target
        self._begun: list[Logger] = []  # whose trackers have described this run

    def begin_cycle(self, trainer: Trainer, cycle: int) -> None:
        """Let the steps of a cycle begin where those of the cycle before ended."""
        self._begin_run(trainer.loggers)
        with warn_on_failure("Noting versions and hardware"):
            self._note_environment(trainer, cycle)
        loop, ended = trainer.fit_loop.epoch_loop, read_notes(self.folder.notes_file).steps
        if not hasattr(loop, "_batches_that_stepped"):
            warn_once("This version of Lightning counts its steps elsewhere, so the curves of cycles overlap.")
        elif 0 < cycle <= len(ended):
            loop._batches_that_stepped = ended[cycle - 1]

    @rank_zero_only
    def end_cycle(self, trainer: Trainer, records: Sequence[CycleRecord]) -> None:
        """Log the record of a cycle, and remember how far its steps got."""
        latest = records[-1]
        ended = read_notes(self.folder.notes_file).steps[: latest.cycle]
        if len(ended) == latest.cycle:
            reached = int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", 0))
            update_notes(self.folder.notes_file, steps=[*ended, reached])
        metrics = {f"al/{name}": float(value) for name, value in latest.to_row().items()}
        for logger in trainer.loggers:
            with warn_on_failure(type(logger).__name__):
                tracker = tracker_for(logger)
                tracker.log_metrics(metrics, latest.labeled)
                tracker.log_cycles(records, self.folder, self.target)

    @rank_zero_only
    def _begin_run(self, loggers: Sequence[Logger]) -> None:
        for logger in loggers:
            if logger not in self._begun:
                self._begun.append(logger)
                with warn_on_failure(type(logger).__name__):
                    tracker_for(logger).begin_run(self.folder, self.config, self.target)

    @rank_zero_only
    def _note_environment(self, trainer: Trainer, cycle: int) -> None:
        """Remember versions and hardware, once more if the run goes on with others."""
        environments = read_notes(self.folder.notes_file).environments
        current = environment_of(trainer)
        if not environments or environments[-1] != {"cycle": environments[-1].get("cycle"), **current}:
            update_notes(self.folder.notes_file, environments=[*environments, {"cycle": cycle, **current}])
