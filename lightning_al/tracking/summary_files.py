"""Write the summary of a query for the report."""

from pathlib import Path

from lightning_al.data.media import save_media
from lightning_al.storage.atomic_write import replace_folder
from lightning_al.storage.query_files import PickRow, QueryFile, write_query
from lightning_al.tracking.query_summary import PickedSample, QuerySummary


def write_summary(summary: QuerySummary, folder: Path) -> None:
    """Write `query.json`, `picked.csv` and the media of the picks, all or nothing.

    Args:
        summary: The summary of the query.
        folder: The folder to write; replaced if it exists.

    """
    with replace_folder(folder) as partial:
        rows = [_row(pick, partial) for pick in summary.picks]
        query = QueryFile(summary.labeling.strategy, dict(summary.metrics), summary.quantiles)
        write_query(partial, query, rows)


def _row(pick: PickedSample, folder: Path) -> PickRow:
    media = pick.media
    return PickRow(
        index=str(pick.index),
        rank=str(pick.rank),
        score="" if pick.score is None else str(pick.score),
        predicted="" if pick.predicted is None else str(pick.predicted),
        label="" if pick.label is None else str(pick.label),
        file="" if media is None or isinstance(media, str) else save_media(media, folder, str(pick.index)),
        text=media if isinstance(media, str) else "",
    )
