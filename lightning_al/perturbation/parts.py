"""Parts of a model, each with its way to per-sample gradient norms: layers, bare parameters, any module.

A part watches one forward pass, in which it records where gradients arrive, and later turns these gradients into
squared norms. The norms are exact if it is called once in a pass; `coverage.py` checks that.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_al.data.batch import tensors_in
from lightning_al.perturbation.gradient_norms import Norms, layer_gradient_norms, summed_norms
from lightning_al.scoring.memory import is_out_of_memory

# Numbers in the per-sample gradients that exist at a time: 128 MB in single precision, to bound memory.
VMAP_NUMBERS = 2**25


@dataclass
class Call:
    """The record of a part's call in a forward pass.

    Attributes:
        part: The part.
        edges: Edges of the graph at which gradients arrive.
        shapes: Shapes of these gradients.
        inputs: Values that the part needs to turn them into norms.

    """

    part: "Part"
    edges: list[GradientEdge] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    inputs: Any = None

    def expect_gradient(self, tensor: Tensor) -> None:
        """Record the edge of a tensor whose gradient is needed, before an in-place activation overwrites it."""
        self.edges.append(get_gradient_edge(tensor))
        self.shapes.append(tensor.shape)


class Part(Protocol):
    """Some parameters, and the computation of their per-sample gradient norms.

    Attributes:
        parameters: Parameters by name within the part.

    """

    parameters: Mapping[str, nn.Parameter]

    def watch(self, calls: list[Call]) -> AbstractContextManager[None]:
        """Return a context in which every call is appended to `calls`."""

    def norms(self, call: Call, gradients: Sequence[Sequence[Tensor]], samples: int) -> Norms:
        """Return (B, D) squared norms by name, from the gradients at the call's edges along each of D directions."""


class LayerPart:
    """A layer whose gradient norms follow from its input and the gradient at its output.

    Args:
        layer: One of `LAYER_NORMS`.
        parameters: Its parameters that count.

    """

    def __init__(self, layer: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self.layer = layer
        self.parameters = parameters

    @contextmanager
    def watch(self, calls: list[Call]) -> Iterator[None]:
        """Record input and output of each call."""

        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if output.requires_grad:
                calls.append(Call(self, inputs=(*args, *kwargs.values())[0]))
                calls[-1].expect_gradient(output)

        with self.layer.register_forward_hook(note, with_kwargs=True):
            yield

    def norms(self, call: Call, gradients: Sequence[Sequence[Tensor]], samples: int) -> Norms:
        """Return the norms of the layer's parameters."""
        return layer_gradient_norms(self.layer, call.inputs, [along[0] for along in gradients], samples)


class BarePart:
    """A parameter that is broadcast over the samples: an embedding of positions, a class token, a scale of a branch.

    While its owner runs, it is replaced by a copy for every row, and the copies' gradients are those of the samples.

    Args:
        owner: The module that holds it, and whose first tensor has the rows.
        name: The name of the parameter in the owner.

    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner = owner
        self.name = name
        self.parameters: Mapping[str, nn.Parameter] = {name: owner.get_parameter(name)}
        self._parameter = self.parameters[name]

    @contextmanager
    def watch(self, calls: list[Call]) -> Iterator[None]:
        """Replace the parameter by copies in each call."""

        def insert_copies(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            copies = self._copies(tensors_in((args, kwargs))[0])
            calls.append(Call(self))
            calls[-1].expect_gradient(copies)
            vars(owner)[self.name] = copies  # takes precedence over the registered parameter

        def remove_copies(*_: Any) -> None:
            vars(self.owner).pop(self.name, None)

        with (
            self.owner.register_forward_pre_hook(insert_copies, with_kwargs=True),
            self.owner.register_forward_hook(remove_copies, always_call=True),
        ):
            yield

    def _copies(self, inputs: Tensor) -> Tensor:
        parameter, rows = self._parameter.detach(), len(inputs)
        if parameter.ndim and len(parameter) == 1:
            shape = (rows, *parameter.shape[1:])
        else:
            shape = (rows, *[1] * (inputs.ndim - 1 - parameter.ndim), *parameter.shape)
        return parameter.expand(shape).requires_grad_()

    def norms(self, call: Call, gradients: Sequence[Sequence[Tensor]], samples: int) -> Norms:
        """Return the norms of the copies' gradients, summed over the rows of each sample."""
        rows = [along[0].reshape(len(along[0]), -1) for along in gradients]
        return {self.name: summed_norms(rows, len(rows[0]) // samples)}


class ModulePart:
    """Any module: gradients of one sample after another, vectorized by `torch.func`.

    Args:
        module: A module that is called once in a pass.
        parameters: Parameters by name within the module.
        samples: Number of samples in the batch of the first call, to find the dimension of the samples.

    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter], samples: int) -> None:
        self.module = module
        self.parameters = parameters
        self._samples = samples
        self._vectorizes = True
        self._inputs: list[int | None] = []  # the samples' dimension of each input tensor
        self._outputs: dict[int, int | None] = {}  # and of each output tensor with a gradient, by its position

    @contextmanager
    def watch(self, calls: list[Call]) -> Iterator[None]:
        """Record the arguments and outputs of each call."""

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            outputs = {position: tensor for position, tensor in enumerate(tensors_in(output)) if tensor.requires_grad}
            if not outputs:
                return
            calls.append(Call(self, inputs=(args, kwargs)))
            for tensor in outputs.values():
                calls[-1].expect_gradient(tensor)
            if not self._outputs:
                self._inputs = [self._dimension(tensor) for tensor in tensors_in((args, kwargs))]
                self._outputs = {position: self._dimension(tensor) for position, tensor in outputs.items()}

        with self.module.register_forward_hook(note, with_kwargs=True):
            yield

    def _dimension(self, tensor: Tensor) -> int | None:
        return next(
            (position for position in range(min(tensor.ndim, 2)) if tensor.shape[position] == self._samples), None
        )

    def norms(self, call: Call, gradients: Sequence[Sequence[Tensor]], samples: int) -> Norms:
        """Return the norms of the gradients of one sample after another."""
        output_gradients = [torch.stack(along) for along in zip(*gradients, strict=True)]  # by output; (D, ...)
        tensors = [tensor.detach() for tensor in tensors_in(call.inputs)]
        # fused attention has no rule for single samples; a warning about loops in `vmap` would not help the user
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented")
            if self._vectorizes:
                try:
                    return self._vectorized(call.inputs, tensors, output_gradients)
                except RuntimeError as error:
                    if is_out_of_memory(error):
                        raise
                    self._vectorizes = False  # an operator, such as a recurrence, has no rule
            return self._one_by_one(call.inputs, tensors, output_gradients, samples)

    def _vectorized(self, arguments: Any, tensors: list[Tensor], output_gradients: list[Tensor]) -> Norms:
        dimensions = [None if position is None else position + 1 for position in self._outputs.values()]

        def sample_norms(tensors: list[Tensor], output_gradients: list[Tensor]) -> Norms:
            batch = [_as_batch_of_one(*pair) for pair in zip(tensors, self._inputs, strict=True)]
            along = [_as_batch_of_one(*pair) for pair in zip(output_gradients, dimensions, strict=True)]
            pull_back = vjp(lambda values: self._run(values, arguments, batch), self._values())[1]
            # one direction after another: some operators have wrong rules for two dimensions at once
            pulled = [pull_back(list(vectors))[0] for vectors in zip(*along, strict=True)]
            return {
                name: torch.stack([gradients[name].square().sum() for gradients in pulled]) for name in self.parameters
            }

        gradient_numbers = len(output_gradients[0]) * sum(parameter.numel() for parameter in self.parameters.values())
        per_sample = vmap(sample_norms, (self._inputs, dimensions), chunk_size=max(1, VMAP_NUMBERS // gradient_numbers))
        with torch.no_grad():
            return per_sample(tensors, output_gradients)

    def _one_by_one(self, arguments: Any, tensors: list[Tensor], output_gradients: list[Tensor], samples: int) -> Norms:
        norms: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        dimensions = list(self._outputs.values())
        values = {name: value.requires_grad_() for name, value in self._values().items()}
        for sample in range(samples):
            batch = [_sample(tensor, position, sample) for tensor, position in zip(tensors, self._inputs, strict=True)]
            with torch.enable_grad():
                outputs = self._run(values, arguments, batch)
            squares = []
            for along in zip(*output_gradients, strict=True):  # one direction
                vectors = [
                    _sample(gradient, position, sample) for gradient, position in zip(along, dimensions, strict=True)
                ]
                pulled = torch.autograd.grad(outputs, list(values.values()), vectors, retain_graph=True)
                squares.append([gradient.square().sum() for gradient in pulled])
            for name, along_all in zip(values, zip(*squares, strict=True), strict=True):
                norms[name].append(torch.stack(along_all))
        return {name: torch.stack(rows) for name, rows in norms.items()}

    def _values(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def _run(self, values: dict[str, Tensor], arguments: Any, batch: list[Tensor]) -> list[Tensor]:
        """Run the module with other parameters and other tensors, and return the outputs with a gradient."""
        tensors = iter(batch)
        args, kwargs = apply_to_collection(arguments, Tensor, lambda _: next(tensors))
        outputs = tensors_in(functional_call(self.module, values, args, kwargs))
        return [outputs[position] for position in self._outputs]


def _as_batch_of_one(tensor: Tensor, dimension: int | None) -> Tensor:
    """Return a tensor of a single sample with the samples' dimension, of length 1."""
    return tensor if dimension is None else tensor.unsqueeze(dimension)


def _sample(tensor: Tensor, dimension: int | None, sample: int) -> Tensor:
    return tensor if dimension is None else tensor.narrow(dimension, sample, 1)
