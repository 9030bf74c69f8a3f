"""The charts of the page as Plotly specifications; plotly is imported when one is made.

Colors of text, grid and background come from the page's script, which follows the browser's color scheme.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import mean_and_sd
from lightning_al.report.curve_plot import assign_styles
from lightning_al.report.runs import ReportedQuery
from lightning_al.report.tables import format_count
from lightning_al.storage.cycles_table import CycleRecord
from lightning_al.storage.query_files import PLOTTED_QUANTILES

Chart = dict[str, Any]

DASHES = {"-": "solid", "-.": "dashdot", ":": "dot", "--": "dash"}
GRAY = "#808080"
SIDES = {"candidates": "#7f9db9", "picks": "#e4572e"}
CLASS_COLORS: tuple[str, ...] = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#eeca3b", "#b279a2", "#ff9da6")
CLASS_COLORS += ("#9d755d", "#bab0ac", "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d")
LOG_AXIS_RATIO = 100.0  # largest to smallest quantile; above it a linear axis would flatten the lower boxes


def learning_curves(comparison: Comparison, on_seconds: bool) -> Chart:
    """Plot mean and band of every strategy.

    Args:
        comparison: Of at least one strategy.
        on_seconds: Whether the axis is the seconds of fit and query until each test, instead of labels.

    Returns:
        The chart; the band is a standard error to either side.

    """
    import plotly.graph_objects as go

    styles = assign_styles(comparison)
    figure = go.Figure()
    for name in comparison.best_first():
        curves, style = comparison.curves[name], styles[name]
        color = GRAY if style["color"] == "0.4" else style["color"]
        mean, sd = mean_and_sd(curves.values)
        x = curves.seconds_passed.mean(0) if on_seconds else curves.labels
        if len(curves.seeds) > 1:
            error = sd / math.sqrt(len(curves.seeds))
            figure.add_scatter(
                x=[*x, *x[::-1]],
                y=[*(mean + error), *(mean - error)[::-1]],
                mode="lines",
                fill="toself",
                fillcolor=_translucent(color),
                line={"width": 0},
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
        seeds = format_count(len(curves.seeds), "seed")
        figure.add_scatter(
            x=x,
            y=mean,
            customdata=np.stack([curves.labels, np.nan_to_num(sd)], 1),
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": color, "dash": DASHES[style["linestyle"]]},
            hovertemplate=f"<b>{_escape(name)}</b><br>%{{customdata[0]:.0f}} labels: %{{y:.4g}}"
            f" ± %{{customdata[1]:.2g}} ({seeds})<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": {"text": "seconds of fit and query" if on_seconds else "labeled samples"}},
        yaxis={"title": {"text": _escape(comparison.metric)}},
    )
    return _chart(figure)


def metrics_over_labels(records: Sequence[CycleRecord], names: Sequence[str]) -> Chart | None:
    """Plot the test metrics of one run; return None if there is none."""
    import plotly.graph_objects as go

    if not names:
        return None
    figure = go.Figure()
    for position, name in enumerate(names):
        figure.add_scatter(
            x=[record.labeled for record in records],
            y=[record.metrics[name] for record in records],
            mode="lines+markers",
            name=_escape(name),
            line={"color": CLASS_COLORS[position % len(CLASS_COLORS)]},
            hovertemplate=f"<b>{_escape(name)}</b><br>%{{x}} labels: %{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(xaxis={"title": {"text": "labeled samples"}}, showlegend=True)
    return _chart(figure)


def classes_of(queries: Sequence[ReportedQuery]) -> list[str]:
    """Return the classes of all picks, sorted; numbers by value, before other names."""
    return sorted({name for query in queries for name in query.classes}, key=_class_order)


def boxes_of(queries: Sequence[ReportedQuery]) -> dict[str, list[list[float]]]:
    """Return the 5, 25, 50, 75 and 95 % quantiles of scores per query, of candidates and of picks.

    Args:
        queries: Those with quantiles of scores.

    Returns:
        Rows of five numbers, one per query, for `candidates`, and for `picks` if all queries know their scores.

    """
    sides = {"candidates": [query.quantiles for query in queries]}
    if all(query.scores for query in queries):
        sides["picks"] = [query.quantiles_of_picks for query in queries]
    return {
        name: [[row[position] for position in PLOTTED_QUANTILES.values()] for row in rows]
        for name, rows in sides.items()
    }


def is_wide(boxes: Mapping[str, Sequence[Sequence[float]]]) -> bool:
    """Return whether boxes need a logarithmic axis."""
    ends = [end for rows in boxes.values() for row in rows for end in (row[0], row[-1])]
    return min(ends) > 0 and max(ends) / min(ends) > LOG_AXIS_RATIO


def class_mix(queries: Sequence[ReportedQuery]) -> Chart | None:
    """Plot how many samples of each class every cycle labeled; return None where no labels are known."""
    import plotly.graph_objects as go

    known = [query for query in queries if query.classes]
    if not known:
        return None
    figure = go.Figure()
    for position, name in enumerate(classes_of(known)):
        figure.add_bar(
            x=[query.cycle for query in known],
            y=[query.classes.get(name, 0) for query in known],
            name=_escape(name),
            marker={"color": CLASS_COLORS[position % len(CLASS_COLORS)]},
            hovertemplate=f"cycle %{{x}}: <b>%{{y}}</b> of class {_escape(name)}<extra></extra>",
        )
    figure.update_layout(
        barmode="stack",
        xaxis={"title": {"text": "cycle"}, "dtick": _tick_step(known)},
        yaxis={"title": {"text": "picks by class"}},
        legend={"title": {"text": "class "}, "traceorder": "normal"},
        showlegend=True,
    )
    return _chart(figure)


def score_distribution(queries: Sequence[ReportedQuery]) -> Chart | None:
    """Plot boxes of the scores of candidates and picks per cycle; return None where a strategy has no scores.

    Boxes are the quartiles with the median, whiskers the 5 and 95 % quantiles.
    """
    import plotly.graph_objects as go

    known = [query for query in queries if query.has_score_quantiles]
    if not known:
        return None
    figure = go.Figure()
    boxes = boxes_of(known)
    for name, rows in boxes.items():
        low, first, middle, third, high = (list(column) for column in zip(*rows, strict=True))
        figure.add_box(
            x=[query.cycle for query in known],
            q1=first,
            median=middle,
            q3=third,
            lowerfence=low,
            upperfence=high,
            name=name,
            marker={"color": SIDES[name]},
            offsetgroup=name,
        )
    figure.update_layout(
        boxmode="group",
        xaxis={"title": {"text": "cycle"}, "dtick": _tick_step(known)},
        yaxis={"title": {"text": "score"}, "type": "log" if is_wide(boxes) else "linear", "exponentformat": "e"},
        showlegend=True,
    )
    return _chart(figure)


def query_metrics_over_cycles(queries: Sequence[ReportedQuery], captions: Mapping[str, str]) -> Chart | None:
    """Plot metrics of the queries, such as their redundancy; return None if there is none.

    Args:
        queries: Of one run.
        captions: The caption of each metric, by its name in `query.json`.

    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for position, (name, caption) in enumerate(captions.items()):
        known = [query for query in queries if name in query.metrics]
        if known:
            figure.add_scatter(
                x=[query.cycle for query in known],
                y=[query.metrics[name] for query in known],
                mode="lines+markers",
                name=caption,
                line={"color": CLASS_COLORS[position]},
                hovertemplate=f"cycle %{{x}}: {caption} <b>%{{y:.3g}}</b><extra></extra>",
            )
    if not figure.data:
        return None
    figure.update_layout(xaxis={"title": {"text": "cycle"}, "dtick": _tick_step(queries)}, showlegend=True)
    return _chart(figure)


def _chart(figure: Any) -> Chart:
    figure.update_layout(template="none", title=None)
    chart: Chart = json.loads(figure.to_json())  # numbers that are not finite become null
    chart["layout"].pop("template", None)
    return chart


def _translucent(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _escape(text: str) -> str:
    """Escape markup and the beginning of a Plotly variable."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")


def _class_order(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (2**31, name)


def _tick_step(queries: Sequence[ReportedQuery]) -> int:
    return max(1, math.ceil(len(queries) / 10))
