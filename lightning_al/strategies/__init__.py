"""One file per acquisition strategy; the file is named like the class without 'Acquisition'."""

from lightning_al.strategies.entropy import EntropyAcquisition
from lightning_al.strategies.least_confidence import LeastConfidenceAcquisition
from lightning_al.strategies.margin import MarginAcquisition
from lightning_al.strategies.noise_stability import NoiseStabilityAcquisition
from lightning_al.strategies.random import RandomAcquisition

__all__ = [
    "EntropyAcquisition",
    "LeastConfidenceAcquisition",
    "MarginAcquisition",
    "NoiseStabilityAcquisition",
    "RandomAcquisition",
]
