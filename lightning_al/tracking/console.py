"""What a person reads in the terminal about cycles."""

from lightning_al.report.tables import show
from lightning_al.storage.cycles_table import Record


def format_table(records: list[Record]) -> str:
    """Lay records out as a table of plain text.

    Args:
        records: One mapping from names to numbers per row.

    Returns:
        Lines of equal width; the seconds come last as they do in the records.

    Example:
        >>> print(format_table([{"cycle": 0, "labeled": 10, "accuracy": 0.5}]))
        cycle  labeled  accuracy
            0       10    0.5000

    """
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [names, *([show(record.get(name, "")) for name in names] for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def format_cycle(record: Record) -> str:
    """Lay the record of one cycle out as a line.

    Args:
        record: As in `cycles.csv`.

    Returns:
        What a person wants to know at once.

    Example:
        >>> format_cycle({"cycle": 3, "labeled": 80, "queried": 20, "test/accuracy": 0.87654, "fit_seconds": 2.5,
        ...               "score_seconds": 0.5, "select_seconds": 0.0})
        'Cycle 3: 80 labeled, test/accuracy 0.8765, 20 queried; fit 2.5 s, query 0.5 s'

    """
    seconds = {"fit_seconds", "score_seconds", "select_seconds"}
    metrics = [name for name in record if name not in {"cycle", "labeled", "queried", *seconds}]
    said = [f"{record['labeled']} labeled", *(f"{name} {show(record[name])}" for name in metrics)]
    query = record["score_seconds"] + record["select_seconds"]
    return (
        f"Cycle {record['cycle']}: {', '.join(said)}, {record['queried']} queried; fit {record['fit_seconds']:.1f} s, "
        f"query {query:.1f} s"
    )
