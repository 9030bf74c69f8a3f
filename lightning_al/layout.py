"""The order of a tensor's dimensions in memory, which decides how fast a convolution is."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_al.adapters import Predictor

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, nn.Conv3d, nn.ConvTranspose3d)


def channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor with its channels last in memory, if it has the dimensions of pictures or volumes."""
    if tensor.ndim not in (4, 5):
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d)


def prefer_channels_last(predictor: Predictor, batch: Any) -> bool:
    """Keep the weights of convolutions with their channels last, on a CPU, if the model can do with it.

    oneDNN then convolves without reordering what goes in and out of each layer, and activations follow the weights.
    A model that takes apart its activations with `view` would fail, so one batch is tried both ways. Time is not
    asked: processes that disagreed would round differently.

    Args:
        predictor: The clone of the model, whose weights are laid out anew; call under `torch.no_grad`.
        batch: A few samples.

    Returns:
        Whether the weights lie so now.

    Cost: two forward passes over `batch` if there are convolutions.

    """
    modules = predictor.module.modules()
    convolutions = [module for module in modules if isinstance(module, CONVOLUTIONS) and not _cuts_patches(module)]
    weights = [module.weight for module in convolutions if module.weight.device.type == "cpu"]
    if not weights:
        return False
    before = [weight.data for weight in weights]
    expected = _try(predictor, batch)
    for weight in weights:
        weight.data = channels_last(weight.data)
    found = _try(predictor, batch)
    if expected is not None and found is not None and (found - expected).abs().max() <= 1e-4 * expected.abs().max():
        return True
    for weight, data in zip(weights, before, strict=True):
        weight.data = data
    return False


def _cuts_patches(convolution: Any) -> bool:
    """Tell whether a convolution is the embedding of patches that a transformer takes for tokens, a matrix product."""
    return bool(convolution.stride == convolution.kernel_size and max(convolution.kernel_size) > 1)


def _try(predictor: Predictor, batch: Any) -> Tensor | None:
    """Return the outputs, or None if they cannot be had; what is wrong is reported where they are needed."""
    try:
        return predictor(batch)
    except Exception:
        return None
