"""Features of a sample: the input of a network's last linear layer, or the output of a module of a given name."""

import difflib
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_al.data.batch import describe, tensors_in
from lightning_al.model.dropout import unfused_transformers
from lightning_al.model.predictor import Predictor

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # a convolution at the end of a dense model is one per position
# Names in an error message, so that it stays readable.
MAX_NAMES = 12


class Features:
    """Outputs and features of a batch in one forward pass.

    By default the features are the input of the last linear layer, which is found by watching a forward pass: of the
    layers with one output per class, the last one on the way to the model's output. Features at several positions
    (pixels, tokens) are averaged.

    Args:
        predictor: The model as a function from a batch to outputs.
        batch: A batch on the model's device, to find the layer with.
        name: The module whose output to take instead, as in `dict(model.named_modules())`.

    Raises:
        ValueError: If no layer is found, or there is no module of that name; the message lists candidates.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> features = Features(Predictor(model), torch.ones(5, 4))
        >>> [tuple(tensor.shape) for tensor in features(torch.ones(5, 4))]
        [(5, 3), (5, 8)]

    """

    def __init__(self, predictor: Predictor, batch: Any, name: str | None = None) -> None:
        self.predictor = predictor
        predictor.inspect(batch)  # before its layers are watched
        self._names = {module: path for path, module in predictor.module.named_modules() if path}
        self._takes_input = name is None
        self._layer = self._last_linear(batch) if name is None else self._named(name)
        self(batch)  # raises before the pool is scored

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the outputs (B, C, *positions) and the features (B, D) of a batch."""
        captured: list[tuple[Tensor, str]] = []

        def keep(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            tensor = _first_tensor((*inputs, *keywords.values()) if self._takes_input else output)
            channels_last = isinstance(layer, nn.Linear) or (tensor.ndim == 3 and not isinstance(layer, LINEAR))
            # at once, since later layers may change it in place
            captured[:] = [(_average_positions(tensor, channels_last), describe(tensor))]

        fused = nullcontext() if self._takes_input else unfused_transformers()
        with self._layer.register_forward_hook(keep, with_kwargs=True), fused:
            outputs = self.predictor(batch)
        name = self._names[self._layer]
        if not captured:
            raise ValueError(
                f"`features`: {name!r} of {type(self.predictor.module).__name__} is not called in a forward pass. "
                f"{self._candidates(batch)}"
            )
        features, description = captured[0]
        if len(features) != len(outputs):
            raise ValueError(
                f"`features`: expected one row per sample, got {description} from {name!r} for {len(outputs)} samples. "
                f"{self._candidates(batch)}"
            )
        features = features.as_subclass(Tensor)  # without metadata of a batch
        return outputs, features.float() if features.dtype != torch.float64 else features

    def directions(self, batch: Any) -> Tensor:
        """Return the features (B, D) of a batch, scaled to length 1."""
        return nn.functional.normalize(self(batch)[1])

    def _named(self, name: str) -> nn.Module:
        modules: dict[str, nn.Module] = {path: module for module, path in self._names.items()}
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=MAX_NAMES, cutoff=0.3) or list(modules)[-MAX_NAMES:]
            raise ValueError(
                f"`features={name!r}`: {type(self.predictor.module).__name__} has no such module. Did you mean one of "
                f"{', '.join(close)}?"
            )
        return modules[name]

    def _last_linear(self, batch: Any) -> nn.Module:
        """Return the last layer with one output per class that the model's output depends on directly."""
        calls: list[tuple[nn.Module, Tensor | None]] = []

        def watch(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():  # a `predict_step` may disable it
                calls.append((layer, None))
                return output
            # detached from the layers before, so that only the last ones on each path get a gradient
            leaf = output.detach().requires_grad_()
            calls.append((layer, leaf))
            return leaf.clone()

        handles = [layer.register_forward_hook(watch) for layer in self._names if isinstance(layer, LINEAR)]
        try:
            with torch.enable_grad():
                outputs = self.predictor(batch)
                total = outputs.sum()
        finally:
            for hook in handles:
                hook.remove()
        leaves = [leaf for _, leaf in calls if leaf is not None]
        if leaves and total.requires_grad:
            gradients = iter(torch.autograd.grad(total, leaves, allow_unused=True))
            calls = [call for call in calls if call[1] is None or next(gradients) is not None]
        fitting = [
            layer
            for layer, leaf in calls
            if _width(layer) == outputs.shape[1] and (leaf is not None or self._matters(layer, batch, outputs))
        ]
        if not fitting:
            raise ValueError(
                f"`features`: found no linear layer with {outputs.shape[1]} outputs at the end of "
                f"{type(self.predictor.module).__name__}. {self._candidates(batch)}"
            )
        last: nn.Module = fitting[-1]
        return last

    def _matters(self, layer: nn.Module, batch: Any, outputs: Tensor) -> bool:
        """Return whether the outputs change with those of a layer, where no gradient shows it."""
        with layer.register_forward_hook(lambda layer, inputs, output: 1 - 2 * output):
            return not torch.equal(self.predictor(batch), outputs)

    def _candidates(self, batch: Any) -> str:
        """Return a remedy for messages that lists the last called modules with the shapes of their outputs."""
        shapes: dict[str, str] = {}

        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 1:
                shapes[self._names[module]] = str(tuple(output.shape))

        handles = [module.register_forward_hook(note) for module in self._names]
        try:
            self.predictor(batch)
        finally:
            for hook in handles:
                hook.remove()
        listed = ", ".join(f"{name!r} {shape}" for name, shape in list(shapes.items())[-MAX_NAMES:])
        return f"Pass features= the name of a module whose output describes a sample; called last: {listed or 'none'}."


def _first_tensor(output: Any) -> Tensor:
    """Return the first floating-point tensor in what a module returned, such as a tuple or a Hugging Face output."""
    tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    if not tensors:
        raise ValueError(f"`features`: expected a module that returns numbers for each sample, got {describe(output)}.")
    return tensors[0]


def _width(layer: nn.Module) -> Any:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _average_positions(features: Tensor, channels_last: bool) -> Tensor:
    """Average over the positions: (B, *positions, D) or (B, D, *positions) to (B, D)."""
    if features.ndim < 3:
        return features.reshape(len(features), -1).clone()
    return features.flatten(1, -2).mean(1) if channels_last else features.flatten(2).mean(2)
