"""A run of two quick cycles on pictures, with everything that a continued run must get right.

    python -m examples.reliability.toy_run FOLDER [--devices 2] [--strategy ddp_spawn]

FOLDER/run is the run folder, FOLDER/csv holds the files of the logger, a new one for each process.
"""

from argparse import ArgumentParser
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_al import Acquisition, ActiveLearningDataModule, MarginAcquisition, run_cycles

CYCLES = 2
CLASSES = 3


class Pictures(Dataset[tuple[Tensor, int]]):
    """Noisy pictures, of which each class has a bright row of its own.

    Args:
        size: Number of samples.
        seed: Seed of the noise.

    """

    def __init__(self, size: int = 60, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(size) % CLASSES
        self.pictures = 0.7 * torch.rand(size, 1, 8, 8, generator=generator)
        for index, label in enumerate(self.targets.tolist()):
            self.pictures[index, 0, 2 * label + 1] += 0.3

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pictures[index], int(self.targets[index])


class PictureClassifier(LightningModule):
    """A small network with dropout, so that training depends on the random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, CLASSES))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits of shape (B, C)."""
        logits: Tensor = self.net(pictures)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        pictures, labels = batch
        loss = nn.functional.cross_entropy(self(pictures), labels)
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy of a test batch."""
        pictures, labels = batch
        self.log("test/accuracy", (self(pictures).argmax(1) == labels).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.02)


def make_data(**options: object) -> ActiveLearningDataModule:
    """Return the data of the run; options replace its arguments."""
    defaults = {"initial_size": 9, "batch_size": 4, "test_dataset": Pictures(24, seed=1)}
    dataset = options.pop("datamodule_or_train_dataset", None)
    return ActiveLearningDataModule(Pictures() if dataset is None else dataset, **{**defaults, **options})  # type: ignore[arg-type]


def make_trainer(acquisition: Acquisition, **options: object) -> Trainer:
    """Return a quiet trainer on the CPU; options replace its arguments."""
    defaults = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(callbacks=[acquisition], **{**defaults, **options})  # type: ignore[arg-type]


def run(folder: Path, devices: int = 1, strategy: str = "auto", cycles: int = CYCLES) -> None:
    """Start or continue the run.

    Args:
        folder: Where run and logs go.
        devices: Number of processes.
        strategy: Lightning's strategy for several processes.
        cycles: Number of cycles.

    """
    logger = CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)

    def make(cycle: int) -> tuple[Trainer, LightningModule]:
        trainer = make_trainer(MarginAcquisition(4), logger=logger, devices=devices, strategy=strategy)
        return trainer, PictureClassifier()

    run_cycles(make, make_data(), cycles=cycles, reset="shrink_perturb", num_preview_samples=2, run_dir=folder / "run")


def main() -> None:
    """Parse the arguments and run."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    arguments = parser.parse_args()
    run(arguments.folder, arguments.devices, arguments.strategy)


if __name__ == "__main__":
    main()
