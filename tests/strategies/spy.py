"""A noise stability that shows what it selected from and what it reported."""

from typing import ClassVar

from lightning_al import NoiseStabilityAcquisition, Query


class Spy(NoiseStabilityAcquisition):
    """Keeps its queries and reports in the class, since a copy of it lives for one query only."""

    queries: ClassVar[list[Query]] = []
    reports: ClassVar[list[dict[str, float]]] = []

    @classmethod
    def forget(cls) -> None:
        cls.queries.clear()
        cls.reports.clear()

    def metrics(self, query: Query) -> dict[str, float]:
        metrics = super().metrics(query)
        self.queries.append(query)
        self.reports.append(metrics)
        return metrics
