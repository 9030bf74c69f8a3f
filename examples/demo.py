"""Seven cycles of active learning on real handwritten digits, and a learning curve against random selection.

Every run is a call of the command line that can be repeated by hand; this script repeats it over seeds and compares,
as `lightning-al compare` does, and prints the output of one of the runs. Nine runs take some three minutes on two
cores. Finished runs are kept in `runs/demo`, and not repeated.

    python examples/demo.py
    python examples/demo.py --seeds 10 --strategies random margin noise_stability_paper noise_stability
"""

import argparse
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import read_curves
from lightning_al.cli.arguments import available_cores
from lightning_al.cli.child_runs import Run, check_settings, run_all
from lightning_al.cli.presets import resolve_config
from lightning_al.cli.report import REQUIRED_PACKAGES
from lightning_al.report.comparison_tables import comparison_to_markdown
from lightning_al.report.curve_plot import draw_comparison
from lightning_al.storage.completion import read_completions
from lightning_al.storage.run_folder import RunRefusedError

ROOT = Path(__file__).parent.parent
CONFIG = Path("configs", "digits.yaml")
METRIC = "test/accuracy"


def main() -> int:
    """Run what is missing, then print the tables and draw the figure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds per strategy (default: %(default)s)")
    parser.add_argument(
        "--strategies", nargs="+", default=["random", "noise_stability_paper", "noise_stability"], help="preset names"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "demo", help="where runs are kept")
    options = parser.parse_args()
    folder = options.folder.resolve()
    os.chdir(ROOT)  # the commands name files of the checkout
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: expected at least 1")
    try:
        files = {name: Path(resolve_config(name)) for name in options.strategies}
    except ValueError as error:
        parser.error(f"--strategies: {error}")
    runs = [Run(folder, name, seed, (CONFIG,), path) for seed in range(options.seeds) for name, path in files.items()]
    try:
        check_settings(read_completions(folder), [run.completion_record() for run in runs], folder)
        failed = run_one_to_terminal_first(runs)
    except RunRefusedError as refusal:
        print(f"demo: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; the same command continues.", file=sys.stderr)
        return 130
    if failed:
        return 1
    paths = {name: {run.seed: run.path for run in runs if run.strategy == name} for name in files}
    comparison = Comparison({name: read_curves(folders, METRIC) for name, folders in paths.items()}, METRIC, "random")
    print(f"\n{comparison_to_markdown(comparison)}")
    print(f"The learning curve is in {draw_comparison(comparison, folder / 'learning_curve.png')}.")
    path = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    # the demo itself needs fewer packages than the page
    install = "" if all(map(find_spec, REQUIRED_PACKAGES)) else '.venv/bin/pip install -e ".[report]" && '
    print(f"The picks of each cycle, as a page: {install}.venv/bin/lightning-al report {path}")
    return 0


def run_one_to_terminal_first(runs: list[Run]) -> list[Run]:
    """Run one of noise stability with its output, then the others without; return those that failed."""
    first = next((run for run in runs if run.strategy == "noise_stability"), runs[0])
    if not first.finished:
        print(f"$ {shlex.join(['lightning-al', *first.command])}", flush=True)
        # with the processor's share of one of several runs: so small a network gains nothing from more threads
        failed = run_all([first], available_cores(), print_result, to_terminal=True)
        if failed:
            return failed
    others = [run for run in runs if run != first]
    if others:
        names = dict.fromkeys(run.strategy for run in runs)
        print(f"\nThe same for {len(others)} more: {', '.join(names)}, seeds 0 to {runs[-1].seed}.", flush=True)
    for run in others:
        if run.finished:
            print_result(run, 0, 0)
    return run_all(others, available_cores(), print_result)


def print_result(run: Run, minutes: float, status: int) -> None:
    """Print the last value of the metric of a run, or the log of a run that failed."""
    if status:
        text = run.log.read_text(encoding="utf-8") if run.log.exists() else ""  # the first run has none
        print(f"  {run.strategy} seed {run.seed} failed with status {status}.\n{text}", flush=True)
        return
    last = read_curves({run.seed: run.path}, METRIC).values[0, -1]
    print(f"  {run.strategy} seed {run.seed}: {METRIC} {last:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
