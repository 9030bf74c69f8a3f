"""Copy the user's module for scoring: on the device, in eval mode, in true single precision."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.utilities.compile import to_uncompiled
from torch import Tensor, nn

from lightning_al.numerics.float32 import LOW_PRECISION, true_float32
from lightning_al.scoring.failing_together import raised_on_all_processes


def clone_module(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy a module for scoring: on the device, in eval mode, in at least single precision.

    Args:
        module: The user's module; not changed.
        device: The device of the clone.

    Returns:
        An independent copy.

    Raises:
        TypeError: If the module holds something that cannot be copied, with what to do about it.

    """
    try:
        clone = copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in _graph_tensors(module)})
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied for scoring ({type(error).__name__}: {error}). Keep open files, "
            "locks and objects that hold tensors with a graph (use `.detach()`) out of the module's attributes."
        ) from error
    if getattr(clone, "_compiler_ctx", None) is not None:
        clone = to_uncompiled(clone)  # type: ignore[arg-type]  # compiled functions in a copy still call the original
    for parent in list(clone.modules()):
        for name, child in parent.named_children():
            if hasattr(child, "_orig_mod"):  # of `torch.compile`, which ignores hooks once its graph is cached
                setattr(parent, name, child._orig_mod)
    for tensor in (*clone.parameters(), *clone.buffers()):
        if tensor.dtype in LOW_PRECISION:
            tensor.data = tensor.data.float()
    return clone.to(device).eval()


def _graph_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors with a graph among the attributes of a module, which torch does not copy.

    Old weight and spectral normalization keep such weights, others their last attention map or loss.
    """
    values: list[Any] = [vars(submodule) for submodule in module.modules()]
    visited: set[int] = set()
    while values:
        value = values.pop()
        if isinstance(value, Tensor) and value.grad_fn is not None:
            yield value
        elif type(value) in (dict, list, tuple) and id(value) not in visited:
            visited.add(id(value))
            values.extend(value.values() if isinstance(value, dict) else value)


@contextmanager
def scoring_clone(
    trainer: Trainer, module: LightningModule, *, on_all_processes: bool = True
) -> Iterator[LightningModule]:
    """Clone a LightningModule, and disable gradients, autocast and low precision inside.

    Args:
        trainer: The trainer that has just finished fitting, or is about to fit.
        module: Its module.
        on_all_processes: Whether all processes clone it, which then share the buffers of the first one.

    Yields:
        The clone, on the trainer's device.

    """
    precision = trainer.precision_plugin
    # tensors that a forward creates, such as a first hidden state, must be double too
    default = precision.forward_context() if isinstance(precision, DoublePrecision) else nullcontext()
    exact = true_float32(trainer.strategy.root_device)
    with attached_clone(trainer, module, on_all_processes) as clone, torch.no_grad(), exact, default:
        yield clone


@contextmanager
def attached_clone(
    trainer: Trainer, module: LightningModule, on_all_processes: bool = True
) -> Iterator[LightningModule]:
    """Clone a LightningModule onto the trainer's device, and set the trainer's stage to predicting.

    Args:
        trainer: The trainer that has just finished fitting.
        module: Its module, which the strategy's teardown moved to the CPU.
        on_all_processes: As for `scoring_clone`.

    Yields:
        The clone. Hooks that read `self.trainer.training`, to augment on the device for example, get False.

    """
    with raised_on_all_processes(trainer) if on_all_processes else nullcontext():
        clone = clone_module(module, trainer.strategy.root_device)
    assert isinstance(clone, LightningModule)
    clone.trainer = trainer
    if on_all_processes:
        _share_buffers(trainer, clone)
    stage = trainer.state.stage
    trainer.predicting = True
    try:
        yield clone
    finally:
        trainer.state.stage = stage


def _share_buffers(trainer: Trainer, clone: LightningModule) -> None:
    """Broadcast the buffers of the first process to all.

    DDP shares them before each forward, so that after the last one running statistics differ between processes, and a
    score would depend on the process that measured it.
    """
    if trainer.world_size == 1:
        return
    buffers = dict(clone.named_buffers())
    shared = trainer.strategy.broadcast({name: buffer.cpu() for name, buffer in buffers.items()})
    for name, buffer in buffers.items():
        buffer.data.copy_(shared[name])
