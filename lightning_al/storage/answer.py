"""One answer of a person: what a line of `labels.jsonl` holds, and which labels there are."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

KINDS = 'the name or the number of a class, a list of them, a finite number, a file as {"file": "masks/7.png"}, or None'


@dataclass(frozen=True)
class Answer:
    """The answer of a person about one sample.

    Attributes:
        index: The dataset index of the sample.
        label: As in `Labels`; None for "cannot say".
        by: Who answered.
        at: When, in ISO 8601.
        seconds: How long it took; None where nobody measured it.
        withdrawn: Whether the answer of the index is taken back, so that the sample is asked again.

    """

    index: int
    label: Any
    by: str = ""
    at: str = ""
    seconds: float | None = None
    withdrawn: bool = False

    def to_line(self) -> str:
        """Return the answer as a line of the file, without what is not set."""
        unset = {"by": "", "at": "", "seconds": None, "withdrawn": False}
        values = {name: value for name, value in asdict(self).items() if name not in unset or value != unset[name]}
        return json.dumps(values, allow_nan=False) + "\n"

    def complaint(self, classes: Sequence[str] | None) -> str:
        """Return what is wrong with the answer, as a clause of a sentence, or an empty string.

        Args:
            classes: The names of the classes; None allows any name and number.

        """
        if type(self.index) is not int or self.index < 0:
            return f"`index` is {self.index!r}, expected a dataset index"
        if not isinstance(self.by, str):
            return f"`by` is {self.by!r}, expected a name"
        if self.seconds is not None and (type(self.seconds) not in (int, float) or not 0 <= self.seconds < math.inf):
            return f"`seconds` is {self.seconds!r}, expected a time"
        return _label_complaint(self.label, classes)


def to_plain(label: Any) -> Any:
    """Return a label with scalars of NumPy and torch as Python numbers, and tuples as lists."""
    if isinstance(label, (list, tuple)):
        return [to_plain(entry) for entry in label]
    return label.item() if hasattr(label, "item") else label


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def classes_complaint(classes: Any) -> str:
    """Return why a value is no list of names of classes, as a clause of a sentence, or an empty string."""
    names = classes if isinstance(classes, (list, tuple)) else []
    if names and all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names):
        return ""
    return f'expected distinct names of classes, such as ["cat", "dog"], got {classes!r}'


def _label_complaint(label: Any, classes: Sequence[str] | None) -> str:
    if label is None or (isinstance(label, dict) and label.keys() == {"file"} and isinstance(label["file"], str)):
        return ""
    if isinstance(label, list):
        if len(set(map(str, label))) < len(label):
            return f"{label!r} names a class twice"
        complaints = (class_complaint(entry, classes) for entry in label)
        return next(filter(None, complaints), "")
    if classes is None and isinstance(label, float) and math.isfinite(label):
        return ""
    return class_complaint(label, classes)


def class_complaint(label: Any, classes: Sequence[str] | None) -> str:
    """Return why a label is not the name or the number of one class, as a clause, or an empty string."""
    if type(label) not in (str, int):  # exactly: True is no number
        return f"the label {label!r} is none of these: {KINDS}"
    if classes is None or (label in classes if isinstance(label, str) else 0 <= label < len(classes)):
        return ""
    names = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    return f"the label {label!r} is none of the {len(classes)} classes ({names}), or numbers below {len(classes)}"
