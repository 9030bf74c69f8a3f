"""Batches and samples: their inputs, labels and rows, and the arguments of `forward`."""

import inspect
from collections.abc import Mapping, Sequence
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
    "return them as a tensor (B,), (B, C), (B, C, T), (B, T, C), (B, C, H, W) or (B, C, D, H, W), alone, in a tuple "
    f"beside what they are computed from, or under one of the keys {', '.join(OUTPUT_KEYS)}."
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
    _check_readings(module, batch, required)
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


def _check_readings(module: nn.Module, batch: Sequence[Any], required: list[str]) -> None:
    """Raise if a batch of three or more entries may be (meta, inputs, targets), or (inputs, targets, index)."""
    if len(batch) < 3:
        return
    first, passed = batch[0], batch[max(len(required), 1) - 1] if len(required) < len(batch) else None
    reason = None
    is_input = _is_table(first) or (isinstance(first, Mapping) and set(required) & set(first))
    if not is_input and len(required) < len(batch) - 1 and any(_is_table(entry) for entry in batch[1:-1]):
        reason = f"a {describe(first)} before them may be an input, or describe the samples"
    if passed is not first and _is_column(passed) and _is_column(batch[-1]) and "len" not in required[-1]:
        reason = f"`{required[-1]}` would receive the targets of (inputs, targets, index)"
    if reason is not None:
        raise TypeError(
            f"Cannot tell which entries of {describe(batch)} `{type(module).__name__}.forward` takes: {reason}. "
            f"{THREE_WAYS_OUT}"
        )


def _is_table(entry: Any) -> bool:
    """Return whether an entry of a batch looks like inputs: numbers, or several tokens for each sample."""
    if isinstance(entry, (list, tuple)):
        return bool(entry) and all(map(_is_table, entry))
    return isinstance(entry, Tensor) and (entry.ndim > 1 or entry.is_floating_point())


def _is_column(entry: Any) -> bool:
    """Return whether an entry of a batch may be classes, lengths or indices."""
    return isinstance(entry, Tensor) and entry.ndim == 1 and not entry.is_floating_point()


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


def take_rows(batch: Any, rows: Tensor, size: int, has_samples: Sequence[bool] | None = None) -> Any:
    """Return a batch of some of the samples of another.

    Args:
        batch: Nested containers of tensors; others than those with one row per sample are kept as they are.
        rows: (n,) positions in the batch, on its device.
        size: Number of samples in `batch`.
        has_samples: For each tensor in order, whether its rows are the samples; None for all that have `size` rows.

    Returns:
        A batch of the same form.

    """
    known = None if has_samples is None else iter(has_samples)

    def take(tensor: Tensor) -> Tensor:
        is_cut = tensor.ndim and len(tensor) == size if known is None else next(known)
        return tensor[rows.to(tensor.device)] if is_cut else tensor

    return apply_to_collection(batch, Tensor, take)


def tensors_with_samples(one: Any, two: Any) -> list[bool] | None:
    """Return for each tensor of a batch, in order, whether it has one row per sample.

    Args:
        one: A batch of one sample.
        two: A batch of two.

    Returns:
        A list; None if the two batches hold different numbers of tensors.

    """
    tensors = tensors_in(one), tensors_in(two)
    if len(tensors[0]) != len(tensors[1]):
        return None
    return [first.shape[:1] == (1,) and second.shape[:1] == (2,) for first, second in zip(*tensors, strict=True)]


def may_hold_other_rows(batch: Any, size: int) -> bool:
    """Return whether a tensor of a batch may have as many rows as there are samples by coincidence."""
    expected = 1 + bool(targets_in(batch)) if isinstance(batch, (Mapping, list, tuple)) else 2  # inputs and targets
    return sum(tensor.shape[:1] == (size,) for tensor in tensors_in(batch)) > expected


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
