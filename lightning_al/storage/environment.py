"""What a run was made with, so that its numbers can be made again."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch
from lightning.pytorch import Trainer

PACKAGES = ("lightning-al", "lightning", "torch", "torchvision", "torchmetrics", "numpy")


def environment_of(trainer: Trainer) -> dict[str, str]:
    """Name the versions and the hardware of a trainer.

    Args:
        trainer: Its strategy knows the device and how many processes there are.

    Returns:
        Versions by package, `python`, `device` and `processes`.

    Example:
        >>> found = environment_of(Trainer(accelerator="cpu", logger=False, enable_progress_bar=False))
        >>> found["device"], found["processes"], found["torch"] == torch.__version__.split("+")[0]
        ('cpu', '1', True)

    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # used from a source tree
            found[package] = version(package).split("+")[0]
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found | {"device": name, "processes": str(trainer.world_size)}
