"""Checks before training, so that a fit that could not end in a query does not start."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al.acquisition.query_options import QueryOptions
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.numerics.seeding import RandomStream, make_generator

if TYPE_CHECKING:
    from lightning_al.acquisition.contract import Acquisition

SHARDED_STRATEGIES = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
NO_BEST_WEIGHTS = (
    "`{}` should score with the best weights (ckpt='best'), but no `ModelCheckpoint` saved any. Add one with "
    "`monitor=`, or use ckpt='last'."
)


def check_size(argument: str, size: int | float, of: str) -> int | float:
    """Return a number of samples as an int, or a share as a float.

    Args:
        argument: The argument with its value, for the message.
        size: A number of Python, NumPy or torch.
        of: The total that a share refers to, for the message.

    Raises:
        ValueError: If it is neither a whole number of at least 1 nor a share in (0, 1].

    """
    number: Any = size
    if getattr(number, "ndim", None) == 0:  # a number of NumPy or torch
        number = number.item()
    is_share = isinstance(number, float) and 0 < number <= 1
    is_count = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    if not (is_share or is_count):
        raise ValueError(
            f"{argument}: expected a number of samples (int, at least 1) or a share of {of} (float in (0, 1])."
        )
    checked: int | float = number
    return checked


def check_before_training(acquisition: "Acquisition", trainer: Trainer, num_acquisitions: int) -> None:
    """Raise if a fit of this trainer could not end in a query.

    Args:
        acquisition: The callback.
        trainer: The trainer that is about to fit.
        num_acquisitions: How many callbacks of the trainer would label.

    Raises:
        MisconfigurationException: Without an `ActiveLearningDataModule`; with a strategy that shards the module or
            trains in processes of its own without a pool file; with a second acquisition; with ckpt="best" and no
            `ModelCheckpoint`.

    """
    name = type(acquisition).__name__
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, ActiveLearningDataModule):
        raise MisconfigurationException(
            f"`{name}` needs an `ActiveLearningDataModule`, got {type(datamodule).__name__}: wrap your data, as in "
            "`trainer.fit(model, ActiveLearningDataModule(MyDataModule(), initial_size=1000))`."
        )
    if isinstance(trainer.strategy, SHARDED_STRATEGIES):
        raise MisconfigurationException(
            f"`{name}` scores a clone of the whole module, which {type(trainer.strategy).__name__} keeps in shards "
            'over the processes. Use strategy="ddp" or a single device.'
        )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher) and datamodule.pool_file is None:
        raise MisconfigurationException(
            f"`{name}`: this strategy trains in processes of its own, from which labels come back only through a "
            'file. Pass `ActiveLearningDataModule(pool_file="pool.json")`, or use strategy="ddp".'
        )
    if num_acquisitions > 1:
        raise MisconfigurationException(
            "Two acquisition callbacks would both label at fit end. Keep one, or wrap both in one strategy."
        )
    _check_candidates(acquisition, datamodule)
    if QueryOptions.of(trainer).ckpt == "best" and trainer.checkpoint_callback is None:
        raise MisconfigurationException(NO_BEST_WEIGHTS.format(name))


def _check_candidates(acquisition: "Acquisition", datamodule: ActiveLearningDataModule) -> None:
    """Raise if no more candidates would be measured than are picked, though the pool is larger."""
    pool, size = datamodule.pool, acquisition.query_size
    budget = acquisition.budget(pool.size)
    if budget >= pool.num_unlabeled:  # the last query takes all that is left
        return
    candidates: Sequence[int] = datamodule.candidate_indices()
    seed = datamodule.seed if acquisition.seed is None else acquisition.seed
    generator = make_generator(RandomStream.SUBSAMPLING, seed, pool.cycle)
    count = len(acquisition.subsample_candidates(candidates, budget, generator))
    if count <= budget:
        raise MisconfigurationException(
            f"`{type(acquisition).__name__}(query_size={size})`: {budget} samples are to be picked from {count} "
            f"candidates, though {pool.num_unlabeled} are unlabeled, so the strategy has no choice. Raise "
            "`candidates`, or lower `query_size`."
        )
