"""The candidates of a query, the same before training, where they are checked, and after it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.numerics.seeding import RandomStream, make_generator

if TYPE_CHECKING:
    from lightning_al.acquisition.contract import Acquisition


def query_seed(acquisition: "Acquisition", datamodule: ActiveLearningDataModule) -> int:
    """Return the seed of a strategy, which is the datamodule's unless it has one of its own."""
    return datamodule.seed if acquisition.seed is None else acquisition.seed


def subsample(
    acquisition: "Acquisition", datamodule: ActiveLearningDataModule, candidates: Sequence[int], budget: int
) -> Sequence[int]:
    """Return the candidates that a strategy measures in this cycle, ascending."""
    seed = query_seed(acquisition, datamodule)
    generator = make_generator(RandomStream.SUBSAMPLING, seed, datamodule.pool.cycle)
    return acquisition.subsample_candidates(candidates, budget, generator)


def check_bound(owner: str, candidates: int | None) -> int | None:
    """Return the argument `candidates`, the most that a strategy takes; raise if it is below 1."""
    if candidates is not None and (isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1):
        raise ValueError(
            f"`{owner}(candidates={candidates!r})`: expected an integer of at least 1, or None for no bound."
        )
    return candidates
