"""Fashion-MNIST, 70,000 pictures of clothes of 28 x 28 pixels, read from its four published files; a small network.

Neither class contains active learning: the configuration wraps them.
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import FashionMNIST

NAMES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_fashion_mnist(folder: str | Path, train: bool = True) -> tuple[Tensor, Tensor]:
    """Read the pictures and labels.

    Args:
        folder: The folder of the four files, compressed or not (Debian's package `dataset-fashion-mnist` installs them
            under `/usr/share/datasets`), or torchvision's root folder.
        train: The 60,000 training pictures, or the 10,000 for tests.

    Returns:
        (N, 1, 28, 28) pixels and (N,) labels, both uint8.

    Raises:
        FileNotFoundError: If a file is missing.

    """
    folder = Path(folder)
    if not (folder / f"{NAMES[train][0]}.gz").exists() and not (folder / NAMES[train][0]).exists():
        folder = folder / FashionMNIST.__name__ / "raw"
    images, labels = (_read_idx(folder, name) for name in NAMES[train])
    return images.unsqueeze(1), labels


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read the idx format: two zero bytes, the type (8 is uint8), the number of sizes, the sizes, the values."""
    packed = folder / f"{name}.gz"
    if packed.exists():
        content = gzip.decompress(packed.read_bytes())
    elif (folder / name).exists():
        content = (folder / name).read_bytes()
    else:
        raise FileNotFoundError(f"Fashion-MNIST: expected {name} or {name}.gz in {folder}, found neither.")
    dimensions = content[3]
    sizes = np.frombuffer(content, ">u4", dimensions, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.reshape(*sizes.tolist()).copy())


class FashionMNISTDataModule(LightningDataModule):
    """60,000 pictures to train on and 10,000 to test on, as published.

    Args:
        folder: The folder of the files (see `read_fashion_mnist`).
        batch_size: Pictures per batch.

    """

    def __init__(self, folder: str, batch_size: int = 32) -> None:
        super().__init__()
        self.folder = folder
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Read the files, once for all cycles."""
        if not hasattr(self, "train"):
            self.train, self.test = (_pictures(*read_fashion_mnist(self.folder, train)) for train in (True, False))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return a shuffled loader over the training pictures."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return a loader over the test pictures."""
        return DataLoader(self.test, batch_size=500)


class SmallCNN(LightningModule):
    """Two 5 x 5 convolutions and two linear layers: the small network of the paper's appendix A.3.

    The paper does not state its widths, nor the dropout that its Bayesian baselines need. This one is narrow, so that a
    study of many runs is possible on a CPU.

    Args:
        width: Channels of the first convolution.
        dropout: Share of the hidden units that are dropped in training.
        lr: Learning rate of Adam.

    """

    def __init__(self, width: int = 8, dropout: float = 0.5, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 128),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(128, 10)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits of shape (B, 10)."""
        logits: Tensor = self.head(self.features(pictures))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        pictures, labels = batch
        return nn.functional.cross_entropy(self(pictures), labels)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the share of test pictures that are recognized."""
        pictures, labels = batch
        self.accuracy(self(pictures), labels)
        self.log("test/accuracy", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def _pictures(pixels: Tensor, labels: Tensor) -> TensorDataset:
    return TensorDataset(pixels.float() / 255, labels.long())
