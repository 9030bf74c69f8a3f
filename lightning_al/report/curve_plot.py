"""The picture of a comparison's learning curves; matplotlib is imported when it is drawn."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import mean_and_sd
from lightning_al.report.tables import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Styles = dict[str, dict[str, Any]]

# Far apart in hue, and in lightness for print; gray is kept for the baseline.
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf")
LINES = ("-", "-.", ":")  # strategies beyond the number of colors repeat a color with another line and marker
MARKERS = "osD^vPX<>h*dp"
MAX_MARKERS = 12  # per curve, so that they do not hide the line
MAX_TICKS = 8  # cycles, up to which each one has a tick; more labels of ticks would overlap


def draw_comparison(comparison: Comparison, path: Path, *, on_seconds: bool = False) -> Path:
    """Draw the mean learning curves, and beside them the paired differences of their areas to the baseline.

    Args:
        comparison: Of at least one strategy.
        path: The picture; its suffix chooses the format.
        on_seconds: Whether the axis is the seconds of fit and query until each test; there are no differences then.

    Returns:
        The path.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.

    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'The figure needs matplotlib: pip install "lightning_al[report]".', name="matplotlib"
        ) from error
    styles = assign_styles(comparison)
    paired = (
        not on_seconds
        and comparison.baseline in comparison.curves
        and bool(comparison.differences(comparison.baseline))
    )
    figure = Figure(figsize=(12 if paired else 7, max(4.5, 1.5 + 0.32 * len(styles))), layout="constrained")
    if paired:
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_differences(right, comparison, styles)
    else:
        left = figure.subplots()
    _draw_curves(left, comparison, styles, on_seconds)
    figure.savefig(path, dpi=150)
    return path


def assign_styles(comparison: Comparison) -> Styles:
    """Return color, line and marker of every strategy, by its place in the comparison; the baseline is dashed gray."""
    others = [name for name in comparison.curves if name != comparison.baseline]
    styles: Styles = {
        name: {
            "color": COLORS[position % len(COLORS)],
            "linestyle": LINES[position // len(COLORS) % len(LINES)],
            "marker": MARKERS[position % len(MARKERS)],
        }
        for position, name in enumerate(others)
    }
    if comparison.baseline in comparison.curves:
        styles[comparison.baseline] = {"color": "0.4", "linestyle": "--", "marker": ""}
    return styles


def _draw_curves(axes: "Axes", comparison: Comparison, styles: Styles, on_seconds: bool) -> None:
    labels, ranked = comparison.labels, comparison.best_first()
    marker_step = math.ceil(len(labels) / MAX_MARKERS)
    for place, name in enumerate(ranked):
        curves, style = comparison.curves[name], styles[name]
        mean, sd = mean_and_sd(curves.values)
        error = np.nan_to_num(sd) / math.sqrt(len(curves.seeds))
        x = curves.seconds_passed.mean(0) if on_seconds else labels
        # The best strategy is on top, and markers of neighboring curves do not hide each other.
        order, marked = 3 + len(ranked) - place, (place % marker_step, marker_step)
        axes.plot(x, mean, label=_spaced(name), markersize=4, linewidth=1.5, markevery=marked, zorder=order, **style)
        axes.fill_between(x, mean - error, mean + error, alpha=0.12, color=style["color"], linewidth=0, zorder=2)
    axes.set(xlabel="seconds of fit and query" if on_seconds else "labeled samples", ylabel=literal(comparison.metric))
    if len(labels) <= MAX_TICKS and not on_seconds:
        axes.set_xticks(labels)
    counts = sorted({len(curves.seeds) for curves in comparison.curves.values()})
    seeds = format_count(counts[-1], "seed")
    if len(counts) > 1:
        seeds = f"{counts[0]} to {seeds}"
    spread = "mean" if counts == [1] else "mean ± standard error"
    axes.set_title(f"{spread}, {seeds}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Learning curves leave this corner free.
    corner: Any = "upper right" if comparison.lower_is_better else "lower right"
    axes.legend(frameon=False, loc=corner, fontsize=8, ncols=1 if len(styles) < 7 else 2, handlelength=3)


def _draw_differences(axes: "Axes", comparison: Comparison, styles: Styles) -> None:
    worst_first = dict(reversed(comparison.differences(comparison.baseline).items()))
    for row, (name, difference) in enumerate(worst_first.items()):
        color, marker = styles[name]["color"], styles[name]["marker"]
        if not math.isnan(difference.low):
            axes.plot([difference.low, difference.high], [row, row], color=color, linewidth=1.5)
        axes.plot(difference.mean, row, linestyle="", color=color, marker=marker, markersize=6)
    axes.axvline(0, color="0.4", linestyle="--", linewidth=1, zorder=1)
    axes.set_yticks(range(len(worst_first)), [_spaced(name) for name in worst_first])
    axes.set_ylim(-0.6, len(worst_first) - 0.4)
    better = "left" if comparison.lower_is_better else "right"
    axes.set_xlabel(f"area under the curve, minus\nthat of {_spaced(comparison.baseline)} ({better} is better)")
    axes.locator_params(axis="x", nbins=5)  # numbers with a sign and three decimals are wide
    pairs = next(iter(worst_first.values())).pairs
    spread = "paired difference" if pairs == 1 else "paired difference, 95 % interval"
    axes.set_title(f"{spread}, {format_count(pairs, 'seed')}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def literal(text: str) -> str:
    """Return a text that matplotlib shows as it is, also with dollars, between which it expects a formula."""
    return text.replace("$", r"\$")


def _spaced(name: str) -> str:
    return literal(name.replace("_", " "))
