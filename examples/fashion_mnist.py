"""Fashion-MNIST, 70,000 pictures of clothes of 28 x 28 pixels, read from its four published files."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

NAMES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_fashion_mnist(folder: str | Path, train: bool = True) -> tuple[Tensor, Tensor]:
    """Read the pictures and labels.

    Args:
        folder: Where the four files lie, compressed or not (Debian's package `dataset-fashion-mnist` installs them
            under `/usr/share/datasets`), or torchvision's root folder.
        train: The 60,000 training pictures, or the 10,000 for tests.

    Returns:
        (N, 1, 28, 28) pixels and (N,) labels, both uint8.

    Raises:
        FileNotFoundError: If they are not there.

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
