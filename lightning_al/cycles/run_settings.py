"""The settings of a run that is started from Python, which must not change when it is continued."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import WeakSet

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al.acquisition.contract import Acquisition
from lightning_al.cycles.reset import ResetPolicy
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.storage.run_folder import RunFolder
from lightning_al.storage.settings import plain

# Settings of a trainer that change what is trained; `config.yaml` of the command line has all of them.
TRAINER_SETTINGS = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "precision", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches", "overfit_batches"),
)
SPLIT_SETTINGS = ("initial_size", "balanced_start", "candidates", "seed", "batch_size")


class UnusedObjects:
    """Check that the trainer and the model of a cycle were not used in an earlier one."""

    def __init__(self) -> None:
        self._used: WeakSet[Any] = WeakSet()

    def check(self, cycle: int, trainer: Trainer, model: LightningModule) -> None:
        """Raise if a cycle has the trainer or the model of an earlier one.

        Args:
            cycle: The number of the cycle, for the message.
            trainer: The trainer that `make` returned.
            model: The model that `make` returned.

        Raises:
            MisconfigurationException: With the remedy.

        """
        for name, value in (("trainer", trainer), ("model", model)):
            if value in self._used:
                raise MisconfigurationException(
                    f"`run_cycles(make=...)`: `make({cycle})` returned the {name} of an earlier cycle, which is "
                    f"trained already. Make the {name} inside of `make`; to start from the weights of the cycle "
                    'before, pass `run_cycles(reset="warm")`.'
                )
            self._used.add(value)


def collect_settings(
    trainer: Trainer,
    model: LightningModule,
    acquisition: Acquisition,
    datamodule: ActiveLearningDataModule,
    policy: ResetPolicy,
    ckpt: str,
) -> dict[str, Any]:
    """Return the settings that must not change when a run is continued.

    These are the arguments of the acquisition, the split and the batch size, reset and `ckpt`, the class of the model
    with its `hparams` (of `save_hyperparameters`), and `TRAINER_SETTINGS`.
    """
    name = type(acquisition).__name__
    settings: dict[str, Any] = {"class": name}
    for parameter in inspect.signature(type(acquisition)).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(acquisition, parameter.name):
            raise MisconfigurationException(
                f"`{name}({parameter.name}=...)` is not stored as `self.{parameter.name}`, so it cannot be compared "
                "when the run is continued. Store it under its name, or pass `run_cycles(config=...)`."
            )
        settings[parameter.name] = _name_classes(getattr(acquisition, parameter.name))
    collected: dict[str, Any] = plain(
        {
            "acquisition": settings,
            "data": {name: getattr(datamodule, name) for name in SPLIT_SETTINGS},
            **asdict(policy),
            "ckpt": ckpt,
            "model": {"class": type(model).__name__, "hparams": _name_classes(dict(model.hparams))},
            "trainer": {name: getattr(trainer, name) for name in TRAINER_SETTINGS},
        }
    )
    return collected


def _name_classes(value: Any) -> Any:
    """Replace classes and partials, the arguments of wrappers, by names, which are the same in every process."""
    if isinstance(value, partial):
        classes = [part for part in (value.func, *value.args) if isinstance(part, type)]  # jsonargparse wraps the class
        return {
            "class": _name_classes([*classes, value.func][0]),
            **_name_classes(value.keywords),
        }
    if isinstance(value, Mapping):
        return {name: _name_classes(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_name_classes(entry) for entry in value]
    return value.__name__ if isinstance(value, type) else value


def check_pool_file(datamodule: ActiveLearningDataModule, folder: RunFolder, overwrite: bool) -> None:
    """Raise if a datamodule has the labels of another run, which this one would repeat."""
    pool_file = datamodule.pool_file
    if pool_file is not None and (overwrite or pool_file.resolve() != folder.pool_file.resolve()):
        raise ValueError(
            f"`run_cycles`: the datamodule's labels are kept in {pool_file}, those of this run in {folder.pool_file}"
            f"{', which is overwritten' if overwrite else ''}. Make a fresh `ActiveLearningDataModule`, without "
            "`pool_file`, for every run."
        )
