"""The settings of a run, `config.yaml`, and which of them may change when the run is continued."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.schema import REMEDY, DamagedFileError

# Settings that may change when a run is continued. Devices, strategy and accelerator can change the picks all the same,
# because training rounds otherwise there; they are allowed because a run often has to continue on another machine.
RESUMABLE_SETTINGS = (
    "config",
    "cycles",
    "data.num_workers",
    "num_preview_samples",
    "overwrite",
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
)


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


def plain(value: Any) -> Any:
    """Return settings as types that YAML has: mappings, lists, strings and numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


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
