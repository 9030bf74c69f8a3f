"""Seven cycles of active learning on real handwritten digits, and a learning curve against random selection.

Every run is a call of the command line that anyone can type; this script only repeats it over seeds and draws.
Nine runs take one to two minutes on two cores. Finished runs are kept in `runs/demo`, and not repeated.

    python examples/demo.py
    python examples/demo.py --seeds 10 --strategies random margin noise_stability noise_stability_power
"""

import argparse
import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
METRIC = "test/accuracy"


def main() -> None:
    """Run what is missing, then print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds per strategy (default: %(default)s)")
    parser.add_argument(
        "--strategies", nargs="+", default=["random", "noise_stability", "noise_stability_power"], help="YAML names"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "demo", help="where runs are kept")
    options = parser.parse_args()
    study = Study(options.folder.resolve(), options.strategies, options.seeds)
    jobs = [(strategy, seed) for seed in range(options.seeds) for strategy in options.strategies]
    shown = ("noise_stability", 0) if "noise_stability" in options.strategies else jobs[0]
    study.run(*shown, quiet=False)
    jobs.remove(shown)
    if jobs:
        print(f"\nThe same for {len(jobs)} more: {', '.join(options.strategies)}, seeds 0 to {options.seeds - 1}.")
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for (strategy, seed), last in zip(jobs, workers.map(lambda job: study.run(*job), jobs), strict=True):
            print(f"  {strategy} seed {seed}: {METRIC} {last:.3f}", flush=True)
    print("\n" + study.table())
    print(f"\nThe learning curve is in {study.draw()}.")


@dataclass(frozen=True)
class Study:
    """Runs of some strategies over some seeds.

    Attributes:
        folder: Where the runs are kept.
        strategies: Names of files in `configs/strategies`.
        seeds: How many seeds.

    """

    folder: Path
    strategies: list[str]
    seeds: int

    def run(self, strategy: str, seed: int, *, quiet: bool = True) -> float:
        """Run the cycles of one strategy and seed through the command line, and return the last accuracy."""
        command = ["fit", "--config", "configs/digits.yaml", "--config", f"configs/strategies/{strategy}.yaml"]
        command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(self._run(strategy, seed))]
        # several runs share the processor; wandb records offline and has nothing to say
        environment = {**os.environ, "WANDB_SILENT": "true", **({"OMP_NUM_THREADS": "1"} if quiet else {})}
        if not quiet:
            print(f"$ lightning-al {' '.join(command)}", flush=True)
        finished = subprocess.run(
            [sys.executable, "-m", "lightning_al", *command],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
        )
        if finished.returncode:
            raise SystemExit(f"{strategy} seed {seed} failed.\n{finished.stdout or ''}")
        return self._cycles(strategy, seed)[-1][1]

    def table(self) -> str:
        """Lay out mean and standard deviation of each cycle, and of the mean over all cycles, as Markdown."""
        labeled, curves = self._curves()
        head = ["strategy", *(f"{count} labels" for count in labeled), "all cycles"]
        rows = [
            [name, *(f"{mean:.3f} ± {spread:.3f}" for mean, spread in _summarize(_with_mean(values)))]
            for name, values in curves.items()
        ]
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
        lines.insert(1, ["-" * width for width in widths])
        title = f"{METRIC}, mean ± standard deviation over {self.seeds} seeds:"
        return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines)])

    def draw(self) -> Path:
        """Draw mean and standard deviation of the accuracy against the number of labels, and return the file."""
        labeled, curves = self._curves()
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for position, (name, values) in enumerate(curves.items()):
            mean, spread = np.array(_summarize(values)).T
            style = {"color": "0.45", "linestyle": "--"} if name == "random" else {"color": f"C{position}"}
            axes.plot(labeled, mean, marker="o", markersize=4, label=name.replace("_", " "), **style)
            axes.fill_between(labeled, mean - spread, mean + spread, alpha=0.15, color=style["color"], linewidth=0)
        axes.set(xlabel="labeled samples", ylabel="test accuracy", xticks=labeled)
        axes.set_title(f"Digits, mean ± standard deviation over {self.seeds} seeds", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        picture = self.folder / "learning_curve.png"
        figure.savefig(picture, dpi=150)
        plt.close(figure)
        return picture

    def _run(self, strategy: str, seed: int) -> Path:
        return self.folder / f"{strategy}-seed-{seed}"

    def _cycles(self, strategy: str, seed: int) -> list[tuple[int, float]]:
        with (self._run(strategy, seed) / "cycles.csv").open(encoding="utf-8", newline="") as file:
            return [(int(row["labeled"]), float(row[METRIC])) for row in csv.DictReader(file)]

    def _curves(self) -> tuple[list[int], dict[str, np.ndarray]]:
        runs = {name: [self._cycles(name, seed) for seed in range(self.seeds)] for name in self.strategies}
        labeled = [count for count, _ in runs[self.strategies[0]][0]]
        return labeled, {
            name: np.array([[value for _, value in cycles] for cycles in run]) for name, run in runs.items()
        }


def _with_mean(values: np.ndarray) -> np.ndarray:
    return np.column_stack([values, values.mean(1)])


def _summarize(values: np.ndarray) -> list[tuple[float, float]]:
    """Return mean and standard deviation of each column; one seed has no spread."""
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return list(zip(values.mean(0).tolist(), spread.tolist(), strict=True))


if __name__ == "__main__":
    main()
