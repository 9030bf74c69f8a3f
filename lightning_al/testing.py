"""Toy data, a toy model, and the checks that every acquisition must pass; public, for contributors."""

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_al.acquisition.contract import Acquisition
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.numerics.seeding import seeded


class ToyDataset(Dataset[tuple[Tensor, int]]):
    """Points on the corners of a cube with noise: small, deterministic, learnable.

    Args:
        size: Number of samples.
        classes: Number of classes, at most 8.
        seed: Seed of the noise.

    Example:
        >>> point, label = ToyDataset()[5]
        >>> point.shape, label
        (torch.Size([3]), 1)

    """

    def __init__(self, size: int = 120, classes: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(size) % classes
        corners = torch.tensor([[float(label >> bit & 1) for bit in range(3)] for label in range(classes)])
        self.points = corners[self.targets] + 0.4 * torch.randn(size, 3, generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.points[index], int(self.targets[index])


class ToyClassifier(LightningModule):
    """A small network with layers that behave differently in training: batch normalization and dropout.

    Args:
        classes: Number of classes.

    """

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, classes)
        )

    def forward(self, points: Tensor) -> Tensor:
        """Return logits of shape (B, C)."""
        logits: Tensor = self.net(points)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        points, labels = batch
        loss = nn.functional.cross_entropy(self(points), labels)
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy of a test batch."""
        points, labels = batch
        self.log("test/accuracy", (self(points).argmax(1) == labels).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.02)


def check_acquisition(
    make: Callable[[], Acquisition], model: LightningModule | None = None, max_epochs: int = 1
) -> None:
    """Run an acquisition in real fits and check the properties that every strategy must have.

    Picks are distinct, unlabeled and `query_size` in number; the same seed gives the same picks, and another cycle is
    another query; the user's module, its training flags and the global random numbers stay bit-identical; a pool that
    is no larger than the query is labeled completely; the acquisition pickles before and after.

    Args:
        make: Returns a fresh acquisition whose `query_size` is an integer below 60.
        model: A classifier for `ToyDataset`; by default a `ToyClassifier`.
        max_epochs: How long each fit is; more than 1 for a strategy that compares epochs.

    Raises:
        AssertionError: With the property that does not hold.

    Cost: four fits of a toy model on the CPU, about a second.

    Example:
        >>> from lightning_al import MarginAcquisition
        >>> check_acquisition(lambda: MarginAcquisition(query_size=7))

    """
    module = ToyClassifier() if model is None else model
    size = make().query_size
    if not isinstance(size, int) or size >= 60:
        raise ValueError(f"`check_acquisition`: expected a `query_size` that is an integer below 60, got {size}.")
    _require(pickle.loads(pickle.dumps(make())).query_size == size, "pickles before a fit")

    first, again = _fit(make(), module, max_epochs), _fit(make(), module, max_epochs)
    picks = first.pool.history[1].indices
    _require(len(picks) == len(set(picks)) == size, f"labels exactly {size} distinct samples, not {picks}")
    _require(not set(picks) & set(first.pool.history[0].indices), "labels nothing twice")
    _require(all(type(index) is int for index in picks), "gives plain integers")
    _require(picks == again.pool.history[1].indices, "picks the same for the same seed")

    second = _fit(make(), module, max_epochs, data=first).pool.history[2].indices
    _require(len(second) == size and not set(second) & set(first.pool.labeled_by(1)), "queries the next cycle afresh")

    final = _fit(make(), module, max_epochs, initial_size=120 - size)
    _require(final.pool.num_unlabeled == 0, "labels a pool that is no larger than the query")


def _fit(
    acquisition: Acquisition,
    module: LightningModule,
    max_epochs: int,
    initial_size: int = 20,
    data: ActiveLearningDataModule | None = None,
) -> ActiveLearningDataModule:
    """Fit a copy of the module, and check that the query did not change it."""
    if data is None:
        # 100 candidates in batches of 32: the last one is partial
        data = ActiveLearningDataModule(ToyDataset(), initial_size=initial_size, batch_size=32)
    before, after = _Snapshot(), _Snapshot()
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        callbacks=[before, acquisition, after],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with seeded(0):
        trainer.fit(copy.deepcopy(module), data)
    for part, value in before.state.items():
        _require(_equal(value, after.state[part]), f"leaves {part} as it was")
    _require(pickle.loads(pickle.dumps(acquisition)).query_size == acquisition.query_size, "pickles after a fit")
    return data


class _Snapshot(Callback):
    """Store the state that a query must not change; placed before and after the acquisition."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state = {
            "parameters and buffers": {name: value.clone() for name, value in pl_module.state_dict().items()},
            "the training flags": [module.training for module in pl_module.modules()],
            "the gradients' flags": [parameter.requires_grad for parameter in pl_module.parameters()],
            "the device": pl_module.device,
            "torch's random numbers": torch.get_rng_state(),
            "NumPy's random numbers": str(np.random.get_state()),
            "Python's random numbers": random.getstate(),
        }


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return bool(first == second)


def _require(condition: bool, promise: str) -> None:
    if not condition:
        raise AssertionError(f"The acquisition must keep this promise: it {promise}.")
