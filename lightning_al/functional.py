"""Every formula of the package as a pure tensor function; a larger score always means 'label first'."""

from lightning_al.formulas.badge import badge
from lightning_al.formulas.bait import bait
from lightning_al.formulas.batch_bald import batch_bald, joint_entropy
from lightning_al.formulas.calibration import calibration_error, fit_temperature
from lightning_al.formulas.coverage import k_center, kmeans_plus_plus
from lightning_al.formulas.disagreement import (
    bald,
    expected_entropy,
    predictive_entropy,
    predictive_variance,
    variation_ratio,
    vote_entropy,
)
from lightning_al.formulas.herding import herding, labeled_width, neighbor_width
from lightning_al.formulas.lcmd import lcmd
from lightning_al.formulas.principal_components import principal_components
from lightning_al.formulas.prob_cover import prob_cover, purity_radius
from lightning_al.formulas.ranking import boltzmann, power, soft_rank, top_k
from lightning_al.formulas.redundancy import redundancy
from lightning_al.formulas.typiclust import typiclust
from lightning_al.formulas.uncertainty import entropy, least_confidence, margin
from lightning_al.perturbation.score import noise_stability

__all__ = [
    "badge",
    "bait",
    "bald",
    "batch_bald",
    "boltzmann",
    "calibration_error",
    "entropy",
    "expected_entropy",
    "fit_temperature",
    "herding",
    "joint_entropy",
    "k_center",
    "kmeans_plus_plus",
    "labeled_width",
    "lcmd",
    "least_confidence",
    "margin",
    "neighbor_width",
    "noise_stability",
    "power",
    "predictive_entropy",
    "predictive_variance",
    "principal_components",
    "prob_cover",
    "purity_radius",
    "redundancy",
    "soft_rank",
    "top_k",
    "typiclust",
    "variation_ratio",
    "vote_entropy",
]
