"""What must not change when a run is continued, as far as a Python caller says it."""

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
    """Collect what must not change when a run is continued, as far as a Python caller tells it."""
    name = type(acquisition).__name__
    settings: dict[str, Any] = {"class": name}
    for parameter in inspect.signature(type(acquisition)).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(acquisition, parameter.name):
            raise MisconfigurationException(
                f"`{name}({parameter.name}=...)` is not kept as `self.{parameter.name}`, so nobody could tell whether "
                "it is the same when the run is continued. Store it under its name, or pass `run_cycles(config=...)`."
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
    """Replace what a wrapper is given, classes and partials of them, by names, which are the same in every process."""
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
    """Refuse a datamodule that brings the labels of another run, which this one would replay."""
    pool_file = datamodule.pool_file
    if pool_file is not None and (overwrite or pool_file.resolve() != folder.pool_file.resolve()):
        raise ValueError(
            f"`run_cycles`: the datamodule's labels belong in {pool_file}, those of this run in {folder.pool_file}"
            f"{', which is overwritten' if overwrite else ''}. Make a fresh `ActiveLearningDataModule`, without "
            "`pool_file`, for every run."
        )
