"""Assign each parameter to a part of the model, by watching forward passes, and check it against autograd.

Layers come first, then bare parameters that are broadcast over the samples, then the smallest module around the
remaining parameters, up to the complete model. Each part must give the norm that plain autograd gives for one sample of
a few, and zero for the others; so no layer and no sample is mistaken for another.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_al.data.batch import take_rows, tensors_in
from lightning_al.perturbation.attention import AttentionPart, can_be_opened
from lightning_al.perturbation.finite_differences import perturbed
from lightning_al.perturbation.gradient_norms import known_norms
from lightning_al.perturbation.parts import BarePart, LayerPart, ModulePart, Part
from lightning_al.perturbation.watched_passes import backward_passes, watched_pass
from lightning_al.scoring.memory import is_out_of_memory

# Samples with which parts are checked: few, and a prime, so that hardly another dimension has this length.
NUM_PROBE_SAMPLES = 7
# Names in a message, so that it stays readable.
MAX_NAMES = 6
# Relative change of a parameter: large enough to change the outputs if they depend on it.
PROBE_CHANGE = 1e-2


class UncountableError(RuntimeError):
    """Some parameters cannot be counted exactly; the message names them."""


def cover(
    root: nn.Module, batch: Any, clean: Tensor, parameters: Sequence[nn.Parameter], weights: Sequence[float]
) -> list[Part]:
    """Return parts that together count every parameter once.

    Args:
        root: Maps a batch to outputs (B, C); the parameters that count require gradients, no others.
        batch: Some samples.
        clean: (B, C) their outputs.
        parameters: The parameters to count.
        weights: Weight of the squared norm of each parameter's gradient in the score.

    Returns:
        The parts, which are watched together.

    Raises:
        UncountableError: If no part counts some parameters, with their names.

    Cost: several passes over seven samples; two if all layers are known.

    """
    search = _Search(root, _few_samples(root, batch, clean), parameters, weights)
    parts = [*search.settle(search.layer_parts()), *search.settle(search.bare_parts())]
    parts += search.module_parts()
    return parts


class _Search:
    """The search for parts: observations of the model, and the parameters that are still pending."""

    def __init__(
        self, root: nn.Module, batch: Any, parameters: Sequence[nn.Parameter], weights: Sequence[float]
    ) -> None:
        self.root = root
        self.batch = batch
        self.weights = {id(parameter): weight for parameter, weight in zip(parameters, weights, strict=True)}
        self.modules = dict(root.named_modules())
        self.owners: dict[int, list[tuple[str, str]]] = {id(parameter): [] for parameter in parameters}
        for path, module in self.modules.items():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in self.owners:
                    self.owners[id(parameter)].append((path, name))
        tables = [layer for layer in self.modules.values() if getattr(layer, "max_norm", None) is not None]
        renormalized = [table.weight for table in tables if id(getattr(table, "weight", None)) in self.owners]
        if renormalized:  # autograd does not see it
            raise UncountableError(self.name(renormalized) + ": the forward pass cuts its rows down to `max_norm`")
        self.outputs, _ = watched_pass(root, self.batch, [])
        self.pending = self._take_norms(parameters)
        self.attentions = {
            path: AttentionPart(module, self._exclusive_parameters(path, module, ("in_proj_weight", "in_proj_bias")))
            for path, module in self.modules.items()
            if isinstance(module, nn.MultiheadAttention) and can_be_opened(module)
        }
        self.rows = self._watch_rows()

    def _take_norms(self, parameters: Sequence[nn.Parameter]) -> dict[int, nn.Parameter]:
        """Store the norms that autograd gives for one sample; return the parameters that affect the outputs."""
        # any direction will do, and the sample in the middle is neither first nor last
        vector = torch.zeros_like(self.outputs)
        vector[len(vector) // 2] = torch.linspace(1, 2, vector.shape[1])
        self.vector = vector
        gradients: list[Tensor | None] = [None] * len(parameters)
        if self.outputs.requires_grad:
            try:
                gradients = list(torch.autograd.grad(self.outputs, list(parameters), vector, allow_unused=True))
            except RuntimeError as error:  # a value that was overwritten in place, or recomputed otherwise
                if is_out_of_memory(error):
                    raise
                raise UncountableError(f"{self.name(parameters)}: {str(error).partition('. ')[0]}") from error
        cut = [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]
        mattering = [parameter for parameter in cut if self._matters(parameter)]
        if mattering:
            raise UncountableError(self.name(mattering) + ": the forward pass cuts off their gradient")
        self.expected_norms = {
            id(parameter): float(gradient.square().sum())
            for parameter, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }
        return {id(parameter): parameter for parameter in parameters if id(parameter) in self.expected_norms}

    def _matters(self, parameter: nn.Parameter) -> bool:
        with (
            torch.no_grad(),
            perturbed([parameter], [PROBE_CHANGE * (parameter.abs() + parameter.abs().mean() + PROBE_CHANGE)]),
        ):
            return not torch.allclose(self.root(self.batch), self.outputs, rtol=1e-5, atol=1e-6)

    def name(self, parameters: Iterable[nn.Parameter]) -> str:
        """Return the names of parameters in the user's module, for a message."""
        names = [".".join(filter(None, self.owners[id(parameter)][0])) for parameter in parameters]
        return ", ".join(name.removeprefix("module.") for name in names[:MAX_NAMES]) + (
            ", ..." if names[MAX_NAMES:] else ""
        )

    def _exclusive_parameters(self, path: str, module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """Return the pending parameters of these names that only this module holds."""
        direct = dict(module.named_parameters(recurse=False))
        return {
            name: direct[name]
            for name in names
            if name in direct and id(direct[name]) in self.pending and self.owners[id(direct[name])] == [(path, name)]
        }

    def _watch_rows(self) -> dict[str, list[Tensor]]:
        """Return the first tensor of each call of each module, with opened attention."""
        rows: dict[str, list[Tensor]] = {path: [] for path in self.modules}

        def note(path: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                rows[path] += tensors_in((args, kwargs))[:1] or [torch.empty(0)]

            return hook

        with ExitStack() as stack:
            for path, module in self.modules.items():
                stack.enter_context(module.register_forward_pre_hook(note(path), with_kwargs=True))
            watched_pass(self.root, self.batch, self.attentions.values())
        return rows

    def _has_rows(self, path: str) -> bool:
        """Return whether a module is called once, with a number of rows that is a multiple of the samples."""
        calls = self.rows[path]
        return len(calls) == 1 and calls[0].ndim > 0 and len(calls[0]) > 0 and not len(calls[0]) % len(self.outputs)

    def layer_parts(self) -> list[Part]:
        """Return the layers whose norms are known."""
        parts: list[Part] = list(self.attentions.values())
        for path, layer in self.modules.items():
            parameters = self._exclusive_parameters(path, layer, ("weight", "bias"))
            if parameters and known_norms(layer) is not None and self._has_rows(path):
                parts.append(LayerPart(layer, parameters))
        return parts

    def bare_parts(self) -> list[Part]:
        """Return the parameters with which the model works unchanged if each row has a copy."""
        parts: list[Part] = []
        groups: dict[tuple[type, str], list[Part]] = {}
        for path, module in self.modules.items():
            if self._has_rows(path) and path not in self.attentions:
                for name in self._exclusive_parameters(
                    path, module, [name for name, _ in module.named_parameters(recurse=False)]
                ):
                    groups.setdefault((type(module), name), []).append(BarePart(module, name))
        for group in groups.values():
            try:
                outputs, _ = watched_pass(self.root, self.batch, [*self.attentions.values(), *parts, *group])
            except Exception:  # a model may raise anything for an unexpected shape
                continue
            if outputs.shape == self.outputs.shape and torch.allclose(outputs, self.outputs, rtol=1e-4, atol=1e-5):
                parts += group
        return parts

    def module_parts(self) -> list[Part]:
        """Return the smallest modules that count the pending parameters correctly."""
        settled: list[Part] = []
        around = {key: self._enclosing([path for path, _ in self.owners[key]]) for key in self.pending}
        while self.pending:
            members: dict[str, dict[str, nn.Parameter]] = {}
            for key, parameter in self.pending.items():
                names = dict(self.modules[around[key]].named_parameters())
                name = next(name for name, candidate in names.items() if candidate is parameter)
                members.setdefault(around[key], {})[name] = parameter
            parts = [
                ModulePart(self.modules[path], parameters, len(self.outputs)) for path, parameters in members.items()
            ]
            settled += self.settle(parts)
            uncounted = [parameter for key, parameter in self.pending.items() if not around[key]]
            if uncounted:
                raise UncountableError(self.name(uncounted) + ": no gradient of single samples")
            around = {key: self._enclosing([around[key].rpartition(".")[0]]) for key in self.pending}
        return settled

    def _enclosing(self, paths: Sequence[str]) -> str:
        """Return the innermost module around all paths that is called once, at last the root."""
        parts = [path.split(".") for path in paths]
        common = parts[0]
        for path in parts[1:]:
            equal = [first == second for first, second in zip(common, path, strict=False)]
            common = common[: (*equal, False).index(False)]
        while common and len(self.rows[".".join(common)]) != 1:
            common = common[:-1]
        return ".".join(common)

    def settle(self, parts: Sequence[Part]) -> list[Part]:
        """Return the parts that count all of their parameters correctly, which are then no longer pending."""
        right = self._right(parts)
        for part in parts:
            if id(part) not in right:
                part.parameters = {}
            for parameter in part.parameters.values():
                self.pending.pop(id(parameter), None)
        # an attention stays open for the layer behind it
        return [part for part in parts if part.parameters or isinstance(part, AttentionPart)]

    def _right(self, parts: Sequence[Part]) -> set[int]:
        """Return the ids of parts that give autograd's norms for the one sample, and zero for the others."""
        if not parts:
            return set()
        # the layer behind an attention is called where that is open
        opened = [part for part in self.attentions.values() if part not in parts]
        outputs, calls = watched_pass(self.root, self.batch, [*opened, *parts])
        calls = [call for call in calls if call.part in parts]
        if not calls:
            return set()
        call_counts = Counter(id(call.part) for call in calls)
        right: set[int] = set()
        for call, gradients in zip(calls, backward_passes(outputs, calls, self.vector.unsqueeze(0)), strict=True):
            try:
                norms = call.part.norms(call, gradients, len(outputs))
            except Exception:  # an operator without a rule for single samples, or a shape without them
                continue
            counted = call.part.parameters.items()
            # a tiny norm agrees with anything, so all parameters of a part must agree
            if call_counts[id(call.part)] == 1 and all(
                self._agrees(id(parameter), norms[name][:, 0]) for name, parameter in counted
            ):
                right.add(id(call.part))
        return right

    def _agrees(self, key: int, norms: Tensor) -> bool:
        expected = torch.zeros(len(norms), dtype=torch.float64)
        expected[len(norms) // 2] = self.expected_norms[key]
        total = sum(self.weights[key] * norm for key, norm in self.expected_norms.items())
        tolerance = 10 * torch.finfo(norms.dtype).eps ** 0.5
        off = (norms.double().cpu() - expected).abs() * self.weights[key]
        # a difference that is negligible in the score may be rounding
        allowed = tolerance * self.weights[key] * self.expected_norms[key] + tolerance**2 * total
        return len(norms) == len(self.outputs) and bool((off <= allowed).all())


def _few_samples(root: nn.Module, batch: Any, outputs: Tensor) -> Any:
    """Return a few samples of a batch, or all if the outputs of a few differ from those in the batch."""
    if len(outputs) <= NUM_PROBE_SAMPLES:
        return batch
    try:
        few = take_rows(batch, torch.arange(NUM_PROBE_SAMPLES, device=outputs.device), len(outputs))
        with torch.no_grad():
            equal = torch.allclose(root(few), outputs[:NUM_PROBE_SAMPLES], rtol=1e-3, atol=1e-4)
    except Exception:  # a batch whose parts depend on one another, such as a graph's
        return batch
    return few if equal else batch
