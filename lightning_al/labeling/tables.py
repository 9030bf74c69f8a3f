"""A queue as a table for a spreadsheet, and the labels that come back."""

import csv
import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_al.storage.answer import Answer, now
from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.labels_file import Labels
from lightning_al.storage.queue_file import Queue

CANNOT_SAY = "?"
COLUMNS = ("index", "path", "label")


class TableError(ValueError):
    """A table with lines that cannot be imported; the message has one line for each."""


def export_queue(queue: Queue, labels: Labels, path: Path, suggest: bool = False) -> int:
    """Write the samples that wait as comma-separated values, with an empty column for the labels.

    Args:
        queue: What is asked.
        labels: The answers so far.
        path: The file to write.
        suggest: Whether to add a column with the predictions.

    Returns:
        How many samples wait.

    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(["prediction"] if suggest else [])])
    waiting = [sample for sample in queue.samples if sample.index not in labels]
    for sample in waiting:
        path_cell = "" if sample.path is None else _harmless(sample.title)
        writer.writerow([sample.index, path_cell, "", *([_harmless(sample.prediction)] if suggest else [])])
    write_atomically(path, text.getvalue())
    return len(waiting)


def import_labels(queue: Queue, labels: Labels, path: Path, by: str = "") -> int:
    """Add the labels of a table, all of them or, if one line is wrong, none.

    The table has the columns `index` and `label`, and may have `by` and `seconds`; others are ignored. Commas or
    semicolons separate the cells. A row without a label is left out; `?` sets a sample aside; several classes of a
    sample are separated by semicolons, and a single semicolon is none of them.

    Args:
        queue: What was asked; other samples are refused.
        labels: The answers to add to; labels that they have already are not added again.
        path: The table.
        by: Who answered, where the table has no such column.

    Returns:
        How many answers were added.

    Raises:
        FileNotFoundError: If there is no such file.
        TableError: With every line that is wrong, and why.
        DamagedFileError: If the file of the answers is damaged.

    """
    labels.read()
    asked = {sample.index for sample in queue.samples}
    answers: dict[int, Answer] = {}
    errors = []
    for number, row in _rows(path):
        answer = _to_answer(row, queue, asked, by)
        if isinstance(answer, Answer) and answer.index in answers:
            answer = f"sample {answer.index} is there twice"
        if isinstance(answer, str):
            errors.append(f"line {number}: {answer}")
        elif answer is not None:
            answers[answer.index] = answer
    if errors:
        raise TableError("\n".join([f"{path} was not imported, because of these lines:", *errors]))
    unknown = object()
    changed = [answer for answer in answers.values() if labels.get(answer.index, unknown) != answer.label]
    if changed:
        labels.append_all(changed)
    return len(changed)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str | None]]]:
    """Yield each row with the line on which it ends."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f'{path} is no table in UTF-8 ({error}); save it as "CSV UTF-8".') from error
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="," if "," in header else ";", strict=True)
    try:
        missing = {"index", "label"}.difference(reader.fieldnames or ())
        if missing:
            raise TableError(f"{path}: expected the columns `index` and `label`, got {reader.fieldnames}.")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.reader.line_num}: {error}; expected comma-separated values.") from error


def _to_answer(row: Mapping[str, str | None], queue: Queue, asked: Collection[int], by: str) -> Answer | str | None:
    """Return the answer in a row; None where there is none, or as a text what is wrong."""
    cells = {name: cell.strip() for name, cell in row.items() if isinstance(cell, str)}
    if not cells.get("label"):
        return None
    try:
        index = _number(int, cells.get("index", ""), "`index`")
        seconds = _number(float, cells["seconds"], "`seconds`") if cells.get("seconds") else None
        answer = Answer(index, _to_label(cells["label"], queue), cells.get("by") or by, now(), seconds)
    except ValueError as error:
        return str(error)
    if index not in asked:
        return f"sample {index} is not in the queue of cycle {queue.cycle}"
    return answer.complaint(queue.classes or None) or answer


def _to_label(cell: str, queue: Queue) -> Any:
    if cell == CANNOT_SAY and CANNOT_SAY not in queue.classes:
        return None
    if queue.kind == "number":
        return _number(float, cell, "`label`")
    if queue.kind == "classes":
        return [name.strip() for name in cell.split(";") if name.strip()]
    return cell


def _number(kind: Any, cell: str, column: str) -> Any:
    try:
        return kind(cell)
    except ValueError:
        raise ValueError(f"{column} is {cell!r}, expected {'a whole number' if kind is int else 'a number'}") from None


def _harmless(cell: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula, whatever a file is called."""
    text = ";".join(cell) if isinstance(cell, list) else cell
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
