"""One file per acquisition strategy; the file is named like the class without 'Acquisition'."""

from lightning_al.strategies.badge import BADGEAcquisition
from lightning_al.strategies.bait import BAITAcquisition
from lightning_al.strategies.bald import BALDAcquisition
from lightning_al.strategies.batch_bald import BatchBALDAcquisition
from lightning_al.strategies.checkpoint_ensemble import CheckpointEnsembleAcquisition
from lightning_al.strategies.core_set import CoreSetAcquisition
from lightning_al.strategies.entropy import EntropyAcquisition
from lightning_al.strategies.least_confidence import LeastConfidenceAcquisition
from lightning_al.strategies.margin import MarginAcquisition
from lightning_al.strategies.mc_dropout import MCDropoutAcquisition
from lightning_al.strategies.noise_stability import NoiseStabilityAcquisition
from lightning_al.strategies.prob_cover import ProbCoverAcquisition
from lightning_al.strategies.query_by_committee import QueryByCommitteeAcquisition
from lightning_al.strategies.random import RandomAcquisition
from lightning_al.strategies.typi_clust import TypiClustAcquisition
from lightning_al.strategies.variation_ratio import VariationRatioAcquisition

__all__ = [
    "BADGEAcquisition",
    "BAITAcquisition",
    "BALDAcquisition",
    "BatchBALDAcquisition",
    "CheckpointEnsembleAcquisition",
    "CoreSetAcquisition",
    "EntropyAcquisition",
    "LeastConfidenceAcquisition",
    "MCDropoutAcquisition",
    "MarginAcquisition",
    "NoiseStabilityAcquisition",
    "ProbCoverAcquisition",
    "QueryByCommitteeAcquisition",
    "RandomAcquisition",
    "TypiClustAcquisition",
    "VariationRatioAcquisition",
]
