"""The picture of what a pass is worth: how near picks come to those of infinitely many passes, over what they cost.

python docs/pictures/fidelity.py
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "examples" / "benchmarks" / "results"
TITLES = {"small_cnn": "the paper's network for MNIST", "resnet18": "ResNet-18"}
SHARES = {"0.02": "2 %", "0.1": "10 %"}
STYLES = {"0.02": "--", "0.1": "-"}


def draw(axes: Any, figures: dict[str, Any]) -> None:
    """Draw one case: a curve of passes and one of directions for each share of the pool that is picked."""
    for share, percent in SHARES.items():
        for kind, name, color, marker in (
            ("passes", "K passes", "tab:orange", "o"),
            ("closed form", "closed form", "tab:blue", "s"),
        ):
            ways = figures[kind]
            costs = [way["forward passes"] for way in ways.values()]
            overlaps = [way["overlap"][share] for way in ways.values()]
            label = f"{name}, {percent} picked"
            axes.plot(costs, overlaps, STYLES[share], color=color, marker=marker, markersize=4, label=label)
            if share != "0.1":
                continue
            for way, cost, overlap in zip(ways, costs, overlaps, strict=True):
                text = f"K = {way}" if kind == "passes" else f"{way}"
                below = kind == "passes"
                axes.annotate(text, (cost, overlap), (4, -12 if below else 5), textcoords="offset points", fontsize=7)
    axes.set(
        xscale="log", xlabel="cost in forward passes", ylabel="overlap with infinitely many passes", ylim=(0, 1.08)
    )
    ticks = [2, 4, 10, 20, 40, 100]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title(TITLES[figures["case"].removeprefix("fidelity-")], fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def main() -> None:
    """Draw every case that was measured."""
    cases = [RESULTS / f"fidelity-{name}.json" for name in TITLES]
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in cases if path.is_file()]
    figure = Figure(figsize=(5.5 * len(measured), 4.2), layout="constrained")
    for axes, figures in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        draw(axes, figures)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
