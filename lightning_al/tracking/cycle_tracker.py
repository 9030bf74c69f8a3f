"""What loggers learn in the course of a run of cycles."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from lightning_al.analysis.run_summary import summary_of
from lightning_al.storage.cycles_table import Record, metrics_of
from lightning_al.storage.environment import environment_of
from lightning_al.storage.run_folder import RunFolder
from lightning_al.tracking import wandb as wandb_tracking
from lightning_al.tracking.failures import _warn_once, sheltered
from lightning_al.tracking.trackers import log_at

STEPS = "steps"  # under this name the run folder remembers the last step of each cycle


ENVIRONMENTS = "environments"  # and under this one what its cycles were made with


class Tracker:
    """What trackers are told in the course of a run of cycles.

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
        self._begun: list[Logger] = []  # which know of this run

    def begin_cycle(self, trainer: Trainer, cycle: int) -> None:
        """Let the steps of a cycle begin where those of the cycle before ended."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and logger not in self._begun and trainer.is_global_zero:
                self._begun.append(logger)
                with sheltered(type(logger).__name__):
                    wandb_tracking.begin(logger, self.folder, self.config, self.target)
        with sheltered("Noting versions and hardware"):
            self._note_environment(trainer, cycle)
        loop, ended = trainer.fit_loop.epoch_loop, self.folder.read_notes().get(STEPS, [])
        if not hasattr(loop, "_batches_that_stepped"):
            _warn_once("This version of Lightning counts its steps elsewhere, so the curves of cycles overlap.")
        elif 0 < cycle <= len(ended):
            loop._batches_that_stepped = ended[cycle - 1]

    def end_cycle(self, trainer: Trainer, records: Sequence[Record]) -> None:
        """Log the record of a cycle, and remember how far its steps got."""
        latest, cycle = records[-1], int(records[-1]["cycle"])
        ended = self.folder.read_notes().get(STEPS, [])[:cycle]
        if len(ended) == cycle:
            reached = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", 0)
            self.folder.write_note(STEPS, [*ended, reached])
        log_at(trainer.loggers, {f"al/{name}": value for name, value in latest.items()}, int(latest["labeled"]))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                with sheltered(type(logger).__name__):
                    wandb_tracking.log_records(logger, records, self.folder, self.target)

    def _note_environment(self, trainer: Trainer, cycle: int) -> None:
        """Remember versions and hardware, once more if the run goes on with others."""
        known: list[dict[str, Any]] = self.folder.read_notes().get(ENVIRONMENTS, [])
        now = environment_of(trainer)
        if not known or known[-1] != {"cycle": known[-1]["cycle"], **now}:
            self.folder.write_note(ENVIRONMENTS, [*known, {"cycle": cycle, **now}])

    def told_of_targets(self, records: Sequence[Record]) -> list[str]:
        """Return a sentence for each target: what it cost in labels."""
        found = summary_of(records, self.target)
        said = []
        for name, value in self.target.items():
            needed, curve = found.get(f"labels_to/{name}"), [record[name] for record in records if name in record]
            if not curve:
                known = ", ".join(metrics_of(records)) or "none"
                said.append(f"The target of {name} names no test metric; there is {known}.")
            elif needed is None:
                said.append(f"{name} does not reach {value:g}; its last value is {curve[-1]:.4g}.")
            else:
                said.append(f"{name} reaches {value:g} with {needed:.0f} labels.")
        return said
