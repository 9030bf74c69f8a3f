"""Check that all processes have the same pool, before they train and before they label."""

import zlib

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.scoring.failing_together import compare_with_first


def check_agreement(trainer: Trainer, datamodule: ActiveLearningDataModule) -> None:
    """Raise on every process if one of them has another pool, or is in another cycle, than the first.

    Nodes without a shared disk each read their own pool file, and would train on different labels without any sign.

    Args:
        trainer: Its process group is set up.
        datamodule: Its pool is loaded.

    Raises:
        MisconfigurationException: With the state of this process and that of the first one.

    Cost: one broadcast of a few bytes and one reduction; nothing on a single process.

    """
    if trainer.world_size == 1:
        return
    state = state_of(datamodule)
    agree, first = compare_with_first(trainer, state)
    if not agree:
        raise MisconfigurationException(
            f"The processes have different pools: process {trainer.global_rank} is in cycle {state[0]} with "
            f"{datamodule.pool!r} (digest {state[1]}), process 0 in cycle {first[0]} (digest {first[1]}). Put the run "
            "folder, or `pool_file`, on a disk that all nodes share."
        )


def state_of(datamodule: ActiveLearningDataModule) -> tuple[int, str]:
    """Return the cycle, and a digest of the pool and of what this cycle trains on."""
    # people may answer while the processes start, one after another
    answered = zlib.crc32(datamodule.labeled_indices(datamodule.cycle))
    return datamodule.cycle, f"{datamodule.pool.digest()}-{answered:08x}"
