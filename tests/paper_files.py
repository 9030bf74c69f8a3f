"""Tiny files of the paper's data sets, each in the format in which it is published."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR100

from tests.image_files import pixels, write_cifar10, write_mnist

SIZE = 12


def write_cifar100(root: Path) -> None:
    """Write the two pickled parts and the class names."""
    folder = root / CIFAR100.base_folder
    folder.mkdir(parents=True)
    for seed, part in enumerate(("train", "test")):
        batch = {"data": pixels(SIZE, 3 * 32 * 32, seed=seed), "fine_labels": list(range(SIZE))}
        (folder / part).write_bytes(pickle.dumps(batch))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {number}" for number in range(100)]}))


def write_svhn(root: Path) -> None:
    """Write two files of MATLAB; the digit 0 has the label 10."""
    for seed, part in enumerate(("train", "test")):
        content = {"X": pixels(32, 32, 3, SIZE, seed=seed), "y": np.arange(1, SIZE + 1).reshape(-1, 1) % 10 + 1}
        savemat(root / f"{part}_32x32.mat", content)


def write_caltech101(root: Path) -> None:
    """Write a folder of JPEGs of different sizes per class, and the background class."""
    for label, name in enumerate(("accordion", "BACKGROUND_Google", "airplanes")):
        _write_pictures(root / "caltech101" / "101_ObjectCategories" / name, label, "image_{:04d}.jpg", count=10)


def write_imagenet(root: Path) -> None:
    """Write a folder of JPEGs per class for both parts; with another suffix, as published."""
    for part in ("train", "val"):
        for label, name in enumerate(("n01440764", "n01443537")):
            _write_pictures(root / part / name, label, "ILSVRC2012_{:08d}.JPEG", count=8)


def write_cityscapes(root: Path) -> None:
    """Write pictures of streets, and images of the 34 annotated classes."""
    for part, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        for number in range(4):
            name = f"{city}_000000_{number:06d}"
            for folder, suffix, content in (
                ("leftImg8bit", "leftImg8bit", pixels(48, 96, 3, seed=number)),
                ("gtFine", "gtFine_labelIds", pixels(48, 96, seed=number) % 34),
            ):
                path = root / folder / part / city / f"{name}_{suffix}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(path)


def _write_pictures(folder: Path, seed: int, name: str, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        picture = Image.fromarray(pixels(40 + number, 60, 3, seed=seed))
        (picture if number else picture.convert("L")).save(folder / name.format(number))  # the first one is gray


WRITERS = {
    "CIFAR10": write_cifar10,
    "CIFAR100": write_cifar100,
    "SVHN": write_svhn,
    "MNIST": write_mnist,
    "caltech101": write_caltech101,
    "imagenet": write_imagenet,
    "cityscapes": write_cityscapes,
}
