"""Runs that the tests of the loop compare; a script too, for runs in a process of their own, which may die.

python -m tests.runs run_folder cycles [hook]
"""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition, Pool, run_cycles
from lightning_al.testing import ToyClassifier, ToyDataset

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
SECONDS = ("fit_seconds", "score_seconds", "select_seconds", "track_seconds")


class ValidatedClassifier(ToyClassifier):
    """Logs a loss that is lowest in the first epoch, so that epoch is the best and early stopping is predictable."""

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", float(self.current_epoch))


class Recorder(Callback):
    """Notes what each training starts from, and how many epochs it took."""

    def __init__(self, starts: list, epochs: list):
        self.starts = starts
        self.epochs = epochs

    def on_train_start(self, trainer, pl_module):
        self.starts.append(
            {
                "weights": weights_of(pl_module),
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "optimizer": len(trainer.optimizers[0].state),
            }
        )

    def on_train_end(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)


class Crash(Callback):
    """Ends the process at once, as a power cut would, in a hook of one cycle."""

    def __init__(self, hook: str):
        setattr(self, hook, self.crash)
        self.epoch = 1 if hook == "on_train_batch_start" else None

    def crash(self, trainer, pl_module, *args):
        if self.epoch is None or trainer.current_epoch == self.epoch:
            os._exit(9)


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same_weights(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def make_data(**options) -> ActiveLearningDataModule:
    options = {"initial_size": 10, "batch_size": 8, "test_dataset": ToyDataset(seed=1), **options}
    return ActiveLearningDataModule(ToyDataset(), **options)


def make_trainer(*callbacks: Callback, **options) -> Trainer:
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **QUIET, **options}
    return Trainer(callbacks=list(callbacks), **options)


def maker(acquisition, model=ToyClassifier, **options):
    """Return a `make` for `run_cycles`: fresh objects from a function that makes an acquisition, and a model class."""
    return lambda cycle: (make_trainer(acquisition(), **options), model())


def picks_in(folder: Path) -> list[list[int]]:
    return [labeling.indices for labeling in Pool.load(folder / "pool.json").history]


def without_seconds(records: list) -> list:
    return [{name: value for name, value in record.items() if name not in SECONDS} for record in records]


def standard_run(folder: Path, cycles: int, hook: str | None = None) -> list:
    """Run cycles with everything that a resume must get right, and die in a hook of cycle 1 if one is named."""

    def make(cycle: int) -> tuple[Trainer, LightningModule]:
        crash = [Crash(hook)] if hook and cycle == 1 else []
        acquisition = NoiseStabilityAcquisition(6, passes=3, selection="power")
        return make_trainer(acquisition, *crash, default_root_dir=folder), ToyClassifier()

    return run_cycles(make, make_data(candidates=60), cycles=cycles, reset="shrink_perturb")


if __name__ == "__main__":
    standard_run(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
