"""Every formula of the package as a pure tensor function; a larger score always means 'label first'."""

from lightning_al.functional.coverage import k_center, kmeans_plus_plus
from lightning_al.functional.noise_stability import noise_stability
from lightning_al.functional.ranking import power, top_k
from lightning_al.functional.uncertainty import entropy, least_confidence, margin

__all__ = [
    "entropy",
    "k_center",
    "kmeans_plus_plus",
    "least_confidence",
    "margin",
    "noise_stability",
    "power",
    "top_k",
]
