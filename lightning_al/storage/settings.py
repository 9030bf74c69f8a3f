"""The settings of a run, `config.yaml`, and which of them may change when the run is continued."""

import hashlib
import re
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.schema import REMEDY, DamagedFileError

# Settings that may change when a run is continued. Devices, strategy and accelerator can change the picks all the same,
# because training rounds otherwise there; they are allowed because a run often has to continue on another machine.
RESUMABLE_SETTINGS = (
    "config",
    "cycles",
    "data.num_workers",
    "min_answers",
    "num_preview_samples",
    "overwrite",
    "retrain",
    "target",
    "trust_checkpoints",
    "trainer.accelerator",
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.enable_autolog_hparams",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.num_nodes",
    "trainer.num_sanity_val_steps",
    "trainer.profiler",
    "trainer.strategy",
    "wait",
)

# Settings that files of earlier versions lack; there they are compared from the next time on.
LATER_SETTINGS = ("model", "trainer", "data.batch_size")

LONGEST_TEXT = 200  # of an object, such as a network, in characters

# Settings of training, which `retrain` may change too; what is picked, from what and when must stay as it was.
TRAINING_SETTINGS = ("ckpt", "data.batch_size", "data.pool_batch_size", "lr_scheduler", "model", "optimizer", "trainer")


def training_settings(config: Mapping[str, Any]) -> set[str]:
    """Return the dotted names of the settings of training."""
    if config.get("acquisition"):
        return set(TRAINING_SETTINGS)
    # the acquisition is one of the trainer's callbacks
    trainer = {f"trainer.{name}" for name in config.get("trainer") or {} if name != "callbacks"}
    return {*TRAINING_SETTINGS, *trainer} - {"trainer"}


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names; an empty mapping stays a value.

    Example:
        >>> flatten({"trainer": {"max_epochs": 3}, "seed": 0})
        {'trainer.max_epochs': 3, 'seed': 0}

    """
    if isinstance(settings, Mapping) and settings:
        parts = (flatten(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in settings.items())
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: settings} if prefix else {}


def may_change(name: str, resumable: Collection[str]) -> bool:
    """Return whether a dotted name, or a prefix of it, is among those that may change."""
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in resumable)


def describe_changes(before: Any, after: Any, resumable: Collection[str] = (), missing: Any = None) -> str:
    """Return the settings that differ, as text for an error message; empty if none does.

    Args:
        before: Nested settings.
        after: Nested settings.
        resumable: Dotted names of settings that may differ; a name takes everything below it.
        missing: The value of a setting that is not set.

    """
    old, new = flatten(before), flatten(after)
    return "; ".join(
        f"{name}: {old.get(name, missing)!r} then, {new.get(name, missing)!r} now"
        for name in dict.fromkeys((*old, *new))
        if old.get(name, missing) != new.get(name, missing) and not may_change(name, resumable)
    )


def lacking_settings(before: Any) -> list[str]:
    """Return which of `LATER_SETTINGS` the settings of a file do not have."""
    names = flatten(before)
    return [later for later in LATER_SETTINGS if not any(may_change(name, [later]) for name in names)]


def plain(value: Any) -> Any:
    """Return settings as types that YAML has, so that equal settings are equal in every process.

    Args:
        value: Mappings, lists, strings and numbers stay. Of an array, type, shape and a hash of the content are kept;
            of a function, its qualified name and a hash of its code, defaults and enclosed variables; of any other
            object its text, without an address.

    Returns:
        Nested mappings, lists, strings and numbers.

    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(entry) for entry in value), key=str)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _describe_object(value)


def _describe_object(value: Any) -> str:
    if isinstance(value, (np.ndarray, Tensor)):
        return f"{value.dtype}{tuple(value.shape)} {_digest(value.tolist())}"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value]
        parts = [_code_parts(value.__code__), value.__defaults__, value.__kwdefaults__, cells]
        return f"{value.__qualname__} {_digest(plain(parts))}"
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... {_digest(text)}"


def _code_parts(code: CodeType) -> list[Any]:
    constants = [_code_parts(entry) if isinstance(entry, CodeType) else entry for entry in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write `config.yaml`, atomically."""
    write_atomically(path, yaml.safe_dump(plain(settings), sort_keys=False))


def read_settings(path: Path) -> dict[str, Any]:
    """Read `config.yaml`.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is no YAML, or no mapping.

    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DamagedFileError(f"{path} is not valid YAML ({error}); {REMEDY}.") from error
    if not isinstance(settings, dict):
        raise DamagedFileError(f"{path} holds a {type(settings).__name__}, expected settings by name; {REMEDY}.")
    return settings
