"""Table 1, appendix A.6: seconds that each strategy takes to pick 250 and 2,500 out of 10,000 and 20,000.

    python -m examples.paper.selection_seconds --folder /usr/share/datasets/fashion-mnist

On Fashion-MNIST, with the small network of `configs/fashion_mnist.yaml`, which is trained on 1,000 pictures first. As
in the paper dropout is drawn ten times. BatchBALD is left out unless it is asked for: its time grows with the product
of pool and picks, and is hours on a CPU.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from torch.utils.data import Subset, TensorDataset

from examples.benchmarks.harness import environment, query
from examples.fashion_mnist import SmallCNN, read_fashion_mnist
from lightning_al import (
    Acquisition,
    BALDAcquisition,
    BatchBALDAcquisition,
    CoreSetAcquisition,
    MCDropoutAcquisition,
    NoiseStabilityAcquisition,
)

TRAINING, BATCH, DRAWS = 1_000, 500, 10

STRATEGIES: dict[str, Callable[[int], Acquisition]] = {
    "mc_dropout": lambda size: MCDropoutAcquisition(size, passes=DRAWS),
    "core_set": lambda size: CoreSetAcquisition(size),
    "bald": lambda size: BALDAcquisition(size, passes=DRAWS),
    "batch_bald": lambda size: BatchBALDAcquisition(size, passes=DRAWS),
    "noise_stability_paper": lambda size: NoiseStabilityAcquisition(size, passes=10, selection="topk"),
    "noise_stability": lambda size: NoiseStabilityAcquisition(size, passes="inf"),
}


def train(pictures: TensorDataset, steps: int = 300) -> SmallCNN:
    """Return a network that is trained with Adam on batches of 64 pictures."""
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (64,))
        loss = model.training_step(pictures[rows], 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main() -> None:
    """Measure each combination once, print the table, and write it with the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="the files of Fashion-MNIST")
    parser.add_argument("--pools", type=int, nargs="+", default=[10_000, 20_000])
    parser.add_argument("--picks", type=int, nargs="+", default=[250, 2_500])
    parser.add_argument("--strategies", nargs="+", default=[name for name in STRATEGIES if name != "batch_bald"])
    parser.add_argument("--output", type=Path, default=Path("runs/paper/table_1.json"))
    options = parser.parse_args()
    seed_everything(0, verbose=False)
    pixels, labels = read_fashion_mnist(options.folder)
    pictures = TensorDataset(pixels.float() / 255, labels.long())
    network = train(TensorDataset(*pictures[:TRAINING]))
    columns = [(pool, picks) for pool in options.pools for picks in options.picks]
    print("| strategy |", " | ".join(f"{picks} of {pool}" for pool, picks in columns), "|")
    print("| --- |", " | ".join("---" for _ in columns), "|")
    seconds: dict[str, list[float]] = {}
    for name in options.strategies:
        # the first sample of the dataset is labeled, which a query needs
        pools = (Subset(pictures, range(TRAINING - 1, TRAINING + pool)) for pool, _ in columns)
        seconds[name] = [
            query(network, pool, STRATEGIES[name](picks), BATCH)[1]
            for pool, (_, picks) in zip(pools, columns, strict=True)
        ]
        print(f"| {name} |", " | ".join(f"{value:.1f}" for value in seconds[name]), "|", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    table = {"columns": columns, "seconds": seconds, "environment": environment()}
    options.output.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
