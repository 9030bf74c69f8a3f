"""Scikit-learn's digits, 1,797 scans of handwritten digits of 8 x 8 pixels, and a small network for them.

Neither class contains active learning: the configuration wraps them.
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class DigitsDataModule(LightningDataModule):
    """1,347 scans to train on and 450 to test on, split by class and always in the same way.

    Args:
        batch_size: Scans per batch.

    """

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Load the scans that scikit-learn ships."""
        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(images, labels, test_size=450, stratify=labels, random_state=0)
        train_images, test_images, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
        self.train = TensorDataset(_scans(train_images), train_labels.long())
        self.test = TensorDataset(_scans(test_images), test_labels.long())

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return a shuffled loader over the training scans."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader over the test scans."""
        return DataLoader(self.test, batch_size=450)


class DigitsClassifier(LightningModule):
    """Two convolutions and two linear layers, with dropout for the strategies that draw from it.

    Args:
        width: Channels of the first convolution.
        dropout: Share of the hidden units that are dropped in training.
        lr: Learning rate of Adam.

    """

    def __init__(self, width: int = 16, dropout: float = 0.2, lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * width, 64),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(64, 10)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the share of test scans that are read correctly."""
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("test/accuracy", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def _scans(pixels: Tensor) -> Tensor:
    return (pixels / 16).float().reshape(-1, 1, 8, 8)
