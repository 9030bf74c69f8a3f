"""The smallest settings of every strategy; the contract suite fails for a strategy that is missing here."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning_al import strategies
from lightning_al.acquisition.contract import Acquisition
from lightning_al.wrappers import Mixture, OncePerGroup, RandomSubset, StochasticBatch, UncertaintyHerding

SETTINGS: dict[type, list[dict[str, Any]]] = {
    strategies.BADGEAcquisition: [{}, {"features": "net.1"}, {"output": "sigmoid"}],
    strategies.BAITAcquisition: [{}, {"output": "identity", "embeddings": "input"}],
    strategies.BALDAcquisition: [{"passes": 4}, {"passes": 4, "output": "sigmoid"}],
    strategies.BatchBALDAcquisition: [{"passes": 4, "configurations": 50}],
    strategies.CheckpointEnsembleAcquisition: [{}],
    strategies.CoreSetAcquisition: [{}, {"embeddings": "input"}],
    strategies.EntropyAcquisition: [{}, {"output": "sigmoid"}],
    strategies.LeastConfidenceAcquisition: [{}],
    strategies.MarginAcquisition: [{}],
    strategies.MCDropoutAcquisition: [
        {"passes": 4},
        {"passes": 4, "uncertainty": "expected_entropy"},
        {"passes": 4, "uncertainty": "variance"},
    ],
    strategies.NoiseStabilityAcquisition: [
        {"passes": 3},
        {"passes": 3, "method": "jvp"},
        {"passes": 3, "modules": ["net.4"]},
        {"passes": 3, "selection": "k-center"},
        {"passes": 3, "selection": "kmeans++"},
        {"passes": 3, "selection": "lcmd"},
        {"passes": 3, "selection": "topk"},
        {"passes": "inf"},
        {"passes": "inf", "selection": "topk"},
        {"passes": "inf", "directions": 1, "modules": ["net.4"]},
    ],
    strategies.ProbCoverAcquisition: [{}, {"radius": 0.3}],
    strategies.QueryByCommitteeAcquisition: [
        {"members": 2},
        {"members": 2, "disagreement": "consensus_entropy"},
        {"members": 2, "disagreement": "kl_divergence", "bootstrap": True},
    ],
    strategies.RandomAcquisition: [{}],
    strategies.TypiClustAcquisition: [{}],
    strategies.VariationRatioAcquisition: [{"passes": 4}],
}

GROUPS = [index % 30 for index in range(120)]
_MARGIN, _CORE_SET = strategies.MarginAcquisition, strategies.CoreSetAcquisition
_BADGE, _RANDOM = strategies.BADGEAcquisition, strategies.RandomAcquisition
_STABILITY = partial(strategies.NoiseStabilityAcquisition, passes=3)
_SUBSET = partial(RandomSubset, acquisition=_MARGIN, candidates=60)

# Wrappers by name, as functions of the query size.
WRAPPERS: list[tuple[str, Callable[[int], Acquisition]]] = [
    ("power", partial(StochasticBatch, acquisition=_STABILITY)),
    ("power in closed form", partial(StochasticBatch, acquisition=partial(_STABILITY, passes="inf"))),
    ("power of gradients", partial(StochasticBatch, acquisition=_BADGE, temperature=0.5)),
    ("boltzmann", partial(StochasticBatch, acquisition=_MARGIN, noise="boltzmann", temperature=0.1)),
    ("soft rank of a subset", partial(StochasticBatch, acquisition=_SUBSET, noise="soft_rank")),
    ("subset", partial(RandomSubset, acquisition=_CORE_SET, candidates=0.6)),
    ("subset of scores", partial(RandomSubset, acquisition=partial(_STABILITY, selection="topk"), candidates=60)),
    ("margin per group", partial(OncePerGroup, acquisition=_MARGIN, groups=GROUPS)),
    ("core-set per group", partial(OncePerGroup, acquisition=_CORE_SET, groups=GROUPS)),
    ("badge per group", partial(OncePerGroup, acquisition=_BADGE, groups=GROUPS, per_group=2)),
    ("mixture", partial(Mixture, acquisitions=[_MARGIN, _CORE_SET, _RANDOM], shares=[2, 1, 1])),
    ("mixture of vectors", partial(Mixture, acquisitions=[partial(_STABILITY, selection="k-center"), _BADGE])),
    ("herding", partial(UncertaintyHerding, acquisition=_MARGIN)),
    (
        "herding in closed form",
        partial(UncertaintyHerding, acquisition=partial(_STABILITY, passes="inf"), embeddings="input", temperature=2.0),
    ),
    ("max herding of a subset", partial(UncertaintyHerding, acquisition=_RANDOM, embeddings="input", candidates=60)),
    (
        "herding per group",
        partial(OncePerGroup, acquisition=partial(UncertaintyHerding, acquisition=_BADGE), groups=GROUPS),
    ),
    (
        "mixture per group",
        partial(OncePerGroup, acquisition=partial(Mixture, acquisitions=[_BADGE, _MARGIN]), groups=GROUPS),
    ),
]
