"""Move batches to the device, in the precision of the model."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_al.data.dataloaders import TRANSFER_HOOKS, PoolBatch
from lightning_al.numerics.float32 import LOW_PRECISION


def make_transfer(trainer: Trainer, clone: LightningModule) -> Callable[[Any], Any]:
    """Return a function that moves a batch to the clone's device through the user's transfer hooks.

    Args:
        trainer: Its datamodule's hooks come before the module's, as in Lightning.
        clone: The module that scores.

    Returns:
        A function from a batch to the batch on the device, its floating-point tensors in the clone's precision.

    """
    owners = {
        name: trainer.datamodule  # type: ignore[attr-defined]
        if is_overridden(name, trainer.datamodule)  # type: ignore[attr-defined]
        else clone
        for name in TRANSFER_HOOKS
    }

    def transfer(batch: Any) -> Any:
        batch = owners["on_before_batch_transfer"].on_before_batch_transfer(batch, 0)
        batch = owners["transfer_batch_to_device"].transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
        batch = owners["on_after_batch_transfer"].on_after_batch_transfer(batch, 0)
        return match_precision(batch, clone)

    return transfer


def match_precision(batch: Any, module: nn.Module) -> Any:
    """Cast floating-point inputs to the module's precision: low precision to single, any to double if it is double."""
    double = any(parameter.dtype == torch.float64 for parameter in module.parameters())

    def cast(tensor: Tensor) -> Tensor:
        if double and tensor.is_floating_point():
            return tensor.double()
        return tensor.float() if tensor.dtype in LOW_PRECISION else tensor

    return apply_to_collection(batch, Tensor, cast)


def to_module(batch: Any, module: nn.Module) -> Any:
    """Move a batch, also one of the pool with its indices, to the device of a module, for use without a trainer."""
    if isinstance(batch, PoolBatch):
        batch = batch.batch
    tensor = next(iter(module.parameters()), torch.empty(0))
    return match_precision(move_data_to_device(batch, tensor.device), module)
