"""Checks before training, so that a fit that could not end in a query does not start."""

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_al.acquisition.candidates import subsample
from lightning_al.acquisition.query_options import NO_BEST_WEIGHTS, QueryOptions
from lightning_al.data.datamodule import ActiveLearningDataModule

if TYPE_CHECKING:
    from lightning_al.acquisition.contract import Acquisition

SHARDED_STRATEGIES = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)


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
        ValueError: If a file of embeddings does not fit the dataset.

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
    if acquisition.embedding_source is not None:
        acquisition.embedding_source.check(datamodule.pool.size)
    if QueryOptions.of(trainer).ckpt == "best" and trainer.checkpoint_callback is None:
        raise MisconfigurationException(NO_BEST_WEIGHTS.format(name))


def _check_candidates(acquisition: "Acquisition", datamodule: ActiveLearningDataModule) -> None:
    """Raise if no more candidates would be measured than are picked, though the pool is larger."""
    pool, size = datamodule.pool, acquisition.query_size
    budget = acquisition.budget(pool.size)
    if budget >= pool.num_unlabeled:  # the last query takes all that is left
        return
    candidates = datamodule.candidate_indices()
    count = len(subsample(acquisition, datamodule, candidates, budget))
    if count <= budget:
        raise MisconfigurationException(
            f"`{type(acquisition).__name__}(query_size={size})`: {budget} samples are to be picked from {count} "
            f"candidates, though {pool.num_unlabeled} are unlabeled, so the strategy has no choice. Raise "
            "`candidates`, or lower `query_size`."
        )
    bound = acquisition.max_candidates
    if bound is not None and count == bound < len(candidates):
        rank_zero_info(
            f"{type(acquisition).__name__}: its cost grows with the square of the candidates, so each query draws "
            f"{bound} of them at random ({len(candidates)} now). `candidates=` changes the number."
        )
