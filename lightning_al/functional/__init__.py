"""Every formula of the package as a pure tensor function; a larger score always means 'label first'."""

from lightning_al.functional.badge import badge
from lightning_al.functional.coverage import k_center, kmeans_plus_plus
from lightning_al.functional.disagreement import (
    bald,
    expected_entropy,
    predictive_entropy,
    predictive_variance,
    variation_ratio,
    vote_entropy,
)
from lightning_al.functional.noise_stability import noise_stability
from lightning_al.functional.ranking import boltzmann, power, soft_rank, top_k
from lightning_al.functional.uncertainty import entropy, least_confidence, margin

__all__ = [
    "badge",
    "bald",
    "boltzmann",
    "entropy",
    "expected_entropy",
    "k_center",
    "kmeans_plus_plus",
    "least_confidence",
    "margin",
    "noise_stability",
    "power",
    "predictive_entropy",
    "predictive_variance",
    "soft_rank",
    "top_k",
    "variation_ratio",
    "vote_entropy",
]
