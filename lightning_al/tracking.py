"""What is logged per cycle, to any logger."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_al.pool import Pool


def log_query(loggers: Sequence[Logger], pool: Pool, figures: Mapping[str, float] = MappingProxyType({})) -> None:
    """Log what the last query of a pool did.

    Args:
        loggers: The trainer's loggers, still open at fit end.
        pool: The pool after the query.
        figures: What the strategy reports about it, by name.

    """
    latest = pool.history[-1]
    metrics: dict[str, float] = {"al/queried": len(latest.indices), "al/pool": pool.num_unlabeled}
    metrics |= {f"al/{name}": figure for name, figure in figures.items()}
    metrics |= {f"al/{name}_seconds": seconds for name, seconds in latest.seconds.items()}
    if latest.scores:
        metrics |= {"al/score_max": max(latest.scores), "al/score_min": min(latest.scores)}
    log_at(loggers, metrics, pool.num_labeled - len(latest.indices))


@rank_zero_only
def log_at(loggers: Sequence[Logger], metrics: Mapping[str, float], labeled: int) -> None:
    """Log figures of a cycle at the number of labeled samples it trained on.

    Every cycle's trainer counts its steps from zero, so the number of labeled samples is the only axis that grows.

    Args:
        loggers: Any Lightning loggers.
        metrics: Names and values.
        labeled: Position on the axis `al/labeled`.

    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.define_metric("al/*", step_metric="al/labeled")
            logger.experiment.log({**metrics, "al/labeled": labeled})
        else:
            logger.log_metrics({**metrics, "al/labeled": labeled}, step=labeled)
            logger.save()
