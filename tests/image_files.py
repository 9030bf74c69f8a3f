"""Tiny datasets on disk in the genuine formats, so that torchvision's own classes load them."""

import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST, ImageFolder, VOCSegmentation


def pixels(size, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, *shape), dtype=np.uint8)


def write_mnist(root: Path, size: int = 12, seed: int = 0) -> type[MNIST]:
    """Write the four IDX files."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for offset, split in enumerate(("train", "t10k")):
        images = pixels(size, 28, 28, seed=seed + offset)
        header = struct.pack(">IIII", 0x803, *images.shape)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = bytes(index % 10 for index in range(size))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, size) + labels)
    return MNIST


class TinyCIFAR10(CIFAR10):
    """The real class, but for the checksums of the sixty thousand real images."""

    train_list: ClassVar = [(name, None) for name, _ in CIFAR10.train_list]
    test_list: ClassVar = [(name, None) for name, _ in CIFAR10.test_list]
    meta: ClassVar = {**CIFAR10.meta, "md5": None}


def write_cifar10(root: Path, per_file: int = 3) -> type[CIFAR10]:
    """Write the six pickled batches and the class names."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for number, (name, _) in enumerate(CIFAR10.train_list + CIFAR10.test_list):
        labels = [(number + index) % 10 for index in range(per_file)]
        batch = {"data": pixels(per_file, 3 * 32 * 32, seed=number), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"label_names": [f"class {number}" for number in range(10)]}
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(names))
    return TinyCIFAR10


def write_image_folder(root: Path, per_class: int = 4, classes: int = 3) -> type[ImageFolder]:
    """Write a folder of PNG files per class."""
    for label in range(classes):
        folder = root / f"class {label}"
        folder.mkdir(parents=True)
        for number, image in enumerate(pixels(per_class, 10, 12, 3, seed=label)):
            Image.fromarray(image).save(folder / f"{number}.png")
    return ImageFolder


def write_voc_segmentation(root: Path, size: int = 5) -> type[VOCSegmentation]:
    """Write JPEG images, PNG masks and the list of both."""
    base = root / "VOCdevkit" / "VOC2012"
    names = [f"2012_{number:06d}" for number in range(size)]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        Image.fromarray(pixels(1, 16, 20, 3, seed=number)[0]).save(base / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(pixels(1, 16, 20, seed=number)[0] % 21).save(base / "SegmentationClass" / f"{name}.png")
    for split in ("train", "val"):
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
    return VOCSegmentation
