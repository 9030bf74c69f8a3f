"""The output of a model: which tensor holds the predictions, and the order of its dimensions."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from lightning_al.data.batch import OUTPUT_KEYS, THREE_WAYS_OUT, describe
from lightning_al.numerics.float32 import LOW_PRECISION

Output = Literal["softmax", "sigmoid", "identity"]


def find_output(outputs: Any) -> Tensor:
    """Return the tensor of predictions in the output of a module.

    Args:
        outputs: A tensor; a tuple or list that starts with one; a mapping or Hugging Face ModelOutput that has one
            under a usual key (`logits`, `out`, `pred`, ...) or a single entry.

    Returns:
        The tensor, unchanged.

    Raises:
        TypeError: If there is none, with the type of the output and three ways out.

    """
    predictions = outputs
    if isinstance(predictions, Mapping):
        keys = [key for key in OUTPUT_KEYS if key in predictions] or (
            list(predictions) if len(predictions) == 1 else []
        )
        predictions = predictions[keys[0]] if keys else None
    elif isinstance(predictions, (list, tuple)) and predictions and not isinstance(predictions[0], (Mapping, str)):
        predictions = predictions[0]
    if not isinstance(predictions, Tensor):
        raise TypeError(f"Expected predictions, got {describe(outputs)}. {THREE_WAYS_OUT}")
    if not predictions.is_floating_point():
        raise TypeError(
            f"Expected raw outputs, got {describe(predictions)}: class numbers say nothing about uncertainty. "
            f"{THREE_WAYS_OUT}"
        )
    return predictions


def to_batch_class_positions(outputs: Tensor) -> Tensor:
    """Return outputs as (B, C, *positions), in at least single precision.

    Args:
        outputs: (B,) or (B, C); sequences (B, T, C); dense (B, C, H, W) or (B, C, D, H, W).

    Returns:
        (B, 1), (B, C), (B, C, T), (B, C, H, W) or (B, C, D, H, W).

    Raises:
        TypeError: For any other number of dimensions, with three ways out.

    """
    if type(outputs) is not Tensor:  # one with metadata, which the rows of other samples must not share
        outputs = outputs.as_subclass(Tensor)
    if outputs.dtype in LOW_PRECISION:
        outputs = outputs.float()
    if outputs.ndim < 2:  # a squeezed output loses its batch dimension in a batch of one
        return outputs.reshape(-1, 1)
    if outputs.ndim == 3:
        return outputs.movedim(2, 1)
    if outputs.ndim in (2, 4, 5):
        return outputs
    raise TypeError(f"Cannot tell samples from classes in {describe(outputs)}. {THREE_WAYS_OUT}")
