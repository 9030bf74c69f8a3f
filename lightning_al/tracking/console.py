"""Format the cycles of a run as text for the terminal."""

from lightning_al.report.tables import format_number, format_text_table
from lightning_al.storage.cycles_table import CycleRecord, CycleRow


def format_table(records: list[CycleRow]) -> str:
    """Format the records of cycles as a table of plain text.

    Args:
        records: One mapping from names to numbers per row.

    Returns:
        Lines with aligned columns, in the order of the records; a value that a record lacks is blank.

    Example:
        >>> print(format_table([{"cycle": 0, "labeled": 10, "accuracy": 0.5}]))
        cycle  labeled  accuracy
            0       10    0.5000

    """
    names = list(dict.fromkeys(name for record in records for name in record))
    return format_text_table(names, [[format_number(record.get(name, "")) for name in names] for record in records])


def format_cycle(record: CycleRecord) -> str:
    """Format the record of one cycle as a line.

    Args:
        record: Of a finished cycle.

    Returns:
        The number of labels, the metrics, the size of the query and the seconds.

    Example:
        >>> format_cycle(CycleRecord(3, 80, 20, fit_seconds=2.5, score_seconds=0.5, select_seconds=0.0,
        ...                          metrics={"test/accuracy": 0.87654}))
        'Cycle 3: 80 labeled, test/accuracy 0.8765, 20 queried; fit 2.5 s, query 0.5 s'

    """
    results = [f"{record.labeled} labeled", *(f"{name} {format_number(v)}" for name, v in record.metrics.items())]
    return (
        f"Cycle {record.cycle}: {', '.join(results)}, {record.queried} queried; "
        f"fit {record.fit_seconds:.1f} s, query {record.query_seconds:.1f} s"
    )
