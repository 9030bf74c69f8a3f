"""The one file that knows what a batch and what a model output look like."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

LABEL_KEYS = ("label", "labels", "target", "targets", "y")
INPUT_KEYS = ("x", "input", "inputs", "image", "images", "img", "pixel_values", "input_ids", "features", "data")
OUTPUT_KEYS = ("logits", "out", "pred", "preds", "prediction", "predictions", "output", "outputs", "y_hat")
WHOLE_BATCH = ("batch", "sample", "samples")  # a parameter of this name takes the batch as it is
LOW_PRECISION = (torch.float16, torch.bfloat16)

Output = Literal["softmax", "sigmoid", "identity"]

THREE_WAYS_OUT = (
    "Three ways out: (1) define `acquisition_step(self, batch)` in the LightningModule, returning one row of raw "
    "outputs (logits) per sample; (2) let `predict_step` return them; (3) let `forward` take the batch's inputs and "
    "return them as a tensor (B, C), (B, C, H, W), (B, C, D, H, W), (B, T, C) or (B,), alone, first in a tuple, or "
    f"under one of the keys {', '.join(OUTPUT_KEYS)}."
)


class Predictor:
    """A module seen as a function from a batch to raw outputs of shape (B, C, *positions).

    What is called is, in this order: the module's `acquisition_step(batch)`; an overridden `predict_step`;
    `forward` on the inputs of the batch.

    Args:
        module: Any `nn.Module`; usually the clone of a LightningModule, on its device and in eval mode.

    Example:
        >>> predictor = Predictor(nn.Linear(3, 2))
        >>> predictor((torch.ones(5, 3), torch.zeros(5))).shape
        torch.Size([5, 2])

    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._gives_probabilities: bool | None = None  # unknown before the first batch

    def __call__(self, batch: Any) -> Tensor:
        """Return raw outputs (logits, or values for regression) of shape (B, C, *positions)."""
        return canonical(find_output(self._run(batch)))

    def probabilities(self, batch: Any) -> Tensor:
        """Return class probabilities of shape (B, C, *positions).

        Args:
            batch: As the loader gives it, on the module's device.

        Returns:
            The softmax over dimension 1, or the outputs themselves if the module already ends in one.

        Raises:
            ValueError: If there is a single output, whose softmax would always be one.

        """
        return self.normalized(self(batch))

    def normalized(self, outputs: Tensor) -> Tensor:
        """Return the class probabilities that outputs of this module, (B, C, *positions), stand for."""
        if outputs.shape[1] == 1:
            raise ValueError(
                f"{type(self.module).__name__} has one output per sample, and the softmax of one number is always 1. "
                'For regression use `NoiseStabilityAcquisition(output="identity")` or '
                '`MCDropoutAcquisition(uncertainty="variance")`; for a binary logit `output="sigmoid"`.'
            )
        if self._gives_probabilities is None:
            self._gives_probabilities = bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-3).all())
            if self._gives_probabilities:
                rank_zero_warn(
                    f"{type(self.module).__name__} returns probabilities (non-negative, summing to one), which are "
                    "used as they are. Define `acquisition_step` to return logits if that is a coincidence."
                )
        return outputs if self._gives_probabilities else outputs.softmax(1)

    def output(self, batch: Any, kind: Output) -> Tensor:
        """Return what distances are measured on: probabilities, sigmoids or raw outputs, (B, C, *positions)."""
        if kind == "softmax":
            return self.probabilities(batch)
        return self(batch).sigmoid() if kind == "sigmoid" else self(batch)

    def _run(self, batch: Any) -> Any:
        step = getattr(self.module, "acquisition_step", None)
        if callable(step):
            return step(batch)
        if isinstance(self.module, LightningModule) and is_overridden("predict_step", self.module):
            return self.module.predict_step(*(batch, 0, 0)[: _positional(self.module.predict_step)])
        if isinstance(self.module, LightningModule) and not is_overridden("forward", self.module):
            raise TypeError(f"{type(self.module).__name__} defines no `forward`. {THREE_WAYS_OUT}")
        args, kwargs = forward_arguments(self.module, batch)
        return self.module(*args, **kwargs)


def _positional(function: Callable[..., Any]) -> int | None:
    """Count the positional parameters; None if it takes any number."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)


def forward_arguments(module: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Find what to pass to `module.forward`, leaving the labels out.

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
    if parameters and parameters[0].name in WHOLE_BATCH:
        return (batch,), {}
    required = _required(parameters)
    if len(batch) == 0:
        raise TypeError(f"An empty {type(batch).__name__} came as a batch. {THREE_WAYS_OUT}")
    inputs = batch[0]
    if isinstance(inputs, Mapping) and (len(required) <= 1 or set(required) <= set(inputs)):
        return _from_mapping(module, inputs, parameters)
    if len(required) <= 1:
        return (inputs,), {}
    if isinstance(inputs, (list, tuple)) and len(inputs) >= len(required):
        return tuple(inputs[: len(required)]), {}
    if len(batch) >= len(required):  # forward takes the targets too, as in teacher forcing
        return tuple(batch[: len(required)]), {}
    raise TypeError(
        f"`{type(module).__name__}.forward` needs {required}, but the batch is a {describe(batch)}. {THREE_WAYS_OUT}"
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
    if named:  # forward may take the targets too, as in teacher forcing
        named.update({name: batch[name] for name in required if name in batch})
    if (named or takes_any) and set(required) <= set(named):
        return (), {**inputs, **named} if takes_any else named
    if parameters and parameters[0].name in WHOLE_BATCH:
        return (batch,), {}
    known = [key for key in INPUT_KEYS if key in inputs] or list(inputs)
    if len(known) == 1 and len(required) <= 1:
        return (inputs[known[0]],), {}
    raise TypeError(
        f"Cannot tell which entry of {describe(batch)} is the input of `{type(module).__name__}.forward"
        f"({', '.join(parameter.name for parameter in parameters)})`. {THREE_WAYS_OUT}"
    )


def find_output(outputs: Any) -> Tensor:
    """Find the tensor of predictions in what a module returned.

    Args:
        outputs: A tensor; a tuple or list that starts with one; a mapping or Hugging Face ModelOutput that has one
            under a usual key (`logits`, `out`, `pred`, ...) or a single entry.

    Returns:
        The tensor, unchanged.

    Raises:
        TypeError: If there is none, with the type found and three ways out.

    """
    found = outputs
    if isinstance(found, Mapping):
        keys = [key for key in OUTPUT_KEYS if key in found] or (list(found) if len(found) == 1 else [])
        found = found[keys[0]] if keys else None
    elif isinstance(found, (list, tuple)) and found and not isinstance(found[0], (Mapping, str)):
        found = found[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"Expected predictions, got {describe(outputs)}. {THREE_WAYS_OUT}")
    if not found.is_floating_point():
        raise TypeError(
            f"Expected raw outputs, got {describe(found)}: class numbers say nothing about uncertainty. "
            f"{THREE_WAYS_OUT}"
        )
    return found


def canonical(outputs: Tensor) -> Tensor:
    """Bring outputs to (B, C, *positions), in at least single precision.

    Args:
        outputs: (B,) or (B, C); sequences (B, T, C); dense (B, C, H, W) or (B, C, D, H, W).

    Returns:
        (B, 1), (B, C), (B, C, T), (B, C, H, W) or (B, C, D, H, W).

    Raises:
        TypeError: For any other number of dimensions, with three ways out.

    """
    if outputs.dtype in LOW_PRECISION:
        outputs = outputs.float()
    if outputs.ndim < 2:  # a squeezed output loses its batch dimension in a batch of one
        return outputs.reshape(-1, 1)
    if outputs.ndim == 3:
        return outputs.movedim(2, 1)
    if outputs.ndim in (2, 4, 5):
        return outputs
    raise TypeError(f"Cannot tell samples from classes in {describe(outputs)}. {THREE_WAYS_OUT}")


def take_rows(batch: Any, rows: Tensor, size: int) -> Any:
    """Return a batch of some of the samples of another.

    Args:
        batch: Nested containers of tensors; those with `size` rows are taken to have one per sample, others are kept.
        rows: (n,) positions in the batch, on its device.
        size: Number of samples in `batch`.

    Returns:
        A batch of the same form.

    """

    def take(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.ndim and len(tensor) == size else tensor

    return apply_to_collection(batch, Tensor, take)


def label_of(sample: Any) -> int:
    """Return the class of one sample of a dataset.

    Args:
        sample: (input, label, ...) or a mapping with a usual key (`label`, `target`, `y`, ...).

    Returns:
        The class as an integer.

    Raises:
        ValueError: If there is no scalar label.

    """
    label: Any = None
    if isinstance(sample, Mapping):
        label = next((sample[key] for key in LABEL_KEYS if key in sample), None)
    elif isinstance(sample, Sequence) and not isinstance(sample, str):
        # the first scalar behind the input: neither a second input nor an index at the end
        scalars = (entry for entry in sample[1:] if math.prod(getattr(entry, "shape", ())) == 1)
        label = next(scalars, None)
    if math.prod(getattr(label, "shape", (0,))) == 1:  # of NumPy or torch
        label = label.item()
    if not isinstance(label, (int, float)) or int(label) != label:
        raise ValueError(
            f"Found no class label in {describe(sample)}: expected (input, label) or one of the keys "
            f"{', '.join(LABEL_KEYS)}. Pass explicit indices as `initial_size`, or leave `balanced_start` off."
        )
    return int(label)


def describe(value: Any) -> str:
    """Describe the type and shape of a batch or an output for an error message."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {describe(entry)}" for key, entry in list(value.items())[:8])
        return f"{type(value).__name__}({inside})"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(describe(entry) for entry in value[:4])})"
    return type(value).__name__
