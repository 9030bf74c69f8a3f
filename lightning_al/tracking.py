"""What is logged per cycle, to any logger; a tracker that fails costs a warning, never a cycle."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_al import wandb_tracking
from lightning_al.environment import environment_of
from lightning_al.outcome import Outcome, write_outcome
from lightning_al.run_folder import Record, RunFolder
from lightning_al.run_summary import metrics_of, summary_of

STEPS = "steps"  # under this name the run folder remembers the last step of each cycle
ENVIRONMENTS = "environments"  # and under this one what its cycles were made with
SHOWN_QUANTILES = {"q05": 1, "q25": 5, "q50": 10, "q75": 15, "q95": 19}  # positions among 0, 5, ..., 100 %

_told: set[str] = set()  # what was warned of


def track_query(loggers: Sequence[Logger], outcome: Outcome | None, folder: Path | None = None) -> None:
    """Log what a query did, and keep it for the report.

    Args:
        loggers: The trainer's loggers, still open at fit end.
        outcome: What the query did; None on processes that do not look.
        folder: Where to write it.

    """
    if outcome is None:
        return
    if folder is not None:
        with sheltered("Writing what was picked"):
            write_outcome(outcome, folder)
    labeled = outcome.pool.num_labeled - len(outcome.pool.history[-1].indices)
    log_at(loggers, query_metrics(outcome), labeled)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with sheltered(type(logger).__name__):
                wandb_tracking.log_outcome(logger, outcome)


def query_metrics(outcome: Outcome) -> dict[str, float]:
    """Return the figures of a query under the names that loggers see.

    Args:
        outcome: What the query did.

    Returns:
        Numbers by name, such as `al/queried`, `al/score_seconds`, `al/score/pool/q50` and `al/label/3`.

    """
    latest = outcome.pool.history[-1]
    metrics: dict[str, float] = {"al/queried": len(latest.indices), "al/pool": outcome.pool.num_unlabeled}
    metrics |= {f"al/{name}": figure for name, figure in outcome.figures.items()}
    metrics |= {f"al/{name}_seconds": seconds for name, seconds in latest.seconds.items()}
    of_all = outcome.quantiles
    if of_all:
        metrics |= {f"al/score/pool/{name}": of_all[position] for name, position in SHOWN_QUANTILES.items()}
    if latest.scores:
        ordered = sorted(latest.scores)
        last = len(ordered) - 1
        metrics |= {
            f"al/score/picked/{name}": ordered[round(position / 20 * last)]
            for name, position in SHOWN_QUANTILES.items()
        }
    return metrics


@rank_zero_only
def log_at(loggers: Sequence[Logger], metrics: Mapping[str, float], labeled: int) -> None:
    """Log figures of a cycle at the number of labeled samples it trained on.

    The number of labeled samples is the axis on which cycles are compared; steps of training are another.

    Args:
        loggers: Any Lightning loggers.
        metrics: Names and values.
        labeled: Position on the axis `al/labeled`.

    """
    for logger in loggers:
        with sheltered(type(logger).__name__):
            if isinstance(logger, WandbLogger):
                wandb_tracking.log_at(logger, metrics, labeled)
            else:
                logger.log_metrics({**metrics, "al/labeled": labeled}, step=labeled)
                logger.save()


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


@contextmanager
def sheltered(what: str) -> Iterator[None]:
    """Turn what goes wrong inside into a warning, once for each kind of error, and go on.

    Args:
        what: Who failed, at the beginning of the warning.

    """
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        _warn_once(
            f"{what} failed ({type(error).__name__}: {reason}). The cycle goes on and its labels are safe; what was to "
            "be logged or shown is missing."
        )


def _warn_once(message: str) -> None:
    if message not in _told:
        _told.add(message)
        rank_zero_warn(message)
