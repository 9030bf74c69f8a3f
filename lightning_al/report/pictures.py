"""The charts of the page as pictures, for slides and papers; matplotlib is imported when one is drawn.

The page's Plotly cannot write them: to make a PNG it needs kaleido with an installed browser, which a server that
trains networks seldom has.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_al.analysis.comparison import Comparison
from lightning_al.report.charts import CLASS_COLORS, SIDES, boxes_of, classes_of, is_wide
from lightning_al.report.curve_plot import draw_comparison, literal
from lightning_al.report.groups import Group
from lightning_al.report.runs import ReportedQuery, read_media

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PICKS = 16  # per cycle, side by side, so that a picture stays recognizable on a slide
MAX_CYCLES = 12  # rows of a contact sheet, evenly spaced over the cycles
PICTURE_BYTES = 10_000_000  # of one picture; a preview of 256 pixels on a side is far smaller


def draw_pictures(comparison: Comparison | None, groups: Sequence[Group], folder: Path) -> list[Path]:
    """Write the learning curves, and the queries of the first seed of every strategy that kept them.

    Args:
        comparison: Of strategies; None where there are no learning curves.
        groups: All runs.
        folder: Where to write; made if it is missing.

    Returns:
        The paths: `learning_curves.png`, `learning_curves_seconds.png` and `queries-<strategy>.png`.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.

    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    if comparison is not None:
        paths.append(draw_comparison(comparison, folder / "learning_curves.png"))
        paths.append(draw_comparison(comparison, folder / "learning_curves_seconds.png", on_seconds=True))
    for group in groups:
        run = next((run for run in group.runs if run.queries), None)
        if run is not None:
            seed = "" if run.seed is None else f", seed {run.seed}"
            file = folder / f"queries-{re.sub(r'[^A-Za-z0-9_.=-]+', '-', group.name).strip('-')}.png"
            paths.append(draw_queries(run.queries, f"{group.name}{seed}", file))
    return paths


def draw_queries(queries: Sequence[ReportedQuery], title: str, path: Path) -> Path:
    """Write class mix, scores and a contact sheet of the queries of one run, as far as they are known.

    Args:
        queries: At least one.
        title: The heading of the picture.
        path: The picture.

    Returns:
        The path.

    """
    from matplotlib.figure import Figure

    classes, scored = classes_of(queries), [query for query in queries if query.has_score_quantiles]
    sheet = _contact_sheet(queries)
    heights = [3.0] * bool(classes or scored) + ([9 * sheet.shape[0] / sheet.shape[1]] if sheet is not None else [])
    figure = Figure(figsize=(10, 0.6 + sum(heights or [1.0])), layout="constrained")
    figure.suptitle(literal(title), fontsize=11)
    rows = list(figure.subfigures(len(heights) or 1, 1, height_ratios=heights or [1.0], squeeze=False)[:, 0])
    if classes or scored:
        top_row = list(np.ravel(rows.pop(0).subplots(1, bool(classes) + bool(scored))))
        if classes:
            _draw_classes(top_row.pop(0), queries, classes)
        if scored:
            _draw_scores(top_row.pop(0), scored)
    if sheet is not None:
        axes = rows.pop(0).subplots()
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        cycles = [query.cycle for query in _evenly_spaced(queries)]
        axes.set_yticks((np.arange(len(cycles)) + 0.5) * sheet.shape[0] / len(cycles), cycles)
        axes.set(ylabel="cycle", xlabel="picks, the first on the left", xticks=[])
    figure.savefig(path, dpi=130)
    return path


def _draw_classes(axes: "Axes", queries: Sequence[ReportedQuery], classes: Sequence[str]) -> None:
    cycles = [query.cycle for query in queries]
    bottom = np.zeros(len(queries))
    for position, name in enumerate(classes):
        counts = np.array([query.classes.get(name, 0) for query in queries])
        axes.bar(cycles, counts, bottom=bottom, label=literal(name), color=CLASS_COLORS[position % len(CLASS_COLORS)])
        bottom += counts
    axes.set(xlabel="cycle", ylabel="picks by class")
    axes.locator_params(integer=True)
    axes.legend(
        reverse=True, fontsize=7, ncols=1 + len(classes) // 12, frameon=False, bbox_to_anchor=(1, 1), loc="upper left"
    )
    axes.spines[["top", "right"]].set_visible(False)


def _draw_scores(axes: "Axes", queries: Sequence[ReportedQuery]) -> None:
    boxes = boxes_of(queries)
    for (name, rows), shift in zip(boxes.items(), (-0.2, 0.2), strict=False):  # one side, or both
        stats = [dict(zip(("whislo", "q1", "med", "q3", "whishi"), row, strict=True), fliers=[]) for row in rows]
        box_style = {"facecolor": SIDES[name], "alpha": 0.6, "label": name}
        positions = [query.cycle + shift for query in queries]
        axes.bxp(stats, positions, widths=0.35, patch_artist=True, boxprops=box_style, manage_ticks=False)
    # Every box has a legend entry; one per side is enough.
    patches, names = axes.get_legend_handles_labels()
    axes.legend(
        list(dict(zip(names, patches, strict=True)).values()), list(dict.fromkeys(names)), fontsize=8, frameon=False
    )
    axes.set(xlabel="cycle", ylabel="score", yscale="log" if is_wide(boxes) else "linear")
    axes.spines[["top", "right"]].set_visible(False)


def _evenly_spaced(queries: Sequence[ReportedQuery]) -> list[ReportedQuery]:
    rows = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), MAX_CYCLES)).round().astype(int))
    return [queries[row] for row in rows]


def _contact_sheet(queries: Sequence[ReportedQuery]) -> Any:
    """Return pixels of shape (H, W, 3), one row of pictures per cycle; None if the picks are no pictures."""
    from PIL import Image

    rows = [[_picture(query, pick.file) for pick in query.picks[:MAX_PICKS]] for query in _evenly_spaced(queries)]
    sides = [max(picture.size) for row in rows for picture in row if picture is not None]
    if not sides:
        return None
    side, columns = max(min(max(sides), 128), 32), max(map(len, rows))
    sheet = Image.new("RGB", (columns * (side + 4), len(rows) * (side + 4)), "white")
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            if picture is not None:
                scale = side / max(picture.size)
                size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
                sheet.paste(
                    picture.resize(size, Image.Resampling.NEAREST), (across * (side + 4) + 2, down * (side + 4) + 2)
                )
    return np.asarray(sheet)


def _picture(query: ReportedQuery, file: str) -> Any:
    from PIL import Image

    if not file.endswith(".png"):
        return None
    content = read_media(query.folder / Path(file).name, PICTURE_BYTES)
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.convert("RGB")
    except (OSError, Image.DecompressionBombError):  # the file is damaged
        return None
