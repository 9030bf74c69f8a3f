"""The settings of a run, `config.yaml`, and which of them may change when the run is continued."""

from collections.abc import Collection, Mapping
from typing import Any

# what may change between the processes that continue a run: none of these has a say in which samples are picked
FREE_SETTINGS = (
    "config",
    "cycles",
    "data.num_workers",
    "overwrite",
    "shown",
    "target",
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


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def is_free(name: str, free: Collection[str]) -> bool:
    """Tell whether a dotted name, or what it lies under, is among those that may change."""
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in free)


def _plain(value: Any) -> Any:
    """Turn settings into what YAML holds: mappings, lists, strings and numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
