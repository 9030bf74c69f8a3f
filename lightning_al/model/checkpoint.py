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
    # a module that `torch.compile` wraps has another name in front of those of its weights
    names = {_uncompiled(name): name for name in module.state_dict()}
    weights = checkpoint.get("state_dict", checkpoint)
    weights = {names.get(_uncompiled(name), name): value for name, value in weights.items()}
    module.load_state_dict(weights, strict=module.strict_loading)


def _uncompiled(name: str) -> str:
    return name.replace("_orig_mod.", "")
