"""The command `lightning-al compare`: strategies times seeds over one configuration, and what they differ in.

Every run is a call of `lightning-al fit` that anyone can type. A seed gives every strategy the same first labels and
the same first network, so strategies are compared seed by seed. A comparison that was stopped is taken up by the same
command: finished runs are not repeated, interrupted ones are continued.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import read_curves
from lightning_al.cli.arguments import add_target, say
from lightning_al.cli.child_runs import Run, check_settings, read_markers, run_all
from lightning_al.report.curve_plot import draw_comparison
from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.run_folder import RunRefusedError

DEFAULT_SEEDS = 3
LOG_LINES = 20  # shown of a failed run
OWN_ARGUMENTS = ("--seed_everything", "--trainer.default_root_dir", "--overwrite")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: By default those of the process.

    Returns:
        The exit status: 0, or 1 if a run failed or was refused, or 130 if interrupted.

    """
    try:
        return _main(list(sys.argv[1:] if arguments is None else arguments))
    except RunRefusedError as refusal:
        say(f"lightning-al compare: {refusal}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("Interrupted; the same command continues.", sys.stderr)
        return 130


def _main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.report_only:
        report(options.folder, options)
        return 0
    runs = plan(options)
    markers = [run.marker() for run in runs]
    check_settings(read_markers(options.folder), markers, options.folder)
    finished = sum(run.finished for run in runs)
    say(f"{len(runs)} runs in {options.folder}, {finished} of them finished.")
    progress = _Progress(len(runs), finished, options.metric)
    failed = run_all(runs, options.workers, progress)
    if any(run.finished for run in runs):
        report(options.folder, options)
    if failed:
        say(f"\n{len(failed)} of {len(runs)} runs failed:", sys.stderr)
        for run in failed:
            say(f"  {run.strategy} seed {run.seed}: {run.log}", sys.stderr)
    return int(bool(failed))


def plan(options: argparse.Namespace) -> list[Run]:
    """Return the runs that the options ask for, seed by seed, so that a stopped comparison has complete seeds."""
    return [
        Run(options.folder, name, seed, tuple(options.config), path, tuple(options.arguments))
        for seed in options.seeds
        for name, path in options.strategies.items()
    ]


def report(folder: Path, options: argparse.Namespace) -> Comparison:
    """Compare the finished runs in a folder: print the tables, and write them, the numbers and the figure there."""
    markers = read_markers(folder)
    names = list(options.strategies) or sorted({marker["strategy"] for marker in markers})
    chosen = [
        marker
        for marker in markers
        if marker["strategy"] in names and (options.seeds is None or marker["seed"] in options.seeds)
    ]
    if not chosen:
        raise RunRefusedError(f"There is no finished run in {folder}; leave out --report-only to run some.")
    check_settings(chosen, chosen, folder)
    folders: dict[str, dict[int, Path]] = {name: {} for name in names}
    for marker in chosen:
        name, seed = marker["strategy"], marker["seed"]
        folders[name][seed] = folder / f"{name}-seed-{seed}"
    try:
        comparison = Comparison(
            {name: read_curves(paths, options.metric) for name, paths in folders.items() if paths},
            options.metric,
            options.baseline,
            tuple(options.against),
            tuple(options.target),
            options.lower_is_better,
        )
    except ValueError as error:
        raise RunRefusedError(str(error)) from error
    missing = [name for name, paths in folders.items() if not paths]
    text = comparison.to_markdown()
    if missing:
        text += f"\nNo finished run: {', '.join(missing)}.\n"
    say(f"\n{text}")
    write_atomically(folder / "comparison.md", text)
    write_atomically(folder / "comparison.json", json.dumps(comparison.to_dict(), indent=1) + "\n")
    say(f"The learning curves are in {draw_comparison(comparison, folder / 'learning_curves.png')}.")
    return comparison


class _Progress:
    """Tells of each run that ended, in one line, or with the end of its log if it failed."""

    def __init__(self, total: int, done: int, metric: str) -> None:
        self.total = total
        self.done = done
        self.metric = metric

    def __call__(self, run: Run, minutes: float, status: int) -> None:
        self.done += 1
        head = f"[{self.done}/{self.total}] {run.strategy} seed {run.seed}"
        if status:
            lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            say("\n".join([f"{head} failed with status {status} after {minutes:.1f} min; {run.log} ends:", *lines]))
            return
        try:
            curve = read_curves({run.seed: run.path}, self.metric)
        except (OSError, ValueError) as error:
            say(f"{head}: {error}")
            return
        last = f"{self.metric} {curve.values[0, -1]:.4f} with {curve.labels[-1]:g} labels"
        say(f"{head}: {last}, {minutes:.1f} min")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the arguments of the command: `strategies` become files by name, `seeds` a list, the rest `arguments`.

    Raises:
        SystemExit: With status 2, if an argument is out of range or a file is missing; the reason is printed.

    """
    position = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    options = parser.parse_args(arguments[:position])
    options.arguments = list(arguments[position + 1 :])
    options.strategies = _resolve(parser, options.strategies)
    options.seeds = options.seed_list if options.seeds is None else list(range(options.seeds))
    if options.report_only:
        return options
    if options.seeds is None:
        options.seeds = list(range(DEFAULT_SEEDS))
    complaint = _complaint(options)
    if complaint:
        parser.error(complaint)
    return options


def _complaint(options: argparse.Namespace) -> str | None:
    """Return what would go wrong with a comparison, if only after hours."""
    if not options.config or not options.strategies:
        return "--config and --strategies are required, but for --report-only"
    absent = [path for path in options.config if not path.is_file()]
    if absent:
        return f"--config {absent[0]}: there is no such file"
    if not options.seeds or len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        return f"expected one seed or more, from 0 and none twice, got {options.seeds}"
    if options.workers < 1:
        return f"--workers {options.workers}: expected at least 1"
    unknown = [name for name in (options.baseline, *options.against) if name not in options.strategies]
    if unknown and len(options.strategies) > 1:
        return f"{unknown[0]} is to be compared with, but is not among --strategies: add it, or name a --baseline"
    own = [word for word in options.arguments if word.split("=")[0] in OWN_ARGUMENTS]
    if own:
        return f"{own[0]} after -- is not for a comparison, which sets seeds and folders itself: --seeds, --folder"
    missing = [package for package in ("matplotlib", "scipy") if find_spec(package) is None]
    if missing:
        return f'{missing[0]} is not installed: pip install "lightning_al[report]"'
    return None


def _resolve(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, Path]:
    """Return the file of each strategy by its name; a bare name stands for a file of `configs/strategies`."""
    found: dict[str, Path] = {}
    for text in given:
        bare = Path(text).suffix not in (".yaml", ".yml") and os.sep not in text
        path = Path("configs", "strategies", f"{text}.yaml") if bare else Path(text)
        if not path.is_file():
            parser.error(f"--strategies {text}: there is no file {path}")
        if path.stem in found:
            parser.error(f"--strategies: {found[path.stem]} and {path} have the same name; rename one")
        found[path.stem] = path
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-al compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Everything after -- goes to every `lightning-al fit`:\n"
        "  lightning-al compare --config configs/digits.yaml --strategies random margin -- --trainer.max_epochs 5",
        allow_abbrev=False,
    )
    parser.add_argument("--config", nargs="+", type=Path, default=[], help="YAML of data, model and trainer")
    parser.add_argument(
        "--strategies", nargs="+", default=[], help="YAML files, or names of files in configs/strategies"
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=int, help=f"how many seeds per strategy, from 0 (default: {DEFAULT_SEEDS})")
    seeds.add_argument("--seed-list", type=int, nargs="+", metavar="SEED", help="the seeds themselves")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"), help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="runs at a time (default: one per core, %(default)s)"
    )
    parser.add_argument("--report-only", "--no-run", action="store_true", help="only report the finished runs")
    parser.add_argument("--metric", default="test/accuracy", help="column of cycles.csv (default: %(default)s)")
    parser.add_argument("--lower-is-better", action="store_true", help="the metric is an error")
    parser.add_argument("--baseline", default="random", help="what all are compared with (default: %(default)s)")
    parser.add_argument("--against", nargs="+", default=[], metavar="NAME", help="compare all with these, too")
    add_target(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
