"""The checkpoints of a cycle, from which a fit that was killed continues."""

import hashlib
import pickle
import random
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.scoring.failing_together import compare_with_first

# The entry of a checkpoint that says which fit it belongs to.
KEY = "lightning_al"


class FitState(Callback):
    """Keep in every checkpoint what Lightning does not: which fit it belongs to, and the global random numbers.

    With them the shuffling and the dropout of a continued fit go on as in one that was never interrupted.

    Args:
        cycle: The cycle of the fit.
        checkpoint: The checkpoint that this fit continues from, if any.

    """

    def __init__(self, cycle: int, checkpoint: Path | None) -> None:
        self.cycle = cycle
        self.checkpoint = checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise on every process if one of them would continue from another checkpoint than the first."""
        if stage != "fit" or trainer.world_size == 1:
            return
        name = None if self.checkpoint is None else self.checkpoint.name
        agree, first = compare_with_first(trainer, name)
        if not agree:
            raise MisconfigurationException(
                f"Process {trainer.global_rank} would continue the fit of cycle {self.cycle} from checkpoint {name}, "
                f"process 0 from {first}. Put the run folder on a disk that all nodes share."
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the cycle, its labels and the random numbers."""
        datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint[KEY] = {**fit_identity(datamodule, self.cycle), "random": _random_state()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the random numbers; on several processes they are those of the first, as the seeds are."""
        _set_random_state(checkpoint[KEY]["random"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once if the fit was stopped early before the checkpoint, which Lightning does not restore."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        stopped = any(isinstance(callback, EarlyStopping) and callback.stopped_epoch for callback in callbacks)
        trainer.should_stop |= self.checkpoint is not None and stopped

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete the checkpoint that this fit continued from, which Lightning spares, if it was replaced since."""
        states = [callback.state_dict() for callback in trainer.checkpoint_callbacks]
        if self.checkpoint is not None and not _keeps_all(trainer):
            _delete({self.checkpoint} - _referenced(states))


def fit_identity(datamodule: ActiveLearningDataModule, cycle: int) -> dict[str, Any]:
    """Return what distinguishes the fit of a cycle from those of other cycles and of other labels."""
    return {"cycle": cycle, "labels": hashlib.sha256(array("q", datamodule.pool.labeled_by(cycle))).hexdigest()}


def choose_checkpoint(
    folder: Path, trainer: Trainer, datamodule: ActiveLearningDataModule | None, cycle: int, *, trusted: bool = False
) -> Path | None:
    """Return the last checkpoint of an interrupted fit, and delete what was written after it or for another fit.

    A `ModelCheckpoint` would step aside to another name, such as `last-v1.ckpt`, for files that it does not know.

    Args:
        folder: The folder of the cycle's checkpoints.
        trainer: The trainer of the cycle.
        datamodule: With the labels of the cycle, if the run has any; None chooses no checkpoint.
        cycle: The cycle that is about to be fitted.
        trusted: Load any Python object in a checkpoint, which can run any code.

    Returns:
        The checkpoint; None if there is none that this fit can continue from.

    """
    paths = _files_from_newest(folder)
    if datamodule is not None and hasattr(datamodule, "pool"):
        identity = fit_identity(datamodule, cycle)
        for position, path in enumerate(paths):
            checkpoint = _read(path, trusted)
            if _belongs(checkpoint, identity, folder):
                older = paths[position + 1 :] if _keeps_all(trainer) else []
                _delete(set(paths) - {path, *older} - _referenced(_callback_states(checkpoint)))
                return path
    _delete(paths)
    return None


@rank_zero_only
def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _keeps_all(trainer: Trainer) -> bool:
    """Return whether a `ModelCheckpoint` keeps files without listing them in its state."""
    return any(getattr(callback, "save_top_k", 1) == -1 for callback in trainer.checkpoint_callbacks)


def keep_checkpoints_in(folder: Path, trainer: Trainer) -> None:
    """Set the folder of the trainer's checkpoints where the user set none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder)


def _files_from_newest(folder: Path) -> list[Path]:
    times: dict[Path, int] = {}
    for path in folder.rglob("*.ckpt"):
        with suppress(FileNotFoundError):  # another process of the group deletes those that are not chosen
            times[path] = path.lstat().st_mtime_ns
    return sorted(times, key=times.__getitem__, reverse=True)


def _read(path: Path, trusted: bool) -> Any:
    """Return the content of a checkpoint, mapped and not read; None if it cannot be loaded."""
    if not path.is_file() or path.is_symlink():  # `save_last="link"` points to another checkpoint
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=not trusted, mmap=True)
    except pickle.UnpicklingError:
        rank_zero_warn(
            f"{path} holds Python objects beside tensors, numbers and texts, and loading these could run any code; the "
            "fit starts anew. To continue an interrupted fit from such checkpoints, pass "
            "`run_cycles(trust_checkpoints=True)` (`--trust_checkpoints true`)."
        )
    except (OSError, RuntimeError, EOFError):  # cut off by the kill
        pass
    return None


def _belongs(checkpoint: Any, identity: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a checkpoint is of this fit, written into this folder."""
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(KEY), dict):
        return False
    same_fit = all(checkpoint[KEY].get(name) == value for name, value in identity.items())
    # spelled in the same way: `ModelCheckpoint` does not restore what it knows of another folder
    return same_fit and any(state.get("dirpath") == str(folder) for state in _callback_states(checkpoint))


def _referenced(states: Iterable[Mapping[str, Any]]) -> set[Path]:
    """Return the files that `ModelCheckpoint`s list in their states."""
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    return {
        Path(path)
        for state in states
        for path in (*(state.get(name) for name in names), *state.get("best_k_models", ()))
        if path
    }


def _callback_states(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict)]


def _random_state() -> dict[str, Any]:
    """Return the global random numbers as values that load without running code."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    name, keys, *rest = state["numpy"]
    torch.set_rng_state(state["torch"].cpu())
    for device, values in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(values.cpu(), device)
    np.random.set_state((name, keys.numpy(), *rest))
    random.setstate(state["python"])
