"""How seconds and memory grow with the pool, the passes and the query; and the costs around the passes.

    python -m examples.benchmarks.growth [--pools 1000 4000 16000 64000]

Each measurement of memory runs in a process of its own, whose peak is read when it ends. Writes `results/growth.json`.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from examples.benchmarks.harness import command_line, query, write
from lightning_al import NoiseStabilityAcquisition, Pool
from lightning_al.functional import k_center, kmeans_plus_plus

BASE = {"pool": 4000, "passes": 10, "budget": 100}


class Drawn(Dataset):
    """Pictures of 3 x 32 x 32 uniform numbers, drawn on the fly from their index, so that they take no memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index)), index % 10


def scored(pool: int, passes: int | str, budget: int) -> dict[str, float]:
    """Run one query of a small network, and return its seconds and the peak memory of this process in MB."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    _, seconds = query(net, Drawn(pool + 1), NoiseStabilityAcquisition(budget, passes), batch_size=256)
    return {"seconds": round(seconds, 2), "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def in_process(**setting: int | str) -> dict[str, float]:
    """Run `scored` in a process of its own."""
    command = [sys.executable, "-m", "examples.benchmarks.growth", "--one", json.dumps(setting)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def selection(points: int, dimensions: int, picks: int, rounds: int) -> dict[str, float]:
    """Time the geometric selections on Gaussian points."""
    x = torch.randn(points, dimensions, generator=torch.Generator().manual_seed(0))

    def k_centers() -> None:
        k_center(x, picks, centers=torch.zeros(1, dimensions))

    def k_means() -> None:
        kmeans_plus_plus(x, picks, generator=torch.Generator().manual_seed(0))

    return {run.__name__: _median(run, rounds) for run in (k_centers, k_means)}


def bookkeeping(size: int, count: int) -> dict[str, float]:
    """Time labeling among many samples, and writing and reading the pool file."""
    pool = Pool(size)
    pool.label(range(0, size, max(size // 100, 1)), strategy="initial")
    left = torch.tensor(pool.unlabeled)
    picks = left[torch.randperm(len(left), generator=torch.Generator().manual_seed(0))[:count]].tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.json"
        return {
            "label": _seconds(lambda: pool.label(picks, strategy="benchmark")),
            "save": _seconds(lambda: pool.save(path)),
            "load": _seconds(lambda: Pool.load(path)),
        }


def importing(rounds: int) -> float:
    """Return the milliseconds that importing the package adds to importing lightning."""
    code = "import time, lightning.pytorch, torchvision; t = time.perf_counter(); import lightning_al; {}"
    command = [sys.executable, "-c", code.format("print(time.perf_counter() - t)")]
    seconds = [float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(rounds)]
    return round(1000 * statistics.median(seconds), 1)


def _median(run: Any, rounds: int) -> float:
    return round(statistics.median(_seconds(run) for _ in range(rounds)), 3)


def _seconds(run: Any) -> float:
    begun = time.perf_counter()
    run()
    return round(time.perf_counter() - begun, 3)


def main() -> None:
    """Read the command line and measure."""
    parser = command_line(__doc__)
    parser.add_argument("--pools", type=int, nargs="*", default=[1000, 4000, 16000, 64000])
    parser.add_argument("--passes", type=int, nargs="*", default=[2, 5, 10, 20])
    parser.add_argument("--budgets", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--picks", type=int, default=2500)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", type=json.loads, help=SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(scored(**options.one)))
        return
    limit = {**BASE, "passes": "inf"}
    figures = {
        "by pool": {pool: in_process(**{**BASE, "pool": pool}) for pool in options.pools},
        "by passes": {passes: in_process(**{**BASE, "passes": passes}) for passes in options.passes},
        'by pool, passes="inf"': {pool: in_process(**{**limit, "pool": pool}) for pool in options.pools},
        "by query": {budget: in_process(**{**BASE, "budget": budget}) for budget in options.budgets},
        f"{options.picks} of {options.points} x 512": selection(options.points, 512, options.picks, options.rounds),
        f"100,000 of {options.samples}": bookkeeping(options.samples, min(100_000, options.samples // 2)),
        "import, ms beyond lightning and torchvision": importing(options.rounds),
    }
    write("growth", {"base": BASE, **figures}, options.results)


if __name__ == "__main__":
    main()
