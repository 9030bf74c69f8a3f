"""The files of a query for the report: `query.json` and `picked.csv`, beside the media of the picks."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.schema import from_mapping, read_json, write_json

# The quantiles at 0, 5, ..., 100 %: a step of 5 % shows the shape of a distribution.
NUM_QUANTILES = 21
# The position of each logged quantile among those at 0, 5, ..., 100 %.
PLOTTED_QUANTILES = {"q05": 1, "q25": 5, "q50": 10, "q75": 15, "q95": 19}


@dataclass(frozen=True)
class QueryFile:
    """The content of `query.json`.

    Attributes:
        strategy: The class of the acquisition.
        figures: Metrics of the query by name.
        quantiles: The 0, 5, ..., 100 % quantiles of the scores of all candidates; None where there are no scores.

    """

    strategy: str
    figures: dict[str, float]
    quantiles: list[float] | None = None


@dataclass(frozen=True)
class PickRow:
    """One row of `picked.csv`; an unknown value is an empty string.

    Attributes:
        index: The dataset index.
        rank: 0 for the first pick.
        score: The score by the strategy.
        predicted: The predicted class, or the value of a regression.
        label: The class.
        file: The name of a picture or recording in the same folder.
        text: The sample if it is a text.

    """

    index: str
    rank: str
    score: str = ""
    predicted: str = ""
    label: str = ""
    file: str = ""
    text: str = ""


def write_query(folder: Path, query: QueryFile, picks: Sequence[PickRow]) -> None:
    """Write both files into an existing folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[column.name for column in fields(PickRow)])
    writer.writeheader()
    writer.writerows(asdict(pick) for pick in picks)
    write_atomically(folder / "picked.csv", text.getvalue())
    write_json(folder / "query.json", query)


def read_query(folder: Path) -> tuple[QueryFile, list[PickRow]] | None:
    """Return the content of both files, or None if one is missing, which a report allows.

    Raises:
        DamagedFileError: If a file does not hold what `write_query` wrote, naming the file and the field.

    """
    try:
        query = read_json(QueryFile, folder / "query.json")
        with (folder / "picked.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return None
    source = f"{folder / 'picked.csv'}, row "
    return query, [from_mapping(PickRow, row, f"{source}{number}") for number, row in enumerate(rows, start=1)]
