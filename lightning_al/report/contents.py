"""What the page says about runs in words, tables and pictures."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lightning_al.analysis.comparison import Comparison, format_p_value
from lightning_al.analysis.learning_curves import mean_and_sd
from lightning_al.report import charts
from lightning_al.report.charts import Chart
from lightning_al.report.groups import Group
from lightning_al.report.runs import Query, ReportedRun
from lightning_al.report.tables import show
from lightning_al.storage.cycles_table import SECONDS, metrics_of

MEDIA_BYTES = 3_500_000  # of a page, a third more as text, beside Plotly's 5 MB
MEDIA_TYPES = {".png": "image/png", ".wav": "audio/wav"}
FIGURES = {
    "redundancy": "redundancy of the picks",
    "label_entropy": "entropy of their classes (nats)",
    "confidence": "confidence of the ranking",
}


@dataclass(frozen=True)
class Cell:
    """A cell of the table: what it says, and the number or text by which it is sorted."""

    text: str
    key: float | str


@dataclass(frozen=True)
class Pick:
    """A picked sample on the contact sheet."""

    row: Mapping[str, str]
    address: str | None
    sound: bool

    @property
    def wrong(self) -> bool:
        """Whether the model took it for another class than it is."""
        return bool(self.row["label"] and self.row["predicted"]) and self.row["label"] != self.row["predicted"]

    @property
    def score(self) -> str:
        """The score for a person."""
        return f"{float(self.row['score']):.3g}" if self.row["score"] else ""


@dataclass
class Album:
    """Pictures and recordings as text inside the page, up to a size.

    Args:
        left: How many bytes still fit.

    """

    left: int = MEDIA_BYTES

    def embed(self, file: Path) -> str | None:
        """Return a `data:` address, or None for what is missing, of another type or too large."""
        try:
            content = file.read_bytes() if file.suffix in MEDIA_TYPES else b""
        except OSError:
            return None
        if not content or len(content) > self.left:
            return None
        self.left -= len(content)
        return f"data:{MEDIA_TYPES[file.suffix]};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Sheet:
    """The contact sheet of one query."""

    cycle: int
    folder: Path
    picks: Sequence[Pick]
    left_out: int


@dataclass(frozen=True)
class RunPart:
    """Everything that is said about one run."""

    name: str
    run: ReportedRun
    charts: Mapping[str, Chart]
    sheets: Sequence[Sheet]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """The settings as YAML."""
        settings = self.run.config or self.run.marker.get("settings") or {}
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else ""

    @property
    def columns(self) -> list[str]:
        """The columns of its cycles."""
        return list(dict.fromkeys(name for record in self.run.records for name in record))

    @property
    def rows(self) -> list[list[str]]:
        """Its cycles as text."""
        return [
            ["" if name not in record else _seconds_or(name, record[name]) for name in self.columns]
            for record in self.run.records
        ]


def describe_runs(groups: Sequence[Group]) -> list[RunPart]:
    """Collect charts and contact sheets of all runs.

    Args:
        groups: All runs.

    Returns:
        One part per run, group by group. Pictures are given to the first seed of every group, then to the second, as
        long as they fit.

    """
    album = Album()
    most = max(len(group.runs) for group in groups)
    sheets: dict[Path, list[Sheet]] = {}
    for place in range(most):
        for run in (group.runs[place] for group in groups if place < len(group.runs)):
            sheets[run.path] = [_sheet(query, album) for query in run.queries]
    return [_run_part(group.name, run, sheets[run.path]) for group in groups for run in group.runs]


def _run_part(name: str, run: ReportedRun, sheets: Sequence[Sheet]) -> RunPart:
    found = {
        "What was picked": charts.class_mix(run.queries),
        "Scores of candidates and picks": charts.score_distribution(run.queries),
        "The queries": charts.figures_over_cycles(run.queries, FIGURES),
        "Test metrics": charts.metrics_over_labels(run.records, metrics_of(run.records)),
    }
    facts = {
        "cycles": f"{len(run.records)}{f' of {run.planned}, unfinished' if run.unfinished else ''}",
        "labels": f"{run.records[0]['labeled']} to {run.records[-1]['labeled']}",
        "fit": duration(run.fit_seconds),
        "score and select": duration(run.query_seconds),
    }
    return RunPart(name, run, {title: chart for title, chart in found.items() if chart}, sheets, facts)


def _sheet(query: Query, album: Album) -> Sheet:
    picks, left_out = [], 0
    for row in query.picks:
        # a name from a file is a name only, never a path to elsewhere
        address = album.embed(query.folder / Path(row["file"]).name) if row["file"] else None
        left_out += bool(row["file"]) and address is None
        picks.append(Pick(row, address, sound=row["file"].endswith(".wav")))
    return Sheet(query.cycle, query.folder, picks, left_out)


def cards(comparison: Comparison | None, groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Return what a person wants to know at once: a caption, a figure, and a word about it."""
    runs = [run for group in groups for run in group.runs]
    found = []
    if comparison is not None:
        name = comparison.best_first()[0]
        own = comparison.curves[name]
        last = float(own.values[:, -1].mean())
        found.append((comparison.metric, f"{last:.3f}", f"{name}, {own.labels[-1]:g} labels"))
        if len(comparison.curves) > 1:
            found.append(("best area under the curve", f"{own.areas.mean():.3f}", name))
        found += _saved(comparison, name)
    query = sum(run.query_seconds for run in runs)
    both = query + sum(run.fit_seconds for run in runs)
    share = query / both if both else 0.0
    found.append(("spent on queries", f"{share:.0%}", f"{duration(query)} of {duration(both)}"))
    found.append(("runs", str(len(runs)), f"{len(groups)} strateg{'y' if len(groups) == 1 else 'ies'}"))
    return found


def _saved(comparison: Comparison, name: str) -> list[tuple[str, str, str]]:
    """Return how many labels the best strategy needs for what the baseline ends with."""
    if comparison.baseline not in comparison.curves or name == comparison.baseline or not comparison.targets:
        return []
    target, total = comparison.targets[0], comparison.labels[-1]
    needed = float(np.median(comparison.labels_needed(target)[name]))
    if math.isinf(needed):
        return []
    word = f"{name} for {target:.3f}, {comparison.baseline}'s value at {total:g}"
    return [("labels needed", f"{needed:.0f}", word)]


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Lay out the comparison.

    Args:
        comparison: Of at least one strategy.

    Returns:
        The head, and one row per strategy, best first.

    """
    baseline = comparison.baseline if comparison.baseline in comparison.curves else None
    differences = comparison.differences(baseline) if baseline else {}
    head = ["strategy", "seeds", f"last {comparison.metric}", "area"]
    if differences:
        head += [f"area minus {baseline}", "p (Holm)"]
    head += [f"labels to {target:.4g}" for target in comparison.targets]
    head += ["fit s/cycle", "query s/cycle"]
    needed = [comparison.labels_needed(target) for target in comparison.targets]
    rows = []
    for name in comparison.best_first():
        own = comparison.curves[name]
        row = [Cell(name, name), Cell(str(len(own.seeds)), len(own.seeds)), _mean(own.values[:, -1]), _mean(own.areas)]
        if differences:
            row += _difference(differences.get(name))
        for labels in (float(np.median(one[name])) for one in needed):
            row.append(Cell("not reached" if math.isinf(labels) else f"{labels:.0f}", labels))
        fit, query = float(own.fit_seconds.mean()), float(np.nan_to_num(own.mean_query_seconds))
        rows.append([*row, Cell(f"{fit:.2f}", fit), Cell(f"{query:.2f}", query)])
    return head, rows


def _mean(values: Any) -> Cell:
    mean, sd = (float(part) for part in mean_and_sd(values))
    return Cell(f"{mean:.4f}" if math.isnan(sd) else f"{mean:.4f} ± {sd:.4f}", mean)


def _difference(found: Any) -> list[Cell]:
    if found is None:  # the baseline itself
        return [Cell("-", 0.0), Cell("-", math.inf)]
    if found.pairs == 1:
        return [Cell(f"{found.mean:+.4f}", found.mean), Cell("-", math.inf)]
    text = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    return [Cell(text, found.mean), Cell(format_p_value(found.p_value), found.p_value)]


def duration(seconds: float) -> str:
    """Say a time in the unit that suits it.

    Example:
        >>> duration(0.4), duration(75), duration(7500)
        ('0.4 s', '1 min 15 s', '2 h 5 min')

    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _seconds_or(name: str, value: int | float) -> str:
    return f"{value:.1f}" if name in SECONDS else show(value)
