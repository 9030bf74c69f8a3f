"""Toy data and a toy model, and the checks that every acquisition must pass; public, for contributors."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset


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
    """A small network with the layers that make scoring delicate: batch normalization and dropout.

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
