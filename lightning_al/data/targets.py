"""The target of a sample, its class or classes, and the inputs without the target."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

from torch import Tensor

from lightning_al.data.batch import INPUT_KEYS, LABEL_KEYS, describe

# Further names of inputs: what tells samples apart, but is never looked for as the argument of `forward`.
INPUT_NAMES = (
    *INPUT_KEYS,
    *("text", "sentence", "tokens", "audio", "video", "edge_index", "edge_attr", "pos", "path", "file_name", "id"),
)

LabelKey: TypeAlias = int | str
"""Where a sample has its target: a position, a key of a mapping or the name of an attribute."""

Label: TypeAlias = int | tuple[int, ...]
"""The class of a sample, or all its classes where a sample may have several."""

REMEDY = (
    "Declare it by `ActiveLearningDataModule(label_key=...)`, a position or a key; or pass explicit indices as "
    "`initial_size` and leave `balanced_start` off."
)


class AmbiguousTargetError(ValueError):
    """A sample with several entries that may be its target; the message names the remedy."""


def label_of(sample: Any, label_key: LabelKey | None = None) -> Label:
    """Return the class of one sample of a dataset.

    Args:
        sample: (input, target), or a mapping, dataclass or graph with one of the usual names (`label`, `target`, `y`).
        label_key: Where the target is; None takes the only place where it can be.

    Returns:
        The class as an integer; the classes of a multi-label target, a vector of zeros and ones.

    Raises:
        ValueError: If the target has no class: a float, a mask, a text.
        AmbiguousTargetError: If more than one entry may be the target.

    """
    return to_labels([find_target(sample, label_key)])[0]


def to_labels(targets: Iterable[Any]) -> list[Label]:
    """Return the classes of targets: integers, or vectors of zeros and ones that all have the same length.

    Raises:
        ValueError: If a target is neither.

    """
    labels, widths = [], set()
    for target in targets:
        label, width = _to_label(target)
        labels.append(label)
        widths.add(width)
    if len(widths) > 1:  # such as sequences of binary tags
        raise ValueError(f"Targets of different lengths ({sorted(widths)[:5]}) are no classes. {REMEDY}")
    return labels


def find_target(sample: Any, label_key: LabelKey | None = None) -> Any:
    """Return the target of a sample; arguments and errors as for `label_of`."""
    names = field_names(sample)
    if label_key is not None:
        try:
            return entry_of(sample, label_key)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"`ActiveLearningDataModule(label_key={label_key!r})`: expected a position or a key of a sample, "
                f"got a sample without it: {describe(sample)}."
            ) from error
    usual = [name for name in names or () if name in LABEL_KEYS]
    if len(usual) == 1:
        return entry_of(sample, usual[0])
    positional = _is_sequence(sample)
    if len(usual) > 1 or (positional and len(sample) > 2):
        raise AmbiguousTargetError(f"More than one entry of {describe(sample)} may be its target. {REMEDY}")
    if positional and len(sample) == 2:
        return sample[1]
    raise ValueError(
        f"Found no target in {describe(sample)}: expected (input, target) or one of the names "
        f"{', '.join(LABEL_KEYS)}. {REMEDY}"
    )


def inputs_of(sample: Any, label_key: LabelKey | None = None) -> Any:
    """Return what identifies a sample, and never its target, which is not even read.

    Args:
        sample: A sample or a batch.
        label_key: Where the target is, if it is declared.

    Returns:
        The first entry of a tuple or list; the entries with names of inputs of a mapping, dataclass or graph, or all
        but the target where no name is known; anything else as it is.

    """
    names = field_names(sample)
    inputs = [name for name in names or () if name in INPUT_NAMES and name != label_key]
    if _is_sequence(sample) and not inputs:
        first = 1 if label_key in (0, -len(sample)) else 0
        return sample[first] if first < len(sample) else None
    if names is None:
        return sample
    others = [name for name in names if name not in LABEL_KEYS and name != label_key]
    return {name: entry_of(sample, name) for name in inputs or others}


def field_names(value: Any) -> list[Any] | None:
    """Return the names of the entries of a mapping, named tuple, dataclass, graph or plain object; None without any."""
    if isinstance(value, (Tensor, str, bytes, type)) or hasattr(value, "__array__"):
        return None
    if isinstance(value, Mapping) or _is_keyed(value):
        return list(value.keys())
    if isinstance(value, tuple):
        return list(getattr(value, "_fields", ())) or None
    if is_dataclass(value):
        return [field.name for field in fields(value)]
    if hasattr(value, "__array_interface__") or callable(value):  # a picture
        return None
    return [name for name in getattr(value, "__dict__", {}) if not name.startswith("_")] or None


def entry_of(value: Any, name: Any) -> Any:
    """Return an entry by a name of `field_names`, or by its position."""
    if isinstance(value, Mapping) or _is_keyed(value) or isinstance(name, int):
        return value[name]
    return getattr(value, name)


def _is_keyed(value: Any) -> bool:
    """Return whether a value is read by keys without being a mapping, as graphs of PyTorch Geometric are."""
    return callable(getattr(value, "keys", None)) and hasattr(value, "__getitem__")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _to_label(target: Any) -> tuple[Label, int]:
    """Return the class or classes of a target, and its length if it is a vector."""
    if isinstance(target, int):
        return int(target), 1
    shape = [length for length in getattr(target, "shape", (0, 0)) if length != 1]
    if not shape and isinstance(number := target.item(), int):
        return int(number), 1
    if len(shape) == 1:
        entries = target.reshape(-1).tolist()
        if entries and all(entry in (0, 1) for entry in entries):
            return tuple(position for position, entry in enumerate(entries) if entry), len(entries)
    raise ValueError(
        f"Found no class in the target {describe(target)}: expected an integer, or a vector of zeros and ones. {REMEDY}"
    )
