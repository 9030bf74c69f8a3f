"""The answers of people, `labels.jsonl`: one line per answer, appended and synced, never rewritten."""

import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_al.storage.answer import Answer, class_complaint, classes_complaint, now, to_plain
from lightning_al.storage.atomic_write import sync_folder
from lightning_al.storage.schema import REMEDY, DamagedFileError, from_mapping, parse_json

SCHEMA_VERSION = 1
# Seconds to wait for another writer, which holds the lock for one synced write.
LOCK_TIMEOUT = 30.0


class Labels(Mapping[int, Any]):
    """The labels that people gave, by dataset index, in a file that any number of processes may append to.

    The file has one JSON object per line, each forced to disk before `append` returns. The last line of an index
    counts. Under a lock, a writer first cuts off the torn line that a crash has left; such a line was never confirmed.

    A label is the name or the number of a class, a list of names or numbers of classes (multi-label), a number
    (regression), a mapping `{"file": ...}` (text spans, masks), or None to set the sample aside.

    Args:
        path: The file; made by the first answer.
        classes: The names of the classes, in the order of their numbers; None takes those of the first line of the
            file, or any label where it names none. They are written into the first line of a new file.
        read_file: Returns the training target in a file, for labels such as `{"file": "masks/7.png"}`, whose path is
            relative to the folder of `path`.
        multi_label: Whether a sample may have several classes, so that people are asked for all of them.

    Raises:
        ValueError: If the classes are not distinct texts, or not those of the file.
        DamagedFileError: If a line is damaged or has another label than the classes allow, with the number of the line.

    Example:
        >>> labels = Labels(getfixture("tmp_path") / "labels.jsonl", classes=["cat", "dog"])
        >>> labels.append(7, "dog", by="Ada", seconds=1.5).label
        'dog'
        >>> labels[7], labels.target_of(7), 8 in labels
        ('dog', 1, False)
        >>> _ = labels.append(8, None)
        >>> labels.labeled, labels.set_aside
        ([7], [8])
        >>> labels.withdraw(7)
        >>> 7 in labels
        False

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        classes: Sequence[str] | None = None,
        read_file: Callable[[Path], Any] | None = None,
        multi_label: bool = False,
    ) -> None:
        self.path = Path(path)
        complaint = "" if classes is None else classes_complaint(classes)
        if complaint:
            raise ValueError(f"`Labels(classes=...)`: {complaint}.")
        self.read_file = read_file
        self.multi_label = multi_label
        self._given_classes = None if classes is None else list(classes)
        self._warned_at = -1
        self._forget()
        self.read()

    def __getitem__(self, index: int) -> Any:
        return self._answers[index].label

    def __iter__(self) -> Iterator[int]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def __repr__(self) -> str:
        return f"Labels({os.fspath(self.path)!r}, {len(self.labeled)} labeled, {len(self.set_aside)} set aside)"

    @property
    def labeled(self) -> list[int]:
        """The indices that have a label, in ascending order."""
        return sorted(index for index, answer in self._answers.items() if answer.label is not None)

    @property
    def set_aside(self) -> list[int]:
        """The indices that nobody could label, in ascending order."""
        return sorted(index for index, answer in self._answers.items() if answer.label is None)

    @property
    def answers(self) -> dict[int, Answer]:
        """The answer that counts by index, in the order of the file."""
        return dict(self._answers)

    def read(self) -> None:
        """Read what any process appended since the last time; only this and the methods that write read the file.

        Warns if the last line is torn.
        """
        unterminated = self._read_lines()
        if unterminated:  # by a writer at work, or by one that was killed: the lock tells which
            with self._lock():
                unterminated = self._read_lines()
        if unterminated and not self._apply_if_complete(unterminated):
            self._warn_of_torn_line(unterminated)

    def append(self, index: int, label: Any, *, by: str = "", seconds: float | None = None) -> Answer:
        """Add an answer; it is on disk when this returns.

        Args:
            index: The dataset index.
            label: As in the class; None sets the sample aside.
            by: Who answered.
            seconds: How long it took.

        Returns:
            The answer as the file has it.

        Raises:
            ValueError: If the label is none of the classes or of the kinds of labels.
            DamagedFileError: If the file is damaged; nothing is written then.
            TimeoutError: If another writer holds the lock for half a minute.

        """
        answer = Answer(operator.index(index), to_plain(label), by, now(), seconds)
        self.append_all([answer])
        return answer

    def append_all(self, answers: Iterable[Answer]) -> None:
        """Add answers by one write; errors as for `append`, and nothing is written if one of them is refused."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            unterminated = self._read_lines()
            text = ""
            for answer in answers:
                complaint = answer.complaint(self.classes)
                if complaint:
                    raise ValueError(f"`Labels.append({answer.index}, {answer.label!r})`: {complaint}.")
                text += answer.to_line()
            if self._apply_if_complete(unterminated):
                text = "\n" + text
            elif unterminated:
                self._warn_of_torn_line(unterminated)
                os.truncate(self.path, self._position)
            if self.classes and self._position == 0 and not text.startswith("\n"):
                text = json.dumps({"schema_version": SCHEMA_VERSION, "classes": self.classes}) + "\n" + text
            self._write(text.encode())
            self._read_lines()

    def withdraw(self, index: int, *, by: str = "") -> None:
        """Take the answer of an index back, by a line that says so; the sample counts as never answered."""
        self.append_all([Answer(operator.index(index), None, by, now(), withdrawn=True)])

    def class_to_number(self, label: str | int) -> int:
        """Return the number of a class.

        Raises:
            ValueError: If there is no such class, or the names of the classes are unknown.

        """
        complaint = class_complaint(label, self._known_classes(label))
        if complaint:
            raise ValueError(f"`Labels.class_to_number({label!r})`: {complaint}.")
        return self._known_classes(label).index(label) if isinstance(label, str) else label

    def target_of(self, index: int) -> Any:
        """Return what training takes for the label of an index.

        Returns:
            The number of a class; zeros and ones, one per class, for a list of classes; a number as it is; what
            `read_file` returns for a file.

        Raises:
            KeyError: If the index has no answer.
            ValueError: If it is set aside, or `classes` or `read_file` is missing.

        """
        label = self[index]
        if isinstance(label, list):
            numbers = {self.class_to_number(entry) for entry in label}
            return [int(number in numbers) for number in range(len(self._known_classes(label)))]
        if isinstance(label, dict) and self.read_file is not None:
            return self.read_file(self.path.parent / label["file"])
        if label is None or isinstance(label, dict):
            remedy = "leave out the indices in `set_aside`" if label is None else "pass `Labels(read_file=...)`"
            raise ValueError(f"`Labels.target_of({index})`: the label is {label!r}, which is no target; {remedy}.")
        return self.class_to_number(label) if isinstance(label, str) else label

    def _known_classes(self, label: Any) -> list[str]:
        if self.classes is None:
            raise ValueError(f"{self.path} names no classes, which {label!r} needs: expected `Labels(classes=[...])`.")
        return self.classes

    def _lock(self) -> BaseFileLock:
        path = Path(os.path.realpath(self.path))  # so that two names of one file share a lock
        return FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_TIMEOUT)

    def _forget(self) -> None:
        self.classes = self._given_classes
        self._answers: dict[int, Answer] = {}
        self._position = self._num_lines = 0  # of what is read
        self._file_id: tuple[int, int] | None = None

    def _warn_of_torn_line(self, line: bytes) -> None:
        if self._warned_at != self._position:
            self._warned_at = self._position
            rank_zero_warn(
                f"{self.path}, line {self._num_lines + 1} is torn, as a crash leaves it, and does not count; the next "
                f"answer replaces it: {line[:200]!r}."
            )

    def _write(self, content: bytes) -> None:
        new = not self.path.exists()
        with self.path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(self.path.parent)

    def _read_lines(self) -> bytes:
        """Read the lines since the last time, and return what follows the last line break."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._forget()
            return b""
        with file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._file_id or status.st_size < self._position:
                self._forget()  # the file was replaced, as by a copy
                self._file_id = (status.st_dev, status.st_ino)
            file.seek(self._position)
            *lines, unterminated = file.read().split(b"\n")
        for line in lines:
            self._apply(line)
            self._position += len(line) + 1
            self._num_lines += 1
        return unterminated

    def _apply_if_complete(self, line: bytes) -> bool:
        """Count a line that lacks the line break only, as some editors leave it; return whether it is one."""
        try:
            complete = isinstance(json.loads(line), dict)
        except ValueError:
            return False
        if complete:
            self._apply(line)  # and again once it ends, which changes nothing
        return complete

    def _apply(self, line: bytes) -> None:
        source = f"{self.path}, line {self._num_lines + 1}"
        values = parse_json(line, source)
        if self._num_lines == 0 and isinstance(values, dict) and "classes" in values:
            self._apply_header(values, source)
            return
        answer = from_mapping(Answer, values, source)
        complaint = answer.complaint(self.classes)
        if complaint:
            raise DamagedFileError(f"{source}: {complaint}; {REMEDY}.")
        self._answers.pop(answer.index, None)  # so that the answers are in the order of the file
        if not answer.withdrawn:
            self._answers[answer.index] = answer

    def _apply_header(self, values: dict[str, Any], source: str) -> None:
        complaint = classes_complaint(values["classes"])
        if values.get("schema_version") != SCHEMA_VERSION:
            complaint = f"`schema_version` is {values.get('schema_version')!r}, expected {SCHEMA_VERSION}"
        if complaint:
            raise DamagedFileError(f"{source}: {complaint}; {REMEDY}.")
        if self._given_classes not in (None, values["classes"]):
            raise ValueError(
                f"`Labels(classes={self._given_classes!r})`: {source} has the classes {values['classes']!r}, expected "
                "the same in the same order. Leave the argument out, or choose another file."
            )
        self.classes = values["classes"]
