"""The smallest settings of every strategy; the contract suite fails for a strategy that is missing here."""

from typing import Any

from lightning_al import strategies

SETTINGS: dict[type, list[dict[str, Any]]] = {
    strategies.EntropyAcquisition: [{}],
    strategies.LeastConfidenceAcquisition: [{}],
    strategies.MarginAcquisition: [{}],
    strategies.NoiseStabilityAcquisition: [
        {"passes": 3},
        {"passes": 3, "racing": True},
        {"passes": "auto", "max_passes": 6},
        {"passes": "auto", "max_passes": 6, "racing": True},
        {"passes": 3, "method": "jvp"},
        {"passes": 3, "modules": ["net.4"]},
        {"passes": 3, "selection": "k-center"},
        {"passes": 3, "selection": "kmeans++"},
        {"passes": 3, "selection": "power"},
    ],
    strategies.RandomAcquisition: [{}],
}
