"""The table of finished cycles, `cycles.csv`."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeAlias

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.schema import REMEDY, DamagedFileError, from_mapping

CycleRow: TypeAlias = dict[str, int | float]
"""A row of `cycles.csv`, as `run_cycles` returns it."""


@dataclass(frozen=True)
class CycleRecord:
    """The record of one finished cycle.

    Attributes:
        cycle: The number of the cycle, from 0.
        labeled: How many labeled samples it trained on.
        queried: How many samples its query labeled.
        fit_seconds: Time of the fit without the query.
        score_seconds: Time to score the candidates.
        select_seconds: Time to select from them.
        track_seconds: Time to look at the picks, write previews and log the query; 0 in files before version 0.2.
        metrics: Test metrics by name.

    """

    cycle: int
    labeled: int
    queried: int
    fit_seconds: float
    score_seconds: float
    select_seconds: float
    track_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def query_seconds(self) -> float:
        """The time to score and select."""
        return self.score_seconds + self.select_seconds

    def to_row(self) -> CycleRow:
        """Return the columns of `cycles.csv` in order: counts, metrics, seconds."""
        counts, seconds = ({name: getattr(self, name) for name in names} for names in (COUNTS, SECONDS))
        return {**counts, **self.metrics, **seconds}


COUNTS = ("cycle", "labeled", "queried")
SECONDS = ("fit_seconds", "score_seconds", "select_seconds", "track_seconds")
BOOKKEEPING = (*COUNTS, *SECONDS)  # the columns that are no metrics
_TYPES = {column.name: column.type for column in fields(CycleRecord) if column.name != "metrics"}


def metric_names(records: Sequence[CycleRecord]) -> list[str]:
    """Return the names of the test metrics that every finished cycle has."""
    return [name for name in records[0].metrics if all(name in record.metrics for record in records)]


def write_cycles(path: Path, records: Sequence[CycleRecord]) -> None:
    """Write one row per finished cycle, atomically."""
    metrics = dict.fromkeys(name for record in records for name in record.metrics)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[*COUNTS, *metrics, *SECONDS])
    writer.writeheader()
    writer.writerows(record.to_row() for record in records)
    write_atomically(path, text.getvalue())


def read_cycles(path: Path) -> list[CycleRecord]:
    """Read the finished cycles.

    Args:
        path: `cycles.csv`; a metric may be empty in some rows.

    Returns:
        One record per row.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If a row lacks a column or a value is no number, naming row and column.

    """
    with path.open(encoding="utf-8", newline="") as file:
        return [_parse(row, f"{path}, row {number}") for number, row in enumerate(csv.DictReader(file), start=1)]


def _parse(row: Mapping[str | None, str | None], source: str) -> CycleRecord:
    values: dict[str, int | float] = {}
    for name, text in row.items():
        if name is None:
            raise DamagedFileError(f"{source} has more cells than the header; {REMEDY}.")
        if text is None:
            raise DamagedFileError(f"{source} lacks the field `{name}`; {REMEDY}.")
        if text == "":
            continue
        try:
            values[name] = int(text) if _TYPES.get(name) is int else float(text)
        except ValueError as error:
            expected = "a whole number" if _TYPES.get(name) is int else "a number"
            raise DamagedFileError(f"{source}: `{name}` is {text!r}, expected {expected}; {REMEDY}.") from error
    metrics = {name: value for name, value in values.items() if name not in _TYPES}
    return from_mapping(CycleRecord, {**values, "metrics": metrics}, source)
