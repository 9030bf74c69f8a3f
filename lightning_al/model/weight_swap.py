"""Several sets of weights for one module: copy them, move them to its device, and swap them in."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor

Weights = Mapping[str, Tensor]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a module by name: the tensors themselves, no copies."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def copy_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copy the weights of a module to the CPU.

    Args:
        module: On any device and in any precision, which the copy keeps; not changed.

    Returns:
        Parameters and persistent buffers by name; tied ones are one tensor under several names.

    """
    current = weights_of(module)
    tensors = {id(tensor): tensor for tensor in current.values()}
    copies = {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}
    return {name: copies[id(tensor)] for name, tensor in current.items()}


def copy_to_device_of(module: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """Copy weights to the device of a module, so that `swapped_weights` only has to swap pointers.

    Args:
        module: Copies get its device, precision and memory layout; the clone that scores has at least single precision.
        weights: Tensors with the names of `weights_of`.

    Returns:
        Copies by name.

    Raises:
        ValueError: If a name or a shape is not the module's.

    """
    current = weights_of(module)
    _check_weights(module, current, weights, lambda tensor: tuple(tensor.shape))
    # one deep copy of all: tensors that share memory, such as an LSTM's on a GPU, must share it in the copy too
    copies = copy.deepcopy({name: tensor.data for name, tensor in current.items()})
    for name, tensor in copies.items():
        tensor.copy_(weights[name])
    return copies


@contextmanager
def swapped_weights(module: nn.Module, weights: Weights) -> Iterator[None]:
    """Set other weights of a module inside, and restore its own afterwards, also after an exception.

    Pointers are swapped and nothing is copied: parameters and buffers stay the same objects, to which optimizers, hooks
    and tied layers may refer.

    Args:
        module: Any module.
        weights: The result of `copy_to_device_of`: on the module's device and in its precision.

    Raises:
        ValueError: If a name, a shape, a precision or a device is not the module's.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with swapped_weights(layer, {"weight": Tensor([[1.0, 2.0]])}):
        ...     layer(Tensor([[1.0, 1.0]])).tolist()
        [[3.0]]

    """
    current = weights_of(module)
    _check_weights(module, current, weights, lambda tensor: (tuple(tensor.shape), tensor.dtype, tensor.device))
    swaps = {
        id(tensor): (tensor, tensor.data, weights[name].data) for name, tensor in current.items()
    }  # tied ones once
    try:
        for tensor, _, replacement in swaps.values():
            tensor.data = replacement
        yield
    finally:
        for tensor, before, _ in swaps.values():
            tensor.data = before


def weight_passes(
    predictor: Predictor, batch: Any, members: Sequence[Weights], output: Output = "softmax"
) -> Iterator[Tensor]:
    """Predict a batch with one set of weights after the other.

    Args:
        predictor: The model, which has its own weights again whenever a pass is yielded.
        batch: A batch on its device.
        members: K sets of weights, each a result of `copy_to_device_of`.
        output: Probabilities of classes or of labels, as for `Predictor.output`.

    Yields:
        K tensors (B, C, *positions).

    """
    for step, weights in enumerate(members, start=1):
        with swapped_weights(predictor.module, weights):
            probs = predictor.output(batch, output)
        predictor.report_pass(step, len(members), len(probs))
        yield probs


def _check_weights(module: nn.Module, current: Weights, weights: Weights, properties: Any) -> None:
    name = type(module).__name__
    missing, unknown = sorted(current.keys() - weights.keys()), sorted(weights.keys() - current.keys())
    if missing or unknown:
        raise ValueError(
            f"These weights are not those of a {name}: missing {missing[:5]}, unknown {unknown[:5]}. Take them from "
            "a module of the same architecture, with `copy_weights`."
        )
    for key, tensor in current.items():
        if properties(tensor) != properties(weights[key]):
            raise ValueError(
                f"These weights do not fit {name}: {key!r} expected {properties(tensor)}, got "
                f"{properties(weights[key])}. Take them from a module of the same architecture, and use "
                "`copy_to_device_of` to bring them to its device and precision."
            )
