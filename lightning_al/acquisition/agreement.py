"""Processes agree on the pool before they train on it and before they add to it, or all of them stop."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al.data.datamodule import ActiveLearningDataModule


def check_agreement(trainer: Trainer, datamodule: ActiveLearningDataModule) -> None:
    """Raise on every process if one of them has another pool, or is in another cycle, than the first.

    Nodes without a shared disk each read a pool file of their own: one would train on other labels than the next, and
    nothing would show it.

    Args:
        trainer: Its process group is set up.
        datamodule: Its pool is loaded.

    Raises:
        MisconfigurationException: With what this process has and what the first one has.

    Cost: one broadcast of a few bytes and one reduction; nothing on a single process.

    """
    if trainer.world_size == 1:
        return
    state = (datamodule.cycle, datamodule.pool.digest())
    first = trainer.strategy.broadcast(state)
    # every process votes, so that all of them raise and none waits for another
    if not trainer.strategy.reduce_boolean_decision(state == first):
        raise MisconfigurationException(
            f"The processes have different pools: process {trainer.global_rank} is in cycle {state[0]} with "
            f"{datamodule.pool!r} (digest {state[1]}), process 0 in cycle {first[0]} (digest {first[1]}). Put the run "
            "folder, or `pool_file`, on a disk that all nodes share."
        )
