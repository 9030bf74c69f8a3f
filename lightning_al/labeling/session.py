"""What people answer about a queue: which sample is next for whom, what is done, and what is left."""

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from lightning_al.storage.labels_file import Labels
from lightning_al.storage.queue_file import Queue, QueuedSample

# Seconds for which a sample that one window displays is not given to another.
RESERVED_SECONDS = 300.0
# Answers of which the pace is the mean.
PACE_ANSWERS = 20
# Samples that a page loads ahead.
NUM_UPCOMING = 2
KEYS = "123456789abcdefghijklmnopqrstuvwxyz0"


class LabelingSession:
    """A queue with its answers, for any number of windows and threads; each answer is on disk when `answer` returns.

    Args:
        queue: What is asked.
        labels: The answers, which other processes may add to.
        suggest: Whether a sample comes with what the model predicts.

    Raises:
        ValueError: If the queue asks for classes and names none.

    """

    def __init__(self, queue: Queue, labels: Labels, suggest: bool = False) -> None:
        if queue.kind != "number" and not queue.classes:
            raise ValueError(
                f"The queue of cycle {queue.cycle} asks for classes and names none: expected `Labels(classes=[...])` "
                "in the run that wrote it."
            )
        self.queue, self.labels, self.suggest = queue, labels, suggest
        self._by_index = {sample.index: sample for sample in queue.samples}
        self._displayed: dict[str, tuple[int, float]] = {}  # by window: the sample, and since when
        self._lock = threading.Lock()

    def task(self) -> dict[str, Any]:
        """Return what stays the same for all samples: the kind of the answers, the classes and their keys."""
        classes = self.queue.classes
        return {"kind": self.queue.kind, "classes": classes, "keys": assign_keys(classes), "suggest": self.suggest}

    def state(self, window: str, by_class: bool = False) -> dict[str, Any]:
        """Return the sample that a window displays next, the ones after it, and the progress.

        Args:
            window: Identifies the window; it keeps its sample when it is loaded again.
            by_class: Whether to ask in the order of the predicted classes instead of that of the picks.

        """
        with self._lock:
            self.labels.read()
            waiting = self._waiting(by_class)
            sample = self._next(window, waiting)
            upcoming = [other.index for other in waiting if sample is not None and other.index != sample.index]
            return {
                "sample": None if sample is None else self._describe(sample),
                "upcoming": upcoming[:NUM_UPCOMING],
                "progress": self._progress(),
            }

    def answer(self, index: int, label: Any, by: str = "", seconds: float | None = None) -> bool:
        """Add an answer, unless the sample has one already, as by another window or by a request that is repeated.

        Returns:
            Whether the answer was added.

        Raises:
            ValueError: If the sample is not in the queue, or the label is of another kind.

        """
        self.sample(index)
        if not _is_of_kind(label, self.queue.kind):
            raise ValueError(f"Sample {index}: expected {_EXPECTED[self.queue.kind]} or null, got {label!r}.")
        with self._lock:
            self.labels.read()
            if index in self.labels:
                return False
            self.labels.append(index, label, by=by, seconds=seconds)
            return True

    def undo(self, index: int, window: str, by: str = "") -> None:
        """Withdraw the answer of a sample, which the window then displays; without an answer nothing is written."""
        self.sample(index)
        with self._lock:
            self.labels.read()
            if index in self.labels:
                self.labels.withdraw(index, by=by)
            self._displayed[window] = (index, time.monotonic())

    def sample(self, index: int) -> QueuedSample:
        """Return a sample of the queue; raise ValueError if it has no such sample."""
        if index not in self._by_index:
            raise ValueError(f"Sample {index!r} is not in the queue of cycle {self.queue.cycle}.")
        return self._by_index[index]

    def summary(self) -> dict[str, Any]:
        """Return what was answered: how often each class, and every sample with its label."""
        with self._lock:
            self.labels.read()
            answers = [answer for index, answer in self.labels.answers.items() if index in self._by_index]
            progress = self._progress()
        labels = [answer.label for answer in answers if answer.label is not None]
        entries = [self._name(entry) for label in labels for entry in (label if isinstance(label, list) else [label])]
        counts = Counter(entries) if self.queue.kind != "number" else {}
        return {
            "progress": progress,
            "counts": [[name, counts[name]] for name in self.queue.classes if counts],
            "range": [min(entries), max(entries)] if self.queue.kind == "number" and entries else None,
            "minutes": sum(answer.seconds or 0.0 for answer in answers) / 60,
            "answers": [
                {"index": answer.index, "title": self._by_index[answer.index].title, "label": self._name(answer.label)}
                for answer in reversed(answers)
            ],
        }

    def _waiting(self, by_class: bool) -> list[QueuedSample]:
        waiting = [sample for sample in self.queue.samples if sample.index not in self.labels]
        return sorted(waiting, key=lambda sample: str(self._name(sample.prediction))) if by_class else waiting

    def _next(self, window: str, waiting: Sequence[QueuedSample]) -> QueuedSample | None:
        now = time.monotonic()
        displayed = self._displayed.get(window, (None, now))[0]
        elsewhere = {
            index
            for other, (index, since) in self._displayed.items()
            if other != window and now - since < RESERVED_SECONDS
        }
        candidates = [
            *(sample for sample in waiting if sample.index == displayed),
            *(sample for sample in waiting if sample.index not in elsewhere),
            *waiting,  # better twice than never
        ]
        if not candidates:
            return None
        self._displayed[window] = (candidates[0].index, now)
        return candidates[0]

    def _progress(self) -> dict[str, Any]:
        answers = [answer for index, answer in self.labels.answers.items() if index in self._by_index]
        timed = [answer.seconds for answer in reversed(answers) if answer.seconds is not None]
        seconds = sum(islice(timed, PACE_ANSWERS))
        return {
            "total": len(self.queue.samples),
            "left": len(self.queue.samples) - len(answers),
            "set_aside": sum(answer.label is None for answer in answers),
            "per_minute": 60 * min(len(timed), PACE_ANSWERS) / seconds if seconds > 0 else None,
        }

    def _describe(self, sample: QueuedSample) -> dict[str, Any]:
        described = {"index": sample.index, "title": sample.title}
        if self.suggest:
            described["prediction"] = self._name(sample.prediction)
            described["top_classes"] = [[self._name(top.label), top.probability] for top in sample.top_classes]
        return described

    def _name(self, label: Any) -> Any:
        """Return a label with the names of classes instead of their numbers."""
        if isinstance(label, list):
            return [self._name(entry) for entry in label]
        if self.queue.kind != "number" and type(label) is int and 0 <= label < len(self.queue.classes):
            return self.queue.classes[label]
        return label


_EXPECTED = {"class": "the name of a class", "classes": "a list of names of classes", "number": "a finite number"}


def _is_of_kind(label: Any, kind: str) -> bool:
    if kind == "number":
        return label is None or (type(label) in (int, float) and math.isfinite(label))
    if kind == "classes" and isinstance(label, list):
        return all(isinstance(entry, str) for entry in label)
    return label is None or (kind == "class" and isinstance(label, str))


def assign_keys(classes: Sequence[str]) -> dict[str, str]:
    """Return the class of each key: a class whose name is one digit or letter has that, others the next free one.

    Example:
        >>> assign_keys(["cat", "dog", "1"])
        {'1': '1', '2': 'cat', '3': 'dog'}

    """
    keys = {name.lower(): name for name in reversed(classes) if len(name) == 1 and name.lower() in KEYS}
    named = set(keys.values())
    free = (key for key in KEYS if key not in keys)
    keys |= dict(zip(free, (name for name in classes if name not in named), strict=False))
    return dict(sorted(keys.items()))
