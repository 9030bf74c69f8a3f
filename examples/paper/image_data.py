"""The pictures that are classified, as torchvision reads them, and the sentence that says where to get them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torchvision.datasets
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import Caltech101, ImageFolder

Name = Literal["CIFAR10", "CIFAR100", "SVHN", "MNIST", "FashionMNIST"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PicturesDataModule(LightningDataModule):
    """Loaders over `train` and `test`, which a subclass sets in `setup`, `test` under evaluation transforms.

    Args:
        batch_size: Pictures per batch.
        num_workers: Processes that read and transform.

    """

    train: Dataset[Any]
    test: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a shuffled loader over the training pictures."""
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader over the test pictures."""
        return DataLoader(self.test, self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the test loader, whose transforms the pool is scored with; `limit_val_batches: 0` skips validation."""
        return self.test_dataloader()


@dataclass(frozen=True)
class _Source:
    """Mean and standard deviation of the channels, the place below the folder, and where its files are published."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    place: str
    page: str


SOURCES = {
    "CIFAR10": _Source(
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "cifar-10-batches-py", "cs.toronto.edu/~kriz/cifar.html"
    ),
    "CIFAR100": _Source(
        (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "cifar-100-python", "cs.toronto.edu/~kriz/cifar.html"
    ),
    "SVHN": _Source(
        (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), "*_32x32.mat", "ufldl.stanford.edu/housenumbers"
    ),
    "MNIST": _Source((0.1307,), (0.3081,), "MNIST/raw", "yann.lecun.com/exdb/mnist"),
    "FashionMNIST": _Source((0.2860,), (0.3530,), "FashionMNIST/raw", "github.com/zalandoresearch/fashion-mnist"),
}


class TorchvisionDataModule(PicturesDataModule):
    """Small pictures of one of torchvision's data sets, normalized, and augmented in training if asked for.

    Args:
        dataset: The name of torchvision's class.
        folder: Its root folder.
        download: Download what is missing.
        crop: In training, pad by 4 pixels and crop at random.
        flip: In training, mirror half of the pictures.
        batch_size: Pictures per batch.
        num_workers: Processes that read and transform.

    """

    def __init__(
        self,
        dataset: Name,
        folder: str,
        download: bool = False,
        crop: bool = False,
        flip: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.dataset = dataset
        self.folder = folder
        self.download = download
        self.crop = crop
        self.flip = flip

    def prepare_data(self) -> None:
        """Download what is missing, if that is asked for."""
        if self.download:
            for train in (True, False):
                self._read(train, None, download=True)

    def setup(self, stage: str) -> None:
        """Read both parts."""
        source = SOURCES[self.dataset]
        normalize = [transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
        size = 28 if len(source.mean) == 1 else 32
        augment: list[Any] = [transforms.RandomCrop(size, padding=4)] if self.crop else []
        augment += [transforms.RandomHorizontalFlip()] if self.flip else []
        self.train = self._read(True, transforms.Compose([*augment, *normalize]))
        self.test = self._read(False, transforms.Compose(normalize))

    def _read(self, train: bool, transform: Callable[[Any], Any] | None, download: bool = False) -> Dataset[Any]:
        part = {"split": "train" if train else "test"} if self.dataset == "SVHN" else {"train": train}
        try:
            pictures: Dataset[Any] = getattr(torchvision.datasets, self.dataset)(
                self.folder, transform=transform, download=download, **part
            )
        except (RuntimeError, OSError) as error:  # of files, or of a download without a network
            source = SOURCES[self.dataset]
            raise FileNotFoundError(
                f"{self.dataset} is not in {self.folder}: {_remedy(self.download)} it from "
                f"https://{source.page} and unpack it to {Path(self.folder, source.place)}."
            ) from error
        return pictures


class Caltech101DataModule(PicturesDataModule):
    """Caltech101 without its background class: 8,677 pictures of 101 classes.

    Fei-Fei, Fergus and Perona, One-Shot Learning of Object Categories (2006). Pictures are resized to 256 x 256 and
    cropped to the central 224 x 224, and in training mirrored at random.

    Args:
        folder: The folder that `caltech101` is in, as torchvision's class has it.
        download: Download what is missing.
        test_share: The share of each class that is tested on, since none is published.
        batch_size: Pictures per batch.
        num_workers: Processes that read and transform.

    """

    def __init__(
        self, folder: str, download: bool = False, test_share: float = 0.1, batch_size: int = 64, num_workers: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.folder = folder
        self.download = download
        self.test_share = test_share

    def prepare_data(self) -> None:
        """Download what is missing, if that is asked for."""
        if self.download:
            try:
                Caltech101(self.folder, download=True)
            except (RuntimeError, OSError) as error:  # without a network
                raise self._missing() from error

    def setup(self, stage: str) -> None:
        """List the pictures, and split every class by their order."""
        root = Path(self.folder, "caltech101", "101_ObjectCategories")
        if not root.is_dir():
            raise self._missing()
        resize = [transforms.Resize((256, 256)), transforms.CenterCrop(224)]
        normalize = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        train = _Foreground(str(root), transforms.Compose([*resize, transforms.RandomHorizontalFlip(), *normalize]))
        test = _Foreground(str(root), transforms.Compose([*resize, *normalize]))
        # every n-th picture of a class, so that the split needs no random numbers
        every = round(1 / self.test_share)
        held_out = [position for position in range(len(test)) if test.place_in_class(position) % every == 0]
        self.test = Subset(test, held_out)
        self.train = Subset(train, sorted(set(range(len(train))) - set(held_out)))

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(
            f"Caltech101 is not in {self.folder}: {_remedy(self.download)} caltech-101.zip from "
            "https://data.caltech.edu/records/mzrjq-6wc02 and unpack its 101_ObjectCategories to "
            f"{Path(self.folder, 'caltech101')}."
        )


class ImageNetDataModule(PicturesDataModule):
    """ILSVRC2012: 1.28 million pictures of 1,000 classes to train on, and 50,000 to test on.

    Deng et al., ImageNet: A Large-Scale Hierarchical Image Database (2009). Transforms are those of PyTorch's
    example: in training random crops of 224 x 224, mirrored at random; in tests 256, cropped to the center.

    Args:
        folder: The folder with `train` and `val`, each with a folder of pictures per class.
        batch_size: Pictures per batch.
        num_workers: Processes that read and transform.

    """

    def __init__(self, folder: str, batch_size: int = 256, num_workers: int = 0) -> None:
        super().__init__(batch_size, num_workers)
        self.folder = folder

    def setup(self, stage: str) -> None:
        """List the pictures."""
        if not all(Path(self.folder, part).is_dir() for part in ("train", "val")):
            raise FileNotFoundError(
                f"ImageNet is not in {self.folder}: download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
                f"https://image-net.org (a free account is needed) and unpack them to {self.folder}/train and "
                f"{self.folder}/val, one folder per class."
            )
        normalize = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        augment = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        center = [transforms.Resize(256), transforms.CenterCrop(224)]
        self.train = ImageFolder(f"{self.folder}/train", transforms.Compose([*augment, *normalize]))
        self.test = ImageFolder(f"{self.folder}/val", transforms.Compose([*center, *normalize]))


def _remedy(download: bool) -> str:
    return "the download failed; download" if download else "set `download: true`, or download"


class _Foreground(ImageFolder):
    """A folder per class, but for the background."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = [name for name in super().find_classes(directory)[0] if name != "BACKGROUND_Google"]
        return names, {name: label for label, name in enumerate(names)}

    def place_in_class(self, position: int) -> int:
        """Return how many pictures of the same class come before this one."""
        return position - self.targets.index(self.targets[position])
