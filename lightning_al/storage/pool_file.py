"""The pool of a run, `pool.json`: which samples were labeled in which cycle, by which strategy."""

import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.schema import DamagedFileError, from_mapping, load_json

SCHEMA_VERSION = 1
# How many numbers become text at a time: the strings of all would take many times the memory of the numbers.
NUMBERS_PER_TEXT = 65_536


@dataclass(frozen=True)
class Labeling:
    """Samples that were labeled together, by one query or as the initial set.

    Attributes:
        strategy: What chose them: `"initial"`, the class name of an acquisition, or another name by the caller.
        index_array: Dataset indices, in the order in which they were picked, 8 bytes each.
        score_array: One score per index (larger means 'label first'), or None where the strategy has none.
        seconds: Seconds that each step of the query took, by name.

    """

    strategy: str
    index_array: "array[int]"
    score_array: "array[float] | None" = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def indices(self) -> list[int]:
        """The dataset indices as a list, made anew by each read."""
        return self.index_array.tolist()

    @property
    def scores(self) -> list[float] | None:
        """The scores as a list, made anew by each read."""
        return None if self.score_array is None else self.score_array.tolist()

    def __len__(self) -> int:
        return len(self.index_array)


@dataclass(frozen=True)
class StoredLabeling:
    """A labeling as the file holds it.

    Attributes:
        strategy: As in `Labeling`.
        indices: Dataset indices.
        scores: One score per index, or None.
        seconds: As in `Labeling`.
        cycle: The position in the history, to detect a file in another order.

    """

    strategy: str
    indices: list[int]
    scores: list[float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    cycle: int = -1


@dataclass(frozen=True)
class PoolFile:
    """The content of `pool.json`.

    Attributes:
        schema_version: Version of this format.
        size: Number of samples of the dataset.
        fingerprint: Identifies the dataset; an empty string matches any.
        history: Every labeling so far, in order.

    """

    schema_version: int
    size: int
    fingerprint: str
    history: list[StoredLabeling]


def write_pool(path: str | os.PathLike[str], size: int, fingerprint: str, history: Sequence[Labeling]) -> None:
    """Write a pool as JSON, atomically, with one line per cycle, so that versions are easy to compare."""
    head = {"schema_version": SCHEMA_VERSION, "size": size, "fingerprint": fingerprint}
    body = ",\n".join(f"  {_format_labeling(cycle, labeling)}" for cycle, labeling in enumerate(history))
    write_atomically(path, f'{json.dumps(head)[:-1]},\n "history": [\n{body}\n]}}\n')


def _format_labeling(cycle: int, labeling: Labeling) -> str:
    fields = {
        "cycle": json.dumps(cycle),
        "strategy": json.dumps(labeling.strategy),
        "indices": _format_numbers(labeling.index_array),
        "scores": "null" if labeling.score_array is None else _format_numbers(labeling.score_array),
        "seconds": json.dumps(labeling.seconds, allow_nan=False),
    }
    return "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}"


def _format_numbers(numbers: "array[int] | array[float]") -> str:
    parts = (numbers[start : start + NUMBERS_PER_TEXT] for start in range(0, len(numbers), NUMBERS_PER_TEXT))
    return "[" + ", ".join(json.dumps(part.tolist(), allow_nan=False)[1:-1] for part in parts) + "]"


def read_pool(path: str | os.PathLike[str]) -> PoolFile:
    """Read a pool file.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If the file is of another version, a field is missing or of another type, or the labelings
            are out of order.

    """
    values = load_json(Path(path))
    if isinstance(values, dict):  # first, since another version may have other fields
        check_schema_version(values.get("schema_version"), os.fspath(path))
    stored = from_mapping(PoolFile, values, os.fspath(path))
    for cycle, labeling in enumerate(stored.history):
        if labeling.cycle not in (cycle, -1):
            raise DamagedFileError(
                f"{os.fspath(path)}: `history[{cycle}].cycle` is {labeling.cycle}, expected {cycle}; restore the order "
                "of its lines."
            )
    return stored


def check_schema_version(version: object, source: str) -> None:
    """Raise if a pool was stored in another format."""
    if version != SCHEMA_VERSION:
        raise DamagedFileError(
            f"{source}: `schema_version` is {version!r}, expected {SCHEMA_VERSION}; use the version of lightning_al "
            "that wrote it."
        )
