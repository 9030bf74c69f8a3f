"""Report the cycles of a run to loggers."""

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

    Every cycle has a fresh trainer, which would log its steps from zero, so that the curves of all cycles overlap. Here
    the logged step continues from cycle to cycle; `trainer.global_step`, schedules and checkpoints are not changed.

    Args:
        folder: The run folder, which stores the last step of each cycle.
        config: The settings of the run.
        target: Values of test metrics; the number of labels they took is reported.

    """

    def __init__(self, folder: RunFolder, config: Mapping[str, Any], target: Mapping[str, float]) -> None:
        self.folder = folder
        self.config = config
        self.target = target
        self._described_loggers: list[Logger] = []  # whose trackers have described this run

    def begin_cycle(self, trainer: Trainer, cycle: int) -> None:
        """Describe the run, note the environment, and continue the logged steps of the cycle before."""
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
        """Log the record of a cycle, and store its last step."""
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
            if logger not in self._described_loggers:
                self._described_loggers.append(logger)
                with warn_on_failure(type(logger).__name__):
                    tracker_for(logger).begin_run(self.folder, self.config, self.target)

    @rank_zero_only
    def _note_environment(self, trainer: Trainer, cycle: int) -> None:
        """Store versions and hardware, again whenever they change."""
        environments = read_notes(self.folder.notes_file).environments
        current = environment_of(trainer)
        if not environments or environments[-1] != {"cycle": environments[-1].get("cycle"), **current}:
            update_notes(self.folder.notes_file, environments=[*environments, {"cycle": cycle, **current}])
