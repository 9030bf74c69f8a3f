"""The charts of the page as Plotly specifications; plotly is imported when one is made.

Colors of text, grid and background come from the page, which knows whether it is dark.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import mean_and_sd
from lightning_al.report.curve_plot import assign_styles
from lightning_al.report.runs import Query
from lightning_al.storage.cycles_table import Record
from lightning_al.tracking.trackers import SHOWN_QUANTILES

Chart = dict[str, Any]

DASHES = {"-": "solid", "-.": "dashdot", ":": "dot", "--": "dash"}
GRAY = "#808080"
SIDES = {"candidates": "#7f9db9", "picks": "#e4572e"}
CLASS_COLORS: tuple[str, ...] = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#eeca3b", "#b279a2", "#ff9da6")
CLASS_COLORS += ("#9d755d", "#bab0ac", "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d")
LOG_FROM = 100.0  # the ratio of quantiles from which scores are drawn on a logarithmic axis


def learning_curves(comparison: Comparison, on_seconds: bool) -> Chart:
    """Draw mean and band of every strategy.

    Args:
        comparison: What to draw.
        on_seconds: Over the seconds of fit and query until then, instead of labels.

    Returns:
        The chart; the band is a standard error to either side.

    """
    import plotly.graph_objects as go

    styles = assign_styles(comparison)
    figure = go.Figure()
    for name in comparison.best_first():
        own, style = comparison.curves[name], styles[name]
        color = GRAY if style["color"] == "0.4" else style["color"]
        mean, sd = mean_and_sd(own.values)
        x = own.seconds_passed.mean(0) if on_seconds else own.labels
        if len(own.seeds) > 1:
            error = sd / math.sqrt(len(own.seeds))
            figure.add_scatter(
                x=[*x, *x[::-1]],
                y=[*(mean + error), *(mean - error)[::-1]],
                mode="lines",
                fill="toself",
                fillcolor=_faint(color),
                line={"width": 0},
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
        seeds = f"{len(own.seeds)} seed{'' if len(own.seeds) == 1 else 's'}"
        figure.add_scatter(
            x=x,
            y=mean,
            customdata=np.stack([own.labels, np.nan_to_num(sd)], 1),
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": color, "dash": DASHES[style["linestyle"]]},
            hovertemplate=f"<b>{_plain(name)}</b><br>%{{customdata[0]:.0f}} labels: %{{y:.4g}}"
            f" ± %{{customdata[1]:.2g}} ({seeds})<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": {"text": "seconds of fit and query" if on_seconds else "labeled samples"}},
        yaxis={"title": {"text": _plain(comparison.metric)}},
    )
    return _chart(figure)


def metrics_over_labels(records: Sequence[Record], names: Sequence[str]) -> Chart | None:
    """Draw the test metrics of one run; None if there is none."""
    import plotly.graph_objects as go

    if not names:
        return None
    figure = go.Figure()
    for position, name in enumerate(names):
        figure.add_scatter(
            x=[record["labeled"] for record in records],
            y=[record[name] for record in records],
            mode="lines+markers",
            name=_plain(name),
            line={"color": CLASS_COLORS[position % len(CLASS_COLORS)]},
            hovertemplate=f"<b>{_plain(name)}</b><br>%{{x}} labels: %{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(xaxis={"title": {"text": "labeled samples"}}, showlegend=True)
    return _chart(figure)


def classes_of(queries: Sequence[Query]) -> list[str]:
    """Return the classes that were picked at all, numbers in their order."""
    return sorted({name for query in queries for name in query.classes}, key=_natural)


def boxes_of(queries: Sequence[Query]) -> dict[str, list[list[float]]]:
    """Return the 5, 25, 50, 75 and 95 % quantiles of scores per query: of candidates, and of picks if all know them.

    Args:
        queries: Those that are scored.

    Returns:
        Rows of five numbers, one per query, by the name of the side.

    """
    sides = {"candidates": [query.quantiles for query in queries]}
    if all(query.scores for query in queries):
        sides["picks"] = [query.quantiles_of_picks for query in queries]
    return {name: [[row[at] for at in SHOWN_QUANTILES.values()] for row in rows] for name, rows in sides.items()}


def is_wide(boxes: Mapping[str, Sequence[Sequence[float]]]) -> bool:
    """Tell whether boxes need a logarithmic axis."""
    ends = [end for rows in boxes.values() for row in rows for end in (row[0], row[-1])]
    return min(ends) > 0 and max(ends) / min(ends) > LOG_FROM


def class_mix(queries: Sequence[Query]) -> Chart | None:
    """Draw how many samples of each class every cycle labeled; None where no labels are known."""
    import plotly.graph_objects as go

    known = [query for query in queries if query.classes]
    if not known:
        return None
    figure = go.Figure()
    for position, name in enumerate(classes_of(known)):
        figure.add_bar(
            x=[query.cycle for query in known],
            y=[query.classes.get(name, 0) for query in known],
            name=_plain(name),
            marker={"color": CLASS_COLORS[position % len(CLASS_COLORS)]},
            hovertemplate=f"cycle %{{x}}: <b>%{{y}}</b> of class {_plain(name)}<extra></extra>",
        )
    figure.update_layout(
        barmode="stack",
        xaxis={"title": {"text": "cycle"}, "dtick": _tick(known)},
        yaxis={"title": {"text": "picks by class"}},
        legend={"title": {"text": "class "}, "traceorder": "normal"},
        showlegend=True,
    )
    return _chart(figure)


def score_distribution(queries: Sequence[Query]) -> Chart | None:
    """Draw boxes of the scores of candidates and picks per cycle; None where a strategy has no scores.

    Boxes are the quartiles with the median, whiskers the 5 and 95 % quantiles.
    """
    import plotly.graph_objects as go

    known = [query for query in queries if query.scored]
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
        xaxis={"title": {"text": "cycle"}, "dtick": _tick(known)},
        yaxis={"title": {"text": "score"}, "type": "log" if is_wide(boxes) else "linear", "exponentformat": "e"},
        showlegend=True,
    )
    return _chart(figure)


def figures_over_cycles(queries: Sequence[Query], names: Mapping[str, str]) -> Chart | None:
    """Draw figures of the queries, such as their redundancy, by name and what to call them; None if there is none."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for position, (name, called) in enumerate(names.items()):
        known = [query for query in queries if name in query.figures]
        if known:
            figure.add_scatter(
                x=[query.cycle for query in known],
                y=[query.figures[name] for query in known],
                mode="lines+markers",
                name=called,
                line={"color": CLASS_COLORS[position]},
                hovertemplate=f"cycle %{{x}}: {called} <b>%{{y:.3g}}</b><extra></extra>",
            )
    if not figure.data:
        return None
    figure.update_layout(xaxis={"title": {"text": "cycle"}, "dtick": _tick(queries)}, showlegend=True)
    return _chart(figure)


def _chart(figure: Any) -> Chart:
    figure.update_layout(template="none", title=None)
    chart: Chart = json.loads(figure.to_json())  # numbers that are not finite become null
    chart["layout"].pop("template", None)
    return chart


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _plain(text: str) -> str:
    """Escape what Plotly would take for markup, or for the beginning of a value."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (2**31, name)


def _tick(queries: Sequence[Query]) -> int:
    return max(1, math.ceil(len(queries) / 10))
