"""The contents of the page: summary cards, the comparison's table, and a section per run."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import yaml

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import Array, mean_and_sd
from lightning_al.analysis.paired_tests import PairedDifference
from lightning_al.report import charts
from lightning_al.report.charts import Chart
from lightning_al.report.groups import Group
from lightning_al.report.runs import ReportedQuery, ReportedRun, read_media
from lightning_al.report.tables import format_count, format_duration, format_mean, format_number, format_p_value
from lightning_al.storage.cycles_table import SECONDS, metric_names
from lightning_al.storage.query_files import PickRow

# Bytes of media files in one page. Base64 adds a third, and Plotly's script 5 MB: the page stays below 10 MB.
MEDIA_BYTES = 3_500_000
MEDIA_TYPES = {".png": "image/png", ".wav": "audio/wav"}
QUERY_METRICS = {
    "redundancy": "redundancy of the picks",
    "label_entropy": "entropy of their classes (nats)",
    "confidence": "confidence of the ranking",
}


@dataclass(frozen=True)
class Cell:
    """A cell of the table: its text, and the number or text by which it is sorted."""

    text: str
    key: float | str


@dataclass(frozen=True)
class Pick:
    """A picked sample on the contact sheet."""

    row: PickRow
    address: str | None
    sound: bool

    @property
    def wrong(self) -> bool:
        """Whether the model predicted another class than the label."""
        return bool(self.row.label and self.row.predicted) and self.row.label != self.row.predicted

    @property
    def score(self) -> str:
        """The score with three digits; empty where it is unknown."""
        return f"{float(self.row.score):.3g}" if self.row.score else ""


@dataclass
class InlineMedia:
    """Pictures and recordings as text inside the page, up to a size.

    Args:
        bytes_left: How many bytes still fit.

    """

    bytes_left: int = MEDIA_BYTES

    def embed(self, file: Path) -> str | None:
        """Return a `data:` address, or None for a file that is missing, of another type or too large."""
        content = read_media(file, self.bytes_left) if file.suffix in MEDIA_TYPES else None
        if not content:
            return None
        self.bytes_left -= len(content)
        return f"data:{MEDIA_TYPES[file.suffix]};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class ContactSheet:
    """The picks of one query."""

    cycle: int
    folder: Path
    picks: Sequence[Pick]
    left_out: int


@dataclass(frozen=True)
class RunSection:
    """The section of the page about one run."""

    name: str
    run: ReportedRun
    charts: Mapping[str, Chart]
    sheets: Sequence[ContactSheet]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """The settings as YAML."""
        settings = self.run.config or (self.run.completion.settings if self.run.completion else {})
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else ""

    @property
    def columns(self) -> list[str]:
        """The columns of the table of cycles."""
        return list(dict.fromkeys(name for record in self.run.records for name in record.to_row()))

    @property
    def rows(self) -> list[list[str]]:
        """The rows of the table of cycles as text."""
        return [
            ["" if name not in row else _format_column(name, row[name]) for name in self.columns]
            for row in (record.to_row() for record in self.run.records)
        ]


def describe_runs(groups: Sequence[Group]) -> list[RunSection]:
    """Return the charts and contact sheets of all runs.

    Args:
        groups: All runs.

    Returns:
        One section per run, group by group. Pictures are embedded for the first seed of every group, then for the
        second, as long as they fit.

    """
    media = InlineMedia()
    sheets: dict[Path, list[ContactSheet]] = {}
    for runs_of_rank in zip_longest(*(group.runs for group in groups)):
        for run in filter(None, runs_of_rank):
            sheets[run.path] = [_contact_sheet(query, media) for query in run.queries]
    return [_run_section(group.name, run, sheets[run.path]) for group in groups for run in group.runs]


def _run_section(name: str, run: ReportedRun, sheets: Sequence[ContactSheet]) -> RunSection:
    all_charts = {
        "What was picked": charts.class_mix(run.queries),
        "Scores of candidates and picks": charts.score_distribution(run.queries),
        "The queries": charts.query_metrics_over_cycles(run.queries, QUERY_METRICS),
        "Test metrics": charts.metrics_over_labels(run.records, metric_names(run.records)),
    }
    facts = {
        "cycles": f"{len(run.records)}{f' of {run.planned}, unfinished' if run.unfinished else ''}",
        "labels": f"{run.records[0].labeled} to {run.records[-1].labeled}",
        "fit": format_duration(run.fit_seconds),
        "score and select": format_duration(run.query_seconds),
    }
    return RunSection(name, run, {title: chart for title, chart in all_charts.items() if chart}, sheets, facts)


def _contact_sheet(query: ReportedQuery, media: InlineMedia) -> ContactSheet:
    picks, left_out = [], 0
    for row in query.picks:
        # The file name comes from a file of the run: only its last part counts, so it cannot lead out of the run.
        address = media.embed(query.folder / Path(row.file).name) if row.file else None
        left_out += bool(row.file) and address is None
        picks.append(Pick(row, address, sound=row.file.endswith(".wav")))
    return ContactSheet(query.cycle, query.folder, picks, left_out)


def summary_cards(comparison: Comparison | None, groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Return the key numbers of the page: a caption, a number and a note each."""
    runs = [run for group in groups for run in group.runs]
    cards = []
    if comparison is not None:
        name = comparison.best_first()[0]
        curves = comparison.curves[name]
        last = float(curves.values[:, -1].mean())
        cards.append((comparison.metric, f"{last:.3f}", f"{name}, {curves.labels[-1]:g} labels"))
        if len(comparison.curves) > 1:
            cards.append(("best area under the curve", f"{curves.areas.mean():.3f}", name))
        cards += _labels_needed_card(comparison, name)
    query = sum(run.query_seconds for run in runs)
    total = query + sum(run.fit_seconds for run in runs)
    share = query / total if total else 0.0
    cards.append(("spent on queries", f"{share:.0%}", f"{format_duration(query)} of {format_duration(total)}"))
    cards.append(("runs", str(len(runs)), format_count(len(groups), "strategy", "strategies")))
    return cards


def _labels_needed_card(comparison: Comparison, name: str) -> list[tuple[str, str, str]]:
    """Return how many labels the best strategy needs to reach the baseline's final mean."""
    if comparison.baseline not in comparison.curves or name == comparison.baseline or not comparison.targets:
        return []
    target, total = comparison.targets[0], comparison.labels[-1]
    needed = float(np.median(comparison.labels_needed(target)[name]))
    if math.isinf(needed):
        return []
    note = f"{name} for {target:.3f}, {comparison.baseline}'s value at {total:g}"
    return [("labels needed", f"{needed:.0f}", note)]


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Return the table of a comparison.

    Args:
        comparison: Of at least one strategy.

    Returns:
        The header, and one row per strategy, best first.

    """
    baseline = comparison.baseline if comparison.baseline in comparison.curves else None
    differences = comparison.differences(baseline) if baseline else {}
    header = ["strategy", "seeds", f"last {comparison.metric}", "area"]
    if differences:
        header += [f"area minus {baseline}", "p (Holm)"]
    header += [f"labels to {target:.4g}" for target in comparison.targets]
    header += ["fit s/cycle", "query s/cycle"]
    needed = [comparison.labels_needed(target) for target in comparison.targets]
    rows = []
    for name in comparison.best_first():
        curves = comparison.curves[name]
        row = [Cell(name, name), Cell(str(len(curves.seeds)), len(curves.seeds))]
        row += [_mean_cell(curves.values[:, -1]), _mean_cell(curves.areas)]
        if differences:
            row += _difference_cells(differences.get(name))
        for labels in (float(np.median(needed_for_target[name])) for needed_for_target in needed):
            row.append(Cell("not reached" if math.isinf(labels) else f"{labels:.0f}", labels))
        fit, query = float(curves.fit_seconds.mean()), float(np.nan_to_num(curves.mean_query_seconds))
        rows.append([*row, Cell(f"{fit:.2f}", fit), Cell(f"{query:.2f}", query)])
    return header, rows


def _mean_cell(values: Array) -> Cell:
    mean, sd = (float(part) for part in mean_and_sd(values))
    return Cell(format_mean(mean, sd, decimals=4), mean)


def _difference_cells(difference: PairedDifference | None) -> list[Cell]:
    if difference is None:  # the baseline itself
        return [Cell("-", 0.0), Cell("-", math.inf)]
    mean, low, high = (f"{number:+.4f}" for number in (difference.mean, difference.low, difference.high))
    if math.isnan(difference.p_value):  # one pair
        return [Cell(mean, difference.mean), Cell("-", math.inf)]
    return [
        Cell(f"{mean} [{low}, {high}]", difference.mean),
        Cell(format_p_value(difference.p_value), difference.p_value),
    ]


def _format_column(name: str, value: int | float) -> str:
    return f"{value:.1f}" if name in SECONDS else format_number(value)
