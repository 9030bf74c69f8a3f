"""The output of a model: which tensor holds the predictions, and the order of its dimensions."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from lightning_al.data.batch import OUTPUT_KEYS, THREE_WAYS_OUT, describe
from lightning_al.numerics.float32 import LOW_PRECISION

Output = Literal["softmax", "sigmoid", "identity"]
ClassOutput = Literal["softmax", "sigmoid"]
"""One of several classes, or labels that are each present or absent (one output: a binary classifier)."""


def check_output(name: str, output: str) -> None:
    """Raise if a strategy that reads probabilities cannot take them from such outputs.

    Args:
        name: The strategy, for the message.
        output: The option `output`.

    """
    if output not in get_args(ClassOutput):
        raise ValueError(
            f'`{name}(output={output!r})`: expected "softmax" for one of several classes, or "sigmoid" for a binary '
            "logit and for several labels. Without probabilities, as in regression: `NoiseStabilityAcquisition(output="
            '"identity")`, `MCDropoutAcquisition(uncertainty="variance")` or `CoreSetAcquisition`.'
        )


def find_entry(outputs: Any) -> Any:
    """Return where the predictions are in the output of a module.

    Args:
        outputs: A tensor; a mapping or Hugging Face ModelOutput with a usual key (`logits`, `out`, `pred`, ...) or one
            entry; a tuple or list of tensors, of which one is computed by all the parameters behind the others and
            more, such as `(logits, hidden)`, or `(loss, logits)`.

    Returns:
        A key or a position; None for a tensor.

    Raises:
        TypeError: If there are no predictions or several entries may be them, with three ways out.

    """
    if isinstance(outputs, Tensor):
        return None
    entries: dict[Any, Any] = {}
    if isinstance(outputs, Mapping):
        keys = [key for key in OUTPUT_KEYS if key in outputs] or (list(outputs) if len(outputs) == 1 else [])
        entries = {key: outputs[key] for key in (keys[:1] if OUTPUT_KEYS[0] in keys else keys)}
    elif isinstance(outputs, (list, tuple)) and outputs and isinstance(outputs[0], Tensor):
        entries = dict(enumerate(outputs))
    if not entries:
        raise TypeError(f"Expected predictions, got {describe(outputs)}. {THREE_WAYS_OUT}")
    tensors = {key: entry for key, entry in entries.items() if isinstance(entry, Tensor) and entry.is_floating_point()}
    return _most_computed(tensors, outputs) if tensors else next(iter(entries))


def take_entry(outputs: Any, entry: Any) -> Tensor:
    """Return the predictions in the output of a module.

    Args:
        outputs: The output.
        entry: The result of `find_entry` for this module.

    Returns:
        The tensor, unchanged.

    Raises:
        TypeError: If it is no floating-point tensor, with three ways out.

    """
    predictions = outputs if entry is None else outputs[entry]
    if not isinstance(predictions, Tensor):
        raise TypeError(f"Expected predictions, got {describe(outputs)}. {THREE_WAYS_OUT}")
    if not predictions.is_floating_point():
        raise TypeError(
            f"Expected raw outputs, got {describe(predictions)}: class numbers say nothing about uncertainty. "
            f"{THREE_WAYS_OUT}"
        )
    return predictions


def to_batch_class_positions(outputs: Tensor, class_dim: int = 1) -> Tensor:
    """Return outputs as (B, C, *positions), in at least single precision.

    Args:
        outputs: (B,), (B, C), or one more dimension for each axis of positions, up to three.
        class_dim: The dimension of the classes in outputs with positions.

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
    if outputs.ndim > 5:
        raise TypeError(f"Cannot tell samples from classes in {describe(outputs)}. {THREE_WAYS_OUT}")
    return outputs.movedim(class_dim, 1) if outputs.ndim > 2 else outputs


def _most_computed(entries: dict[Any, Tensor], outputs: Any) -> Any:
    """Return the entry that all parameters behind the others take part in, and more; a scalar is a loss."""
    if len(entries) == 1:
        return next(iter(entries))
    behind = {key: _parameters_behind(entry) for key, entry in entries.items()}
    most = [
        key
        for key, entry in entries.items()
        if entry.ndim > 0
        and all(
            behind[key] > behind[other] or (entries[other].ndim == 0 and behind[key] == behind[other])
            for other in entries
            if other != key
        )
    ]
    if len(most) != 1:
        raise TypeError(
            f"Cannot tell which entry of {describe(outputs)} holds the predictions: no single one depends on all "
            f"parameters that the others depend on. {THREE_WAYS_OUT}"
        )
    return most[0]


def _parameters_behind(tensor: Tensor) -> set[int]:
    """Return the identities of the leaves in the graph of a tensor."""
    leaves: set[int] = set()
    seen: set[Any] = set()
    nodes: list[Any] = [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        nodes += [previous for previous, _ in node.next_functions]
    return leaves
