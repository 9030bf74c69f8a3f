"""Versions and hardware of a run, so that it can be reproduced."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch
from lightning.pytorch import Trainer

PACKAGES = ("lightning-al", "lightning", "torch", "torchvision", "torchmetrics", "numpy")


def environment_of(trainer: Trainer) -> dict[str, str]:
    """Return the versions of packages and the hardware of a trainer.

    Args:
        trainer: Its strategy has the device and the number of processes.

    Returns:
        Versions by package, `python`, `device` and `processes`.

    Example:
        >>> environment = environment_of(Trainer(accelerator="cpu", logger=False, enable_progress_bar=False))
        >>> environment["device"], environment["processes"], environment["torch"] == torch.__version__.split("+")[0]
        ('cpu', '1', True)

    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # a package that is used from a source tree has no version
            versions[package] = version(package).split("+")[0]
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return versions | {"device": name, "processes": str(trainer.world_size)}
