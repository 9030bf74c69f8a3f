"""The settings of a run that is started from Python, which must not change when it is continued."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al.acquisition.contract import Acquisition
from lightning_al.cycles.reset import ResetPolicy
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.storage.run_folder import RunFolder


def collect_settings(
    acquisition: Acquisition, datamodule: ActiveLearningDataModule, policy: ResetPolicy, ckpt: str
) -> dict[str, Any]:
    """Return the settings that must not change when a run is continued: acquisition, split, reset and `ckpt`."""
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
        settings[parameter.name] = _name_objects(getattr(acquisition, parameter.name))
    split = ("initial_size", "balanced_start", "candidates", "seed")
    return {
        "acquisition": settings,
        "data": {name: getattr(datamodule, name) for name in split},
        **asdict(policy),
        "ckpt": ckpt,
    }


def _name_objects(value: Any) -> Any:
    """Replace classes and partials, the arguments of wrappers, by names, which are the same in every process."""
    if isinstance(value, partial):
        classes = [part for part in (value.func, *value.args) if isinstance(part, type)]  # jsonargparse wraps the class
        return {
            "class": _name_objects([*classes, value.func][0]),
            **_name_objects(value.keywords),
        }
    if isinstance(value, Mapping):
        return {name: _name_objects(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_name_objects(entry) for entry in value]
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value


def check_pool_file(datamodule: ActiveLearningDataModule, folder: RunFolder, overwrite: bool) -> None:
    """Raise if a datamodule has the labels of another run, which this one would repeat."""
    pool_file = datamodule.pool_file
    if pool_file is not None and (overwrite or pool_file.resolve() != folder.pool_file.resolve()):
        raise ValueError(
            f"`run_cycles`: the datamodule's labels are kept in {pool_file}, those of this run in {folder.pool_file}"
            f"{', which is overwritten' if overwrite else ''}. Make a fresh `ActiveLearningDataModule`, without "
            "`pool_file`, for every run."
        )
