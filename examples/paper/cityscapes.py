"""Cityscapes: streets of 50 cities, 2,975 pictures to train on and 500 to test on, with a class for every pixel.

Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding (2016).
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import Cityscapes
from torchvision.transforms import RandomCrop, functional

from examples.paper.image_data import IMAGENET_MEAN, IMAGENET_STD, PicturesDataModule

IGNORED = 255  # pixels of a class that is not evaluated


class CityscapesDataModule(PicturesDataModule):
    """Crops of the fine annotations with the 19 classes that are evaluated.

    In training crops are random and mirrored at random; tests and the pool see the center of each picture.

    Args:
        folder: The folder with `leftImg8bit` and `gtFine`.
        crop: Height and width of the crops.
        batch_size: Crops per batch.
        num_workers: Processes that read and transform.

    """

    def __init__(self, folder: str, crop: int = 688, batch_size: int = 8, num_workers: int = 0) -> None:
        super().__init__(batch_size, num_workers)
        self.folder = folder
        self.crop = crop

    def setup(self, stage: str) -> None:
        """List the pictures, in the order of their names."""
        self.train = self._read("train", _CropPair(self.crop, augment=True))
        self.test = self._read("val", _CropPair(self.crop, augment=False))

    def _read(self, split: str, transforms: "_CropPair") -> Cityscapes:
        try:
            pictures = Cityscapes(self.folder, split, target_type="semantic", transforms=transforms)
        except (RuntimeError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"Cityscapes is not in {self.folder}: download leftImg8bit_trainvaltest.zip and "
                "gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com (a free account is needed) and unpack "
                f"both to {self.folder}."
            ) from error
        pairs = sorted(zip(pictures.images, pictures.targets, strict=True))  # torchvision lists them in any order
        pictures.images, pictures.targets = (list(part) for part in zip(*pairs, strict=True))
        return pictures


class _CropPair:
    """Crop a picture and its classes alike, and return tensors (3, H, W) and (H, W)."""

    def __init__(self, size: int, augment: bool) -> None:
        self.size = size
        self.augment = augment
        self.train_ids = torch.full((256,), IGNORED, dtype=torch.long)
        for entry in Cityscapes.classes:
            if entry.id >= 0 and not entry.ignore_in_eval:
                self.train_ids[entry.id] = entry.train_id

    def __call__(self, picture: Any, classes: Any) -> tuple[Tensor, Tensor]:
        if self.augment:
            place = RandomCrop.get_params(picture, (self.size, self.size))
            picture, classes = (functional.crop(part, *place) for part in (picture, classes))
            if torch.rand(()) < 0.5:
                picture, classes = functional.hflip(picture), functional.hflip(classes)
        else:
            picture, classes = (functional.center_crop(part, [self.size, self.size]) for part in (picture, classes))
        inputs = functional.normalize(functional.to_tensor(picture), list(IMAGENET_MEAN), list(IMAGENET_STD))
        return inputs, self.train_ids[functional.pil_to_tensor(classes)[0].long()]
