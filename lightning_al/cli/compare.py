"""The command `lightning-al compare`: run several strategies with several seeds over one configuration, and compare.

Every run is a call of `lightning-al fit` that can be repeated by hand. A seed gives every strategy the same initial
labels and the same initial network, so strategies are compared seed by seed. The same command continues a comparison
that was stopped: finished runs are not repeated, interrupted ones are continued.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import LearningCurves, group_by_labels, read_curves
from lightning_al.cli.arguments import EXPLAINED_ERRORS, add_target, available_cores, print_line
from lightning_al.cli.child_runs import Run, check_settings, devices_to_share_out, run_all
from lightning_al.cli.grid import expand, read_grid
from lightning_al.cli.presets import resolve_config
from lightning_al.report.comparison_tables import comparison_to_markdown
from lightning_al.report.curve_plot import draw_comparison
from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.completion import read_completions, run_name
from lightning_al.storage.run_folder import RunRefusedError

DEFAULT_SEEDS = 3
LOG_LINES = 20  # printed of a failed run
RESERVED_ARGUMENTS = ("--seed_everything", "--trainer.default_root_dir", "--overwrite")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The arguments; None takes those of the process.

    Returns:
        The exit status: 0, or 1 if a run failed or was refused, or 130 if interrupted.

    """
    try:
        return _main(list(sys.argv[1:] if arguments is None else arguments))
    except EXPLAINED_ERRORS as refusal:
        print_line(f"lightning-al compare: {refusal}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        print_line("Interrupted; the same command continues.", sys.stderr)
        return 130


def _main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.report_only:
        report(options.folder, options)
        return 0
    runs = plan(options)
    current = [run.completion_record() for run in runs]
    check_settings(read_completions(options.folder), current, options.folder)
    finished = sum(run.finished for run in runs)
    print_line(f"{len(runs)} runs in {options.folder}, {finished} of them finished.")
    progress = _Progress(len(runs), finished, options.metric)
    devices = [] if options.share_devices else devices_to_share_out(runs[0])
    failed = run_all(runs, options.workers, progress, devices=devices)
    if any(run.finished for run in runs):
        report(options.folder, options)
    if failed:
        print_line(f"\n{len(failed)} of {len(runs)} runs failed:", sys.stderr)
        for run in failed:
            print_line(f"  {run.strategy} seed {run.seed}: {run.log}", sys.stderr)
    return int(bool(failed))


def plan(options: argparse.Namespace) -> list[Run]:
    """Return the runs of the comparison, seed by seed, so that a stopped comparison has complete seeds."""
    return [
        Run(options.folder, name, seed, tuple(options.config), path, tuple(options.arguments), settings)
        for seed in options.seeds
        for name, (path, settings) in options.strategies.items()
    ]


def report(folder: Path, options: argparse.Namespace) -> list[Comparison]:
    """Compare the finished runs in a folder: print the tables, and write tables, numbers and figure to the folder.

    Strategies with other numbers of labels, as variants of the query size have, are compared apart.
    """
    records = read_completions(folder)
    names = list(options.strategies) or sorted({record.strategy for record in records})
    chosen = [
        record
        for record in records
        if record.strategy in names and (options.seeds is None or record.seed in options.seeds)
    ]
    if not chosen:
        raise RunRefusedError(f"There is no finished run in {folder}; leave out --report-only to run some.")
    check_settings(chosen, chosen, folder)
    folders: dict[str, dict[int, Path]] = {name: {} for name in names}
    for record in chosen:
        folders[record.strategy][record.seed] = folder / run_name(record.strategy, record.seed)
    try:
        curves = {name: read_curves(paths, options.metric) for name, paths in folders.items() if paths}
        comparisons = [_compare(group, options) for group in group_by_labels(curves)]
    except ValueError as error:
        raise RunRefusedError(str(error)) from error
    missing = [name for name, paths in folders.items() if not paths]
    text = "\n".join(comparison_to_markdown(comparison) for comparison in comparisons)
    if missing:
        text += f"\nNo finished run: {', '.join(missing)}.\n"
    print_line(f"\n{text}")
    write_atomically(folder / "comparison.md", text)
    for number, comparison in enumerate(comparisons, start=1):
        suffix = f"-{number}" if len(comparisons) > 1 else ""
        write_atomically(folder / f"comparison{suffix}.json", json.dumps(comparison.to_dict(), indent=1) + "\n")
        picture = draw_comparison(comparison, folder / f"learning_curves{suffix}.png")
        print_line(f"The learning curves are in {picture}.")
    return comparisons


def _compare(curves: dict[str, LearningCurves], options: argparse.Namespace) -> Comparison:
    """Compare some strategies with the baseline, or with the first variant of it if it has variants only."""
    variants = (name for name in curves if name.startswith(f"{options.baseline},"))
    baseline = options.baseline if options.baseline in curves else next(variants, options.baseline)
    return Comparison(
        curves, options.metric, baseline, tuple(options.against), tuple(options.target), options.lower_is_better
    )


class _Progress:
    """Print a line for each run that ended, and the end of its log if it failed."""

    def __init__(self, total: int, done: int, metric: str) -> None:
        self.total = total
        self.done = done
        self.metric = metric

    def __call__(self, run: Run, minutes: float, status: int) -> None:
        self.done += 1
        head = f"[{self.done}/{self.total}] {run.strategy} seed {run.seed}"
        if status:
            lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            print_line(f"{head} failed with status {status} after {minutes:.1f} min; {run.log} ends:")
            print_line("\n".join(lines))
            return
        try:
            curve = read_curves({run.seed: run.path}, self.metric)
        except (OSError, ValueError) as error:
            print_line(f"{head}: {error}")
            return
        last = f"{self.metric} {curve.values[0, -1]:.4f} with {curve.labels[-1]:g} labels"
        print_line(f"{head}: {last}, {minutes:.1f} min")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments: `strategies` maps names to files and settings, and `arguments` is what follows `--`.

    Raises:
        SystemExit: With status 2 if an argument is out of range or a file is missing; the reason is printed.

    """
    position = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    options = parser.parse_args(arguments[:position])
    options.arguments = list(arguments[position + 1 :])
    try:
        grid = read_grid(options.grid)
    except ValueError as error:
        parser.error(f"--grid {error}")
    options.strategies = expand(_resolve(parser, options.strategies), grid, options.baseline)
    options.seeds = options.seed_list if options.seeds is None else list(range(options.seeds))
    if options.report_only:
        return options
    if options.seeds is None:
        options.seeds = list(range(DEFAULT_SEEDS))
    problem = _find_problem(options)
    if problem:
        parser.error(problem)
    return options


def _find_problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with the options, also what would fail only after all runs; None if nothing is."""
    if not options.config or not options.strategies:
        return "--config and --strategies are required, except with --report-only"
    absent = [path for path in options.config if not path.is_file()]
    if absent:
        return f"--config {absent[0]}: there is no such file"
    if not options.seeds or len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        return f"expected one or more different seeds, none below 0, got {options.seeds}"
    if options.workers < 1:
        return f"--workers {options.workers}: expected at least 1"
    names = set(options.strategies) | {name.partition(",")[0] for name in options.strategies}
    unknown = [name for name in (options.baseline, *options.against) if name not in names]
    if unknown and len(options.strategies) > 1:
        return (
            f"--baseline or --against {unknown[0]}: it is not among --strategies; add it, or name another --baseline: "
            f"{', '.join(options.strategies)}"
        )
    reserved = [word for word in options.arguments if word.split("=")[0] in RESERVED_ARGUMENTS]
    if reserved:
        return f"{reserved[0]} after --: a comparison sets seeds and folders itself; use --seeds and --folder"
    missing = [package for package in ("matplotlib", "scipy") if find_spec(package) is None]
    if missing:
        return f'{missing[0]} is not installed: pip install "lightning_al[report]"'
    return None


def _resolve(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Path]:
    """Return the file of each strategy by its name; a bare name stands for a preset."""
    files: dict[str, Path] = {}
    for word in words:
        try:
            path = Path(resolve_config(word))
        except ValueError as error:
            parser.error(f"--strategies {word}: {error}")
        if not path.is_file():
            parser.error(f"--strategies {word}: there is no such file")
        if path.stem in files:
            parser.error(f"--strategies: {files[path.stem]} and {path} have the same name; rename one")
        files[path.stem] = path
    return files


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-al compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All arguments after -- are passed to every `lightning-al fit`:\n"
        "  lightning-al compare --config configs/digits.yaml --strategies random margin -- --trainer.max_epochs 5",
        allow_abbrev=False,
    )
    parser.add_argument("--config", nargs="+", type=Path, default=[], help="YAML files of data, model and trainer")
    parser.add_argument("--strategies", nargs="+", default=[], help="names of presets, such as margin, or YAML files")
    parser.add_argument(
        "--grid",
        nargs="+",
        default=[],
        metavar="SETTING=VALUE,...",
        help="variants of the strategies, such as acquisition.passes=1,3,10,inf: all combinations of arguments of fit, "
        "or YAML files that map names to such arguments; arguments of the acquisition leave out the baseline",
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=int, help=f"number of seeds per strategy: 0, 1, ... (default: {DEFAULT_SEEDS})")
    seeds.add_argument("--seed-list", type=int, nargs="+", metavar="SEED", help="the seeds themselves")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"), help="for all runs (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="runs at a time (default: one per core, %(default)s)"
    )
    parser.add_argument(
        "--share-devices",
        action="store_true",
        help="let every run see all GPUs (default: one each, in turn, unless `trainer.devices` is set)",
    )
    parser.add_argument("--report-only", "--no-run", action="store_true", help="run nothing, report the finished runs")
    parser.add_argument("--metric", default="test/accuracy", help="column of cycles.csv (default: %(default)s)")
    parser.add_argument("--lower-is-better", action="store_true", help="the metric is an error")
    parser.add_argument(
        "--baseline", default="random", help="the strategy that all others are compared with (default: %(default)s)"
    )
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="NAME", help="further strategies that all others are compared with"
    )
    add_target(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
