"""The table of finished cycles, `cycles.csv`."""

import csv
from collections.abc import Sequence
from pathlib import Path

Record = dict[str, int | float]


def read_table(path: Path) -> list[Record]:
    """Read `cycles.csv`: the records of the finished cycles, without what is empty."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: _number(text) for name, text in row.items() if text not in ("", None)}
            for row in csv.DictReader(file)
        ]


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


SECONDS = ("fit_seconds", "score_seconds", "select_seconds")


BOOKKEEPING = ("cycle", "labeled", "queried", *SECONDS)  # columns of `cycles.csv` that are no metrics


def metrics_of(records: Sequence[Record]) -> list[str]:
    """Return the names of the test metrics that every finished cycle has."""
    return [name for name in records[0] if name not in BOOKKEEPING and all(name in record for record in records)]
