"""Table 2, appendix A.7: how certain cycle 1's training samples become in cycle 2, by what was labeled in between.

    python -m examples.paper.variance_reduction --folder /usr/share/datasets/fashion-mnist --seeds 3

On Fashion-MNIST, with the small network of `configs/fashion_mnist.yaml`: 1,000 pictures are labeled at first, and 500
of 10,000 candidates by each strategy. The model of cycle 2 is new, and sees all that is labeled by then; 50 draws of
dropout give the mean probability of the true class and the entropy of the mean prediction.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from examples.fashion_mnist import FashionMNISTDataModule, SmallCNN
from lightning_al import (
    Acquisition,
    ActiveLearningDataModule,
    CoreSetAcquisition,
    NoiseStabilityAcquisition,
    RandomAcquisition,
    run_cycles,
)

CANDIDATES, INITIAL, QUERY, EPOCHS, DRAWS = 10_000, 1_000, 500, 50, 50

STRATEGIES: dict[str, Callable[[], Acquisition]] = {
    "random": lambda: RandomAcquisition(QUERY),
    "core_set": lambda: CoreSetAcquisition(QUERY),
    "noise_stability_paper": lambda: NoiseStabilityAcquisition(QUERY, passes=10, selection="topk"),
    "noise_stability": lambda: NoiseStabilityAcquisition(QUERY, passes="inf", selection="power"),
}


def certainty(network: nn.Module, pictures: Tensor, labels: Tensor, draws: int = DRAWS) -> tuple[float, float]:
    """Return the mean probability of the true class and the mean entropy under dropout, over samples.

    Args:
        network: Returns logits (B, C); its dropout is on, all else in eval mode.
        pictures: Inputs (B, ...).
        labels: True classes (B,).
        draws: Number of draws, each with a mask per sample.

    """
    network.eval()
    for module in network.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.train()
    with torch.no_grad():
        mean = torch.stack([network(pictures).softmax(1) for _ in range(draws)]).mean(0)
    entropy = torch.special.entr(mean).sum(1)
    return mean[torch.arange(len(labels)), labels].mean().item(), entropy.mean().item()


def run(strategy: str, seed: int, pictures_folder: str, run_folder: str) -> list[dict[str, float]]:
    """Train two cycles, and return confidence and entropy of the first labels, and the accuracy, after each."""
    source = FashionMNISTDataModule(pictures_folder)
    data = ActiveLearningDataModule(source, initial_size=INITIAL, candidates=CANDIDATES, pool_batch_size=500, seed=seed)
    models: list[SmallCNN] = []

    def make(cycle: int) -> tuple[Trainer, SmallCNN]:
        models.append(SmallCNN())
        trainer = Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            callbacks=[STRATEGIES[strategy]()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return trainer, models[-1]

    records = run_cycles(make, data, cycles=2, run_dir=run_folder, config={"strategy": strategy})
    pictures, labels = source.train[data.pool.labeled_by(0)]
    torch.manual_seed(seed)
    rows = []
    for model, record in zip(models, records, strict=True):
        confidence, entropy = certainty(model, pictures, labels)
        rows.append({"confidence": confidence, "entropy": entropy, "accuracy": record["test/accuracy"]})
    return rows


def main() -> None:
    """Run all strategies and seeds, print the means after cycle 2, and write every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="the files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/paper/table_2.json"))
    options = parser.parse_args()
    rows: dict[str, list[list[dict[str, float]]]] = {name: [] for name in STRATEGIES}
    for seed in range(options.seeds):
        for name in STRATEGIES:
            with TemporaryDirectory() as folder:
                rows[name].append(run(name, seed, options.folder, folder))
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("| after | confidence | entropy | accuracy |")
    print("| --- | --- | --- | --- |")
    for cycle, name in [(0, "random"), *((1, name) for name in STRATEGIES)]:
        means = [
            sum(run[cycle][value] for run in rows[name]) / options.seeds
            for value in ("confidence", "entropy", "accuracy")
        ]
        title = f"cycle 2, {name}" if cycle else "cycle 1"
        print(f"| {title} | {' | '.join(f'{mean:.3f}' for mean in means)} |")


if __name__ == "__main__":
    main()
