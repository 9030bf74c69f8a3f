"""One file per wrapper: an acquisition that changes the query of any other one."""

from lightning_al.wrappers.mixture import Mixture
from lightning_al.wrappers.once_per_group import OncePerGroup
from lightning_al.wrappers.random_subset import RandomSubset
from lightning_al.wrappers.stochastic_batch import StochasticBatch
from lightning_al.wrappers.uncertainty_herding import UncertaintyHerding

__all__ = ["Mixture", "OncePerGroup", "RandomSubset", "StochasticBatch", "UncertaintyHerding"]
