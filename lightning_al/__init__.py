"""Deep active learning for PyTorch Lightning: wrap your data, add one callback."""

from typing import TYPE_CHECKING, Any

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.acquisition.query_trained import query
from lightning_al.cycles.run_cycles import run_cycles
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.data.files import AudioFiles, ImageFiles, TextRows
from lightning_al.data.pool import Pool
from lightning_al.model.features import Features
from lightning_al.model.predictor import Predictor
from lightning_al.storage.labels_file import Labels
from lightning_al.strategies import (
    BADGEAcquisition,
    BAITAcquisition,
    BALDAcquisition,
    BatchBALDAcquisition,
    CheckpointEnsembleAcquisition,
    CoreSetAcquisition,
    EntropyAcquisition,
    LeastConfidenceAcquisition,
    MarginAcquisition,
    MCDropoutAcquisition,
    NoiseStabilityAcquisition,
    ProbCoverAcquisition,
    QueryByCommitteeAcquisition,
    RandomAcquisition,
    TypiClustAcquisition,
    VariationRatioAcquisition,
)
from lightning_al.wrappers import Mixture, OncePerGroup, RandomSubset, StochasticBatch, UncertaintyHerding

if TYPE_CHECKING:
    from lightning_al.cli.fit import ActiveLearningCLI

__version__ = "0.2.0"

__all__ = [
    "Acquisition",
    "ActiveLearningCLI",
    "ActiveLearningDataModule",
    "AudioFiles",
    "BADGEAcquisition",
    "BAITAcquisition",
    "BALDAcquisition",
    "BatchBALDAcquisition",
    "CheckpointEnsembleAcquisition",
    "CoreSetAcquisition",
    "EntropyAcquisition",
    "Features",
    "ImageFiles",
    "Labels",
    "LeastConfidenceAcquisition",
    "MCDropoutAcquisition",
    "MarginAcquisition",
    "Mixture",
    "NoiseStabilityAcquisition",
    "OncePerGroup",
    "Pool",
    "Predictor",
    "ProbCoverAcquisition",
    "Query",
    "QueryByCommitteeAcquisition",
    "QueryContext",
    "RandomAcquisition",
    "RandomSubset",
    "StochasticBatch",
    "TextRows",
    "TypiClustAcquisition",
    "UncertaintyHerding",
    "VariationRatioAcquisition",
    "functional",
    "query",
    "run_cycles",
]


def __getattr__(name: str) -> Any:
    # the CLI needs jsonargparse, which scoring and the Python API do without
    if name == "ActiveLearningCLI":
        from lightning_al.cli.fit import ActiveLearningCLI

        return ActiveLearningCLI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
