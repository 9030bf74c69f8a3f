"""The weights of a checkpoint."""

import os

import torch
from lightning.pytorch import LightningModule


def load_weights(module: LightningModule, path: str | os.PathLike[str]) -> None:
    """Load the weights of a checkpoint, as strictly as the module asks for.

    Args:
        module: The module to change.
        path: A Lightning checkpoint, or a file with a plain state dict.

    """
    # a checkpoint of the user's own: its hyperparameters may hold any object, which `weights_only` would refuse
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    if "state_dict" in checkpoint:
        module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint.get("state_dict", checkpoint), strict=module.strict_loading)
