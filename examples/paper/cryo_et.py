"""Simulated subtomograms on disk, for the paper's appendix A.4.1; simulated once, then mapped into memory."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples.paper.image_data import PicturesDataModule
from examples.paper.subtomograms import Microscope, macromolecules, simulate


class CryoETDataModule(PicturesDataModule):
    """Volumes of 32 x 32 x 32 of 50 macromolecules at a signal-to-noise ratio of 0.03, equally many of each.

    The first run simulates them into the folder, 1.6 GB for the paper's 24,000 and 1,000.

    Args:
        folder: Where they are kept, in a folder of their own for each choice of the other arguments.
        classes: Number of macromolecules.
        train_size: Volumes to train on.
        test_size: Volumes to test on.
        snr: Variance of the signal over that of the noise.
        seed: Seed of macromolecules, rotations, shifts and noise.
        batch_size: Volumes per batch.
        num_workers: Processes that read.

    """

    def __init__(
        self,
        folder: str,
        classes: int = 50,
        train_size: int = 24_000,
        test_size: int = 1_000,
        snr: float = 0.03,
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.classes = classes
        self.sizes = {"train": train_size, "test": test_size}
        self.snr = snr
        self.seed = seed
        self.folder = Path(folder, f"{classes}c-snr{snr:g}-{train_size}+{test_size}-seed{seed}")

    def prepare_data(self) -> None:
        """Simulate the volumes that the folder lacks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for part, size in self.sizes.items():
            path = self.folder / f"{part}.npy"
            if not path.exists():
                unfinished = path.with_suffix(".unfinished.npy")
                np.save(unfinished, self._simulate(size, seed=2 * self.seed + (part == "test")))
                unfinished.replace(path)

    def setup(self, stage: str) -> None:
        """Map the volumes into memory."""
        self.train, self.test = (_Subtomograms(self.folder / f"{part}.npy", self.classes) for part in self.sizes)

    def _simulate(self, size: int, seed: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float16]]":
        generator = torch.Generator().manual_seed(seed)
        microscope = Microscope()
        volumes = np.empty((size, *[microscope.size] * 3), np.float16)
        for label, residues in enumerate(macromolecules(self.classes, self.seed)):
            rows = np.arange(label, size, self.classes)
            for chunk in np.array_split(rows, -(-len(rows) // 64)):
                volumes[chunk] = simulate(residues, len(chunk), self.snr, microscope, generator).half().numpy()
        return volumes


class _Subtomograms(Dataset[tuple[Tensor, int]]):
    """Volumes of a file; the class of a row is its number modulo the number of classes."""

    def __init__(self, path: Path, classes: int) -> None:
        self.data = np.load(path, mmap_mode="r")
        self.targets = np.arange(len(self.data)) % classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.data[index].astype(np.float32)).unsqueeze(0), int(self.targets[index])
