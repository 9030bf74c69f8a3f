"""The command `lightning-al report`: write a page about finished and unfinished runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_al.analysis.comparison import Comparison
from lightning_al.cli.arguments import EXPLAINED_ERRORS, add_target, print_line
from lightning_al.report.groups import Group, choose_metric, compare_groups, group_runs
from lightning_al.report.page import make_page
from lightning_al.report.pictures import draw_pictures
from lightning_al.report.runs import find_runs
from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.cycles_table import metric_names

REQUIRED_PACKAGES = ("jinja2", "matplotlib", "plotly", "scipy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The arguments; None takes those of the process.

    Returns:
        The exit status: 0, or 1 if a run was refused.

    """
    options = _parser().parse_args(arguments)
    missing = [package for package in REQUIRED_PACKAGES if find_spec(package) is None]
    if missing:
        print_line(
            f'lightning-al report: {missing[0]} is not installed: pip install "lightning_al[report]"', sys.stderr
        )
        return 1
    try:
        for file in write_report(options):
            print_line(str(file))
    except EXPLAINED_ERRORS as refusal:
        print_line(f"lightning-al report: {refusal}", sys.stderr)
        return 1
    return 0


def write_report(options: argparse.Namespace) -> list[Path]:
    """Write the page and, beside it, its pictures; return their paths."""
    runs, unreadable = find_runs(options.runs)
    unreadable += [reason for run in runs for reason in run.unreadable]
    for reason in unreadable:
        print_line(f"Left out: {reason}", sys.stderr)
    groups = group_runs(runs)
    page: Path = options.output or _common_folder(options.runs) / "report.html"
    comparison: Comparison | None = None
    apart: list[Group] = []
    if options.metric or any(metric_names(run.records) for run in runs):
        metric, cost = choose_metric(runs, options.metric)
        lower = cost if options.lower_is_better is None else options.lower_is_better
        comparison, apart = compare_groups(groups, metric, options.baseline, lower, options.target)
    title = (
        options.title or f"Active learning: {', '.join(dict.fromkeys(path.resolve().name for path in options.runs))}"
    )
    write_atomically(page, make_page(comparison, groups, apart, title, unreadable))
    return [page, *draw_pictures(comparison, groups, page.with_suffix(""))]


def _common_folder(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.resolve() for path in paths]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-al report",
        description="Write report.html, a single page that needs no network, and pictures in report/: learning curves "
        "over seeds, a comparison, and the picks of each cycle of every run.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of run folders")
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the folder of the runs)")
    parser.add_argument("--title", help="of the page (default: the names of the folders)")
    parser.add_argument("--metric", help="column of cycles.csv (default: the first that is not a loss)")
    parser.add_argument(
        "--lower-is-better",
        action=argparse.BooleanOptionalAction,
        help="whether the metric is an error (default: by its name)",
    )
    parser.add_argument(
        "--baseline", help="the group that all others are compared with (default: random selection, if there is one)"
    )
    add_target(parser)
    return parser
