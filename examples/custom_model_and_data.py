"""Your own model and data, unchanged: a regression on dictionaries, with transforms and a validation set.

The two classes are those of a project without active learning: batches are dictionaries, the training step takes its
inputs from them, targets are standardized inside, `predict_step` returns them in their unit. Active learning is in
`main` only. The data are scikit-learn's 442 diabetes patients: ten measurements, and how far the
disease is a year later (Efron et al., Least Angle Regression, 2004).

    python examples/custom_model_and_data.py
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

sys.path.insert(0, str(Path(__file__).parent.parent))

from lightning_al import Acquisition, ActiveLearningDataModule, NoiseStabilityAcquisition, RandomAcquisition, run_cycles

Batch = dict[str, Tensor]

# ---------------------------------------------------------------- what you have


class Patients(Dataset[Batch]):
    """Measurements and progression; in training the measurements are jittered."""

    def __init__(self, jitter: float = 0.0) -> None:
        measured, progression = load_diabetes(return_X_y=True)
        self.measured = torch.tensor(measured, dtype=torch.float32) * 442**0.5  # standard deviations
        self.progression = torch.tensor(progression, dtype=torch.float32)
        self.jitter = jitter

    def __len__(self) -> int:
        """Return 442."""
        return len(self.measured)

    def __getitem__(self, index: int) -> Batch:
        """Return one patient."""
        measured = self.measured[index]
        if self.jitter:
            measured = measured + self.jitter * torch.randn_like(measured)
        return {"measured": measured, "progression": self.progression[index]}


class PatientsDataModule(LightningDataModule):
    """262 patients to train on, 80 to validate and 100 to test."""

    def setup(self, stage: str) -> None:
        """Split, always in the same way."""
        order = torch.randperm(442, generator=torch.Generator().manual_seed(0)).tolist()
        self.train = Subset(Patients(jitter=0.1), order[:262])
        self.val, self.test = Subset(Patients(), order[262:342]), Subset(Patients(), order[342:])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a shuffled loader."""
        return DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader for early stopping."""
        return DataLoader(self.val, batch_size=80)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test."""
        return DataLoader(self.test, batch_size=100)


class ProgressionModel(LightningModule):
    """Two hidden layers for a standardized target."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def _loss(self, batch: Batch) -> Tensor:
        predicted: Tensor = self.net(batch["measured"])[:, 0]
        return nn.functional.huber_loss(predicted, (batch["progression"] - 152) / 77)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        return self._loss(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val/loss", self._loss(batch), batch_size=len(batch["progression"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the mean absolute error in the unit of the target."""
        error = (self.predict_step(batch)[:, 0] - batch["progression"]).abs().mean()
        self.log("test/mae", error, batch_size=len(batch["progression"]))

    def predict_step(self, batch: Batch, *_: Any) -> Tensor:
        """Return the progression, of shape (B, 1)."""
        predicted: Tensor = self.net(batch["measured"])
        return predicted * 77 + 152

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.01)


# ---------------------------------------------------------------- what active learning adds


def main() -> None:
    """Run cycles with noise stability and at random."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")  # its own use of torch
    strategies: dict[str, Acquisition] = {
        "random": RandomAcquisition(20),
        "noise stability": NoiseStabilityAcquisition(20, passes="inf", output="identity"),  # no probabilities here
    }
    for name, strategy in strategies.items():

        def make(cycle: int, strategy: Acquisition = strategy) -> tuple[Trainer, LightningModule]:
            trainer = Trainer(
                max_epochs=100,
                accelerator="cpu",
                callbacks=[strategy.copy_for_query(), EarlyStopping("val/loss", patience=10)],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
            return trainer, ProgressionModel()

        # samples are scored without jitter, like the validation set
        data = ActiveLearningDataModule(PatientsDataModule(), pool_dataset=pool(), initial_size=20)
        records = run_cycles(
            make, data, cycles=5, run_dir=Path("runs", "custom_model_and_data", name.replace(" ", "_"))
        )
        print(f"{name:16}", "  ".join(f"{record['labeled']}: {record['test/mae']:.1f}" for record in records))


def pool() -> Dataset[Batch]:
    """Return the training samples, in the same order, without jitter."""
    order = torch.randperm(442, generator=torch.Generator().manual_seed(0)).tolist()
    return Subset(Patients(), order[:262])


if __name__ == "__main__":
    main()
