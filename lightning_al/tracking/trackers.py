"""What is logged per query and cycle, to any logger."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_al.tracking import wandb as wandb_tracking
from lightning_al.tracking.failures import sheltered
from lightning_al.tracking.query_summary import Outcome, write_outcome

SHOWN_QUANTILES = {"q05": 1, "q25": 5, "q50": 10, "q75": 15, "q95": 19}  # positions among 0, 5, ..., 100 %


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
