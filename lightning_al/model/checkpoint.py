"""The weights of a checkpoint."""

import os
import pickle

import torch
from lightning.pytorch import LightningModule


def load_weights(module: LightningModule, path: str | os.PathLike[str], *, trusted: bool = False) -> None:
    """Load the weights of a checkpoint, as strictly as the module asks for.

    Args:
        module: The module to change.
        path: A Lightning checkpoint, or a file with a plain state dict.
        trusted: Load any Python object in it, which can run any code; otherwise tensors, numbers, texts and containers.

    Raises:
        ValueError: If the file is not trusted and holds other objects.

    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{os.fspath(path)} holds Python objects beside weights, such as hyperparameters of a class of your own, "
            "and loading these could run any code. If you trust the file, pass `run_cycles(trust_checkpoints=True)` "
            "(`--trust_checkpoints true`); or keep such objects out with `save_hyperparameters(ignore=...)`. "
            f"({str(error).splitlines()[0]})"
        ) from error
    if "state_dict" in checkpoint:
        module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint.get("state_dict", checkpoint), strict=module.strict_loading)
