"""The samples that wait for people, `cycle-NN/queue.jsonl`: what is asked about each, and what the model thinks."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.schema import REMEDY, DamagedFileError, from_mapping, parse_json

FILE_NAME = "queue.jsonl"
SCHEMA_VERSION = 1

Kind: TypeAlias = Literal["class", "classes", "number"]
"""What an answer is: one class, any number of classes, or a number."""


@dataclass(frozen=True)
class TopClass:
    """A class that the model considers.

    Attributes:
        label: Its name, or its number where it has no name.
        probability: Its predicted probability.

    """

    label: Any
    probability: float


@dataclass(frozen=True)
class QueuedSample:
    """One sample that waits for an answer.

    Attributes:
        index: The dataset index.
        path: Its file, absolute or relative to the working directory of the run; None where it has none.
        prediction: The predicted label, as `Labels` takes labels; None before the first training.
        top_classes: The most probable classes, the first one first.
        score: The score by the strategy, if it has one.

    """

    index: int
    path: str | None = None
    prediction: Any = None
    top_classes: list[TopClass] = field(default_factory=list)
    score: float | None = None

    @property
    def title(self) -> str:
        """What a person knows the sample by, as text that any encoding has: names of files may be no text."""
        return f"sample {self.index}" if self.path is None else self.path.encode(errors="replace").decode()


@dataclass(frozen=True)
class Queue:
    """The samples that wait in one cycle, in the order in which they were picked.

    Attributes:
        cycle: The cycle that asks.
        labels: The file of the answers, relative to the run folder.
        kind: What an answer is: "class", "classes" or "number".
        classes: The names of the classes in the order of their numbers; empty for numbers.
        samples: What is asked.
        schema_version: Version of this format.

    """

    cycle: int
    labels: str = "labels.jsonl"
    kind: str = "class"
    classes: list[str] = field(default_factory=list)
    samples: list[QueuedSample] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION


def write_queue(run: Path, queue: Queue) -> Path:
    """Write the queue of a cycle, atomically: a line about the queue, then one line per sample.

    Args:
        run: The run folder.
        queue: The queue.

    Returns:
        The path of the file.

    """
    path = run / f"cycle-{queue.cycle:02d}" / FILE_NAME
    head = {name: value for name, value in asdict(queue).items() if name != "samples"}
    lines = [head, *map(asdict, queue.samples)]
    write_atomically(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    return path


def latest_queue(run: Path) -> Path | None:
    """Return the queue file of the last cycle that has one, or None."""
    numbered = [(int(path.parent.name[6:]), path) for path in run.glob(f"cycle-[0-9]*/{FILE_NAME}")]
    return max(numbered)[1] if numbered else None


def read_queue(path: Path) -> Queue:
    """Read a queue.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If a line is no JSON, a field is missing or of another type, or an index occurs twice.

    """
    lines = [
        parse_json(line, f"{path}, line {number}") for number, line in enumerate(path.read_bytes().splitlines(), 1)
    ]
    head = from_mapping(Queue, lines[0] if lines else None, f"{path}, line 1")
    if head.schema_version != SCHEMA_VERSION or head.kind not in get_args(Kind):
        raise DamagedFileError(
            f"{path}, line 1: `schema_version` and `kind` are {head.schema_version} and {head.kind!r}, expected "
            f"{SCHEMA_VERSION} and one of {', '.join(get_args(Kind))}; {REMEDY}."
        )
    for number, values in enumerate(lines[1:], start=2):
        head.samples.append(from_mapping(QueuedSample, values, f"{path}, line {number}"))
    _check_distinct(head.samples, path)
    return head


def _check_distinct(samples: Sequence[QueuedSample], path: Path) -> None:
    counts = Counter(sample.index for sample in samples)
    repeated = [index for index, count in counts.items() if count > 1]
    if repeated:
        raise DamagedFileError(f"{path} asks about {repeated[:5]} more than once; {REMEDY}.")
