"""The order of a tensor's dimensions in memory, which decides how fast a convolution is."""

from typing import Any

import torch
from torch import nn

from lightning_al.model.predictor import Predictor


def prefer_channels_last(predictor: Predictor, batch: Any) -> None:
    """Store the weights of two-dimensional convolutions with their channels last, on a CPU.

    oneDNN then convolves without reordering inputs and outputs of each layer, since activations follow the weights.
    A model that reshapes its activations with `view` would fail, so one batch is tried.

    Args:
        predictor: The clone of the model, whose weights are reordered; call under `torch.no_grad`.
        batch: A few samples.

    Cost: one forward pass over `batch` if there are such convolutions.

    """
    module = predictor.module
    convolutions = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
    if not any(layer.weight.device.type == "cpu" for layer in convolutions):
        return
    try:
        module.to(memory_format=torch.channels_last)
        predictor(batch)
    except Exception:  # an error of the model itself is raised again where its outputs are needed
        module.to(memory_format=torch.contiguous_format)
