"""Seven cycles of active learning on real handwritten digits, and a learning curve against random selection.

Every run is a call of the command line that anyone can type; this script only repeats it over seeds and draws.
Nine runs take about two minutes on two cores. Finished runs are kept in `runs/demo`, and not repeated.

    python examples/demo.py
    python examples/demo.py --seeds 10 --strategies random margin noise_stability noise_stability_power
"""

import argparse
import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "demo"
METRIC = "test/accuracy"


def main() -> None:
    """Run what is missing, then print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds per strategy (default: %(default)s)")
    parser.add_argument(
        "--strategies", nargs="+", default=["random", "noise_stability", "noise_stability_power"], help="YAML names"
    )
    options = parser.parse_args()
    jobs = [(strategy, seed) for seed in range(options.seeds) for strategy in options.strategies]
    shown = ("noise_stability", 0) if "noise_stability" in options.strategies else jobs[0]
    run(*shown, quiet=False)
    jobs.remove(shown)
    print(f"\nThe same for {len(jobs)} more: {', '.join(options.strategies)}, seeds 0 to {options.seeds - 1}.")
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for (strategy, seed), last in zip(jobs, workers.map(lambda job: run(*job, quiet=True), jobs), strict=True):
            print(f"  {strategy} seed {seed}: {METRIC} {last:.3f}", flush=True)
    labeled, curves = read_curves(options.strategies, options.seeds)
    print("\n" + format_curves(labeled, curves, options.seeds))
    picture = RUNS / "learning_curve.png"
    draw(labeled, curves, options.seeds, picture)
    print(f"\nThe learning curve is in {picture.relative_to(ROOT)}.")


def run_folder(strategy: str, seed: int) -> Path:
    """Return where a run is kept."""
    return RUNS / f"{strategy}-seed-{seed}"


def run(strategy: str, seed: int, *, quiet: bool) -> float:
    """Run the cycles of one strategy and seed through the command line, and return the last accuracy."""
    command = ["fit", "--config", "configs/digits.yaml", "--config", f"configs/strategies/{strategy}.yaml"]
    command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(run_folder(strategy, seed))]
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
    return read_cycles(strategy, seed)[-1][1]


def read_cycles(strategy: str, seed: int) -> list[tuple[int, float]]:
    """Read labels and accuracy of each cycle of a run."""
    with (run_folder(strategy, seed) / "cycles.csv").open(encoding="utf-8", newline="") as file:
        return [(int(row["labeled"]), float(row[METRIC])) for row in csv.DictReader(file)]


def read_curves(strategies: list[str], seeds: int) -> tuple[list[int], dict[str, np.ndarray]]:
    """Read the labeled counts, and a (seeds, cycles) array of accuracies per strategy."""
    runs = {strategy: [read_cycles(strategy, seed) for seed in range(seeds)] for strategy in strategies}
    labeled = [count for count, _ in runs[strategies[0]][0]]
    return labeled, {name: np.array([[value for _, value in cycles] for cycles in run]) for name, run in runs.items()}


def format_curves(labeled: list[int], curves: dict[str, np.ndarray], seeds: int) -> str:
    """Lay out mean and standard deviation of each cycle, and of their mean over all cycles."""
    width = max(map(len, curves))
    head = [f"{METRIC}, mean ± standard deviation over {seeds} seeds", ""]
    head += [" ".join([f"{'labeled':<{width}}", *(f"{count:>13}" for count in labeled), f"{'all':>13}"])]
    rows = []
    for name, values in curves.items():
        spread = values.std(0, ddof=1) if seeds > 1 else np.zeros(len(labeled))
        cells = [f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in zip(values.mean(0), spread, strict=True)]
        curve = values.mean(1)
        cells.append(f"{curve.mean():.3f} ± {curve.std(ddof=1) if seeds > 1 else 0:.3f}")
        rows.append(" ".join([f"{name:<{width}}", *(f"{cell:>13}" for cell in cells)]))
    return "\n".join(head + rows)


def draw(labeled: list[int], curves: dict[str, np.ndarray], seeds: int, picture: Path) -> None:
    """Draw mean and standard deviation of the accuracy against the number of labels."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for position, (name, values) in enumerate(curves.items()):
        mean = values.mean(0)
        spread = values.std(0, ddof=1) if seeds > 1 else np.zeros(len(mean))
        style = {"color": "0.45", "linestyle": "--"} if name == "random" else {"color": f"C{position}"}
        axes.plot(labeled, mean, marker="o", markersize=4, label=name.replace("_", " "), **style)
        axes.fill_between(labeled, mean - spread, mean + spread, alpha=0.15, color=style["color"], linewidth=0)
    axes.set(xlabel="labeled samples", ylabel="test accuracy", xticks=labeled)
    axes.set_title(f"Digits, 20 more labels per cycle: mean ± standard deviation, {seeds} seeds", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
