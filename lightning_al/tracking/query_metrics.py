"""Log a finished query: its metrics to every logger, and its picks to trackers that show them."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_al.storage.query_files import PLOTTED_QUANTILES
from lightning_al.tracking.failures import warn_on_failure
from lightning_al.tracking.query_summary import QuerySummary
from lightning_al.tracking.summary_files import write_summary
from lightning_al.tracking.tracker import tracker_for


@rank_zero_only
def track_query(loggers: Sequence[Logger], summary: QuerySummary, preview_dir: Path | None = None) -> None:
    """Log a query, and write it for the report.

    Args:
        loggers: The trainer's loggers, still open at fit end.
        summary: The summary of the query.
        preview_dir: The folder for the report's files; None writes none.

    """
    if preview_dir is not None:
        with warn_on_failure("Writing the picks"):
            write_summary(summary, preview_dir)
    metrics = query_metrics(summary)
    for logger in loggers:
        with warn_on_failure(type(logger).__name__):
            tracker = tracker_for(logger)
            tracker.log_metrics(metrics, summary.labeled_before)
            tracker.log_query(summary)


def query_metrics(summary: QuerySummary) -> dict[str, float]:
    """Return the metrics of a query under the names that are logged.

    Args:
        summary: The summary of the query.

    Returns:
        Numbers by name, such as `al/queried`, `al/score_seconds`, `al/score/pool/q50` and `al/label/3`.

    """
    latest = summary.labeling
    metrics: dict[str, float] = {"al/queried": len(latest), "al/pool": summary.pool.num_unlabeled}
    metrics |= {f"al/{name}": value for name, value in summary.metrics.items()}
    metrics |= {f"al/{name}_seconds": seconds for name, seconds in latest.seconds.items()}
    quantiles = summary.quantiles
    if quantiles:
        metrics |= {f"al/score/pool/{name}": quantiles[position] for name, position in PLOTTED_QUANTILES.items()}
    if latest.scores:
        ordered = sorted(latest.scores)
        last = len(ordered) - 1
        metrics |= {
            f"al/score/picked/{name}": ordered[round(position / 20 * last)]
            for name, position in PLOTTED_QUANTILES.items()
        }
    return metrics
