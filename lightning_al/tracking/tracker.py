"""What a logger can do with a run of cycles; every logger gets numbers, and a tracker of its own may add more."""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, Protocol

from lightning.pytorch.loggers import Logger

from lightning_al.storage.cycles_table import CycleRecord
from lightning_al.storage.run_folder import RunFolder
from lightning_al.tracking.query_summary import QuerySummary


class Tracker(Protocol):
    """What is reported to one logger; called on the first process only, and a failure costs a warning."""

    def begin_run(self, folder: RunFolder, config: Mapping[str, Any], target: Mapping[str, float]) -> None:
        """Describe the run, once per process that begins or continues it.

        Args:
            folder: The run folder.
            config: The settings of all cycles.
            target: Values of test metrics that are to be reached.

        """

    def log_metrics(self, metrics: Mapping[str, float], labeled: int) -> None:
        """Log numbers of a cycle at the number of labeled samples it trained on.

        The number of labeled samples is the axis on which cycles are compared; steps of training are another.

        Args:
            metrics: Values by name.
            labeled: Position on the axis `al/labeled`.

        """

    def log_query(self, summary: QuerySummary) -> None:
        """Log what a query picked beyond its metrics, such as pictures."""

    def log_cycles(self, records: Sequence[CycleRecord], folder: RunFolder, target: Mapping[str, float]) -> None:
        """Log what all finished cycles amount to.

        Args:
            records: One per finished cycle.
            folder: The run folder.
            target: Values of test metrics that are to be reached.

        """


class MetricsTracker:
    """The tracker of any Lightning logger: numbers over the number of labels, and nothing else.

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
