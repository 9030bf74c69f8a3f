"""Runs of two cycles on some number of processes; a script, because DDP needs processes of its own.

python -m tests.ddp_runs folder strategy devices name...
"""

import sys
from pathlib import Path

from torch import nn

from lightning_al import EntropyAcquisition, NoiseStabilityAcquisition, RandomAcquisition, run_cycles
from lightning_al.testing import ToyDataset
from tests.runs import ToyClassifier, make_data, maker

RUNS = {
    "noise": (lambda: NoiseStabilityAcquisition(6, passes=3), "scratch"),
    "entropy": (lambda: EntropyAcquisition(6), "scratch"),
    "random": (lambda: RandomAcquisition(6), "scratch"),
    "warm": (lambda: EntropyAcquisition(6), "warm"),
}


class FullBatchClassifier(ToyClassifier):
    """Every process steps on the loss of the whole labeled part, so the weights do not depend on their number."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        labeled = self.trainer.datamodule.pool.labeled_by(self.trainer.datamodule.cycle)
        data = ToyDataset()
        return nn.functional.cross_entropy(self(data.points[labeled]), data.targets[labeled])


def main(folder: Path, strategy: str, devices: int, *names: str) -> None:
    for name in names:
        acquisition, reset = RUNS[name]
        options = {"max_epochs": 5, "limit_train_batches": 1, "strategy": strategy, "devices": devices}
        data = make_data(initial_size=12)
        make = maker(acquisition, FullBatchClassifier, **options)
        run_cycles(make, data, cycles=2, run_dir=folder / name, reset=reset)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
