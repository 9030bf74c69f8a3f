"""Trackers report a run of cycles to a logger: numbers to any logger, and more to one with a tracker of its own."""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, Protocol

from lightning.pytorch.loggers import Logger

from lightning_al.storage.cycles_table import CycleRecord
from lightning_al.storage.run_folder import RunFolder
from lightning_al.tracking.query_summary import QuerySummary


class Tracker(Protocol):
    """The reports to one logger, on the first process only; an exception becomes a warning."""

    def begin_run(self, folder: RunFolder, config: Mapping[str, Any], target: Mapping[str, float]) -> None:
        """Describe the run, once per process that starts or continues it.

        Args:
            folder: The run folder.
            config: The settings of all cycles.
            target: Values of test metrics to reach.

        """

    def log_metrics(self, metrics: Mapping[str, float], labeled: int) -> None:
        """Log numbers of a cycle at the number of labeled samples it trained on.

        The number of labeled samples is the axis on which cycles are compared; steps of training are another.

        Args:
            metrics: Values by name.
            labeled: Position on the axis `al/labeled`.

        """

    def log_query(self, summary: QuerySummary) -> None:
        """Log the picks of a query, such as pictures; its metrics are logged already."""

    def log_cycles(self, records: Sequence[CycleRecord], folder: RunFolder, target: Mapping[str, float]) -> None:
        """Log a summary of all finished cycles.

        Args:
            records: One per finished cycle.
            folder: The run folder.
            target: Values of test metrics to reach.

        """


class MetricsTracker:
    """The tracker of any Lightning logger, which logs numbers over the number of labels.

    Args:
        logger: Any Lightning logger.

    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def begin_run(self, folder: RunFolder, config: Mapping[str, Any], target: Mapping[str, float]) -> None:
        """Describe nothing."""

    def log_metrics(self, metrics: Mapping[str, float], labeled: int) -> None:
        """Log numbers with the number of labels as their step."""
        self._logger.log_metrics({**metrics, "al/labeled": labeled}, step=labeled)
        self._logger.save()

    def log_query(self, summary: QuerySummary) -> None:
        """Log nothing more."""

    def log_cycles(self, records: Sequence[CycleRecord], folder: RunFolder, target: Mapping[str, float]) -> None:
        """Log nothing more."""


@singledispatch
def tracker_for(logger: Logger) -> Tracker:
    """Return the tracker of a logger.

    A richer one is registered by the class of its logger: `tracker_for.register(MLFlowLogger, MLFlowTracker)`.

    """
    return MetricsTracker(logger)
