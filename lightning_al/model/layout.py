"""Which dimension of an output holds the classes, decided by the layer that made the output.

A convolution returns (B, C, T), a linear layer (B, T, C), and what follows may transpose either. So one position is
marked at the last such layer: the output then changes in every class, but at that position only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLASSES_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)
CLASSES_SECOND = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    nn.GroupNorm,
)

# Calls of layers that are tried, the last first: the heads of an auxiliary loss may be called after the main one.
MAX_CALLS = 16


def find_class_dim(module: nn.Module, predict: Callable[[], Tensor]) -> int | None:
    """Return the dimension of the classes in outputs of three or more dimensions, or None if no layer shows it.

    Args:
        module: A module in eval mode, whose layers are watched.
        predict: Returns the outputs (B, ...) of `module` for the same few samples, each time it is called.

    Returns:
        The dimension, at least 1.

    Cost: two forward passes, and one more for each last layer that the output does not depend on.

    Example:
        >>> layer, samples = nn.Conv1d(4, 3, 1), torch.ones(2, 4, 5)
        >>> find_class_dim(layer, lambda: layer(samples)), find_class_dim(layer, lambda: layer(samples).mT)
        (1, 2)

    """
    calls: list[Tensor] = []  # the values that mark a position, for each call of a layer
    marked_call: int | None = None

    def watch(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        channels = output.movedim(1, -1) if isinstance(layer, CLASSES_SECOND) else output
        calls.append(torch.linspace(1, 2, channels.shape[-1], dtype=output.dtype, device=output.device))
        if len(calls) - 1 != marked_call:
            return None
        marked = channels.clone()
        marked[(0,) * (marked.ndim - 1)] = calls[-1]
        return marked.movedim(-1, 1) if isinstance(layer, CLASSES_SECOND) else marked

    layers = [layer for layer in module.modules() if isinstance(layer, CLASSES_LAST + CLASSES_SECOND)]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        with torch.no_grad():
            clean = predict()
            for call in reversed(range(max(0, len(calls) - MAX_CALLS), len(calls))):
                channels = len(calls[call])
                marked_call, calls[:] = call, []
                changed = predict()[0] != clean[0]
                if changed.any():
                    return _fully_changed_dim(changed, channels)
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _fully_changed_dim(changed: Tensor, channels: int) -> int | None:
    """Return the dimension of the batch's outputs along which those of one sample changed everywhere."""
    dims = [dim for dim in range(changed.ndim) if bool(changed.movedim(dim, 0).flatten(1).any(1).all())]
    if len([dim for dim in dims if changed.shape[dim] > 1]) > 1:  # all positions depend on one another
        return None
    if len(dims) > 1:  # a dimension of length 1 changes in any case
        dims = [dim for dim in dims if changed.shape[dim] == channels]
    return dims[0] + 1 if len(dims) == 1 else None
