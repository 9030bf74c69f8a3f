"""Batches and samples: their inputs, labels and rows, and the arguments of `forward`."""

import inspect
from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

LABEL_KEYS = ("label", "labels", "target", "targets", "y")


INPUT_KEYS = ("x", "input", "inputs", "image", "images", "img", "pixel_values", "input_ids", "features", "data")


OUTPUT_KEYS = ("logits", "out", "pred", "preds", "prediction", "predictions", "output", "outputs", "y_hat")


# A first parameter of `forward` with one of these names gets the batch unchanged.
BATCH_PARAMETERS = ("batch", "sample", "samples")


THREE_WAYS_OUT = (
    "Three ways out: (1) define `acquisition_step(self, batch)` in the LightningModule, returning one row of raw "
    "outputs (logits) per sample; (2) let `predict_step` return them; (3) let `forward` take the batch's inputs and "
    "return them as a tensor (B, C), (B, C, H, W), (B, C, D, H, W), (B, T, C) or (B,), alone, first in a tuple, or "
    f"under one of the keys {', '.join(OUTPUT_KEYS)}."
)


def forward_arguments(module: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments for `module.forward`, without the labels.

    Args:
        module: The module whose `forward` will be called.
        batch: A tensor, (inputs, targets), a mapping, or nested ones.

    Returns:
        Positional and keyword arguments.

    Raises:
        TypeError: If the batch does not fit the signature of `forward`, with three ways out.

    """
    parameters = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    if isinstance(batch, Mapping):
        return _from_mapping(module, batch, parameters)
    if isinstance(batch, Tensor) or not isinstance(batch, (list, tuple)):
        return (batch,), {}
    if parameters and parameters[0].name in BATCH_PARAMETERS:
        return (batch,), {}
    required = _required(parameters)
    if len(batch) == 0:
        raise TypeError(f"Expected a batch with inputs, got an empty {type(batch).__name__}. {THREE_WAYS_OUT}")
    inputs = batch[0]
    if isinstance(inputs, Mapping) and (len(required) <= 1 or set(required) <= set(inputs)):
        return _from_mapping(module, inputs, parameters)
    if len(required) <= 1:
        return (inputs,), {}
    if isinstance(inputs, (list, tuple)) and len(inputs) >= len(required):
        return tuple(inputs[: len(required)]), {}
    if len(batch) > len(required):  # the last entry is the target
        return tuple(batch[: len(required)]), {}
    raise TypeError(
        f"`{type(module).__name__}.forward` needs {required}, but the batch is a {describe(batch)}, whose last entry "
        f"is the target: labels of the pool are never passed to a model. {THREE_WAYS_OUT}"
    )


def _required(parameters: list[inspect.Parameter]) -> list[str]:
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def _from_mapping(
    module: nn.Module, batch: Mapping[str, Any], parameters: list[inspect.Parameter]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
    required = _required(parameters)
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    named = {parameter.name: inputs[parameter.name] for parameter in parameters if parameter.name in inputs}
    if (named or takes_any) and set(required) <= set(named):
        return (), {**inputs, **named} if takes_any else named
    if parameters and parameters[0].name in BATCH_PARAMETERS:
        return (batch,), {}
    input_keys = [key for key in INPUT_KEYS if key in inputs] or list(inputs)
    if len(input_keys) == 1 and len(required) <= 1:
        return (inputs[input_keys[0]],), {}
    raise TypeError(
        f"Cannot tell which entry of {describe(batch)} is the input of `{type(module).__name__}.forward"
        f"({', '.join(parameter.name for parameter in parameters)})`. {THREE_WAYS_OUT}"
    )


def targets_in(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch that may be its targets: by their keys, or all behind the first entry."""
    if isinstance(batch, Mapping):
        return [batch[key] for key in LABEL_KEYS if isinstance(batch.get(key), Tensor)]
    if not isinstance(batch, (list, tuple)):
        return []
    return [target for entry in batch[1:] for target in ([entry] if isinstance(entry, Tensor) else targets_in(entry))]


def first_input(batch: Any) -> Tensor:
    """Return the tensor that describes the samples of a batch best: the first of its inputs, never a label.

    Args:
        batch: A tensor, (inputs, targets), a mapping, or nested ones.

    Returns:
        (B, ...) numbers.

    Raises:
        TypeError: If there is none.

    """
    if isinstance(batch, Mapping):
        keys = [key for key in INPUT_KEYS if key in batch] or [key for key in batch if key not in LABEL_KEYS]
        return first_input(batch[keys[0]] if keys else None)
    if isinstance(batch, (list, tuple)) and batch:
        return first_input(batch[0])
    if not isinstance(batch, Tensor) or not batch.ndim:
        raise TypeError(
            f"Found no tensor of inputs in {describe(batch)}: expected a tensor, (inputs, targets), or a mapping with "
            f"one of the keys {', '.join(INPUT_KEYS)}."
        )
    return batch


def take_rows(batch: Any, rows: Tensor, size: int) -> Any:
    """Return a batch of some of the samples of another.

    Args:
        batch: Nested containers of tensors; those with `size` rows have one per sample, others are kept as they are.
        rows: (n,) positions in the batch, on its device.
        size: Number of samples in `batch`.

    Returns:
        A batch of the same form.

    """

    def take(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.ndim and len(tensor) == size else tensor

    return apply_to_collection(batch, Tensor, take)


def describe(value: Any) -> str:
    """Return the type and shape of a batch or an output as text for an error message."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {describe(entry)}" for key, entry in list(value.items())[:8])
        return f"{type(value).__name__}({inside})"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(describe(entry) for entry in value[:4])})"
    return type(value).__name__


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested containers, including those of Hugging Face and Lightning."""
    # torch's pytree does not descend into mappings of other libraries
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:  # returns it, since some containers accept tensors only
        tensors.append(tensor)
        return tensor

    apply_to_collection(tree, Tensor, note, allow_frozen=True)
    return tensors
