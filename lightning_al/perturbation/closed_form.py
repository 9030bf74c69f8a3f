r"""The expected score of noise stability, without drawing any noise.

For small noise of variance $s_l^2$ on each element of parameter l, the mean squared deviation over infinitely many
passes is $R(x) = \sum_l s_l^2 \|J_l(x)\|_F^2$, with the Jacobian of the output with respect to that parameter.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import make_generator
from lightning_al.perturbation.backend_choice import check_repeatable
from lightning_al.perturbation.coverage import UncountableError, cover
from lightning_al.perturbation.directions import Directions, Response, output_directions
from lightning_al.perturbation.noise import Noise, noisy_parameters
from lightning_al.perturbation.parts import Part
from lightning_al.perturbation.watched_passes import backward_passes, watched_pass

DENSE_OUTPUT_ERROR = (
    '`passes="inf"`: {} returns outputs of shape {} for each sample, and the closed form is for one row of outputs per '
    "sample. Use a number of passes, such as `passes=10`."
)

# Directions whose gradients are held at a time, so that a layer computes its windows once for both.
DIRECTIONS_PER_GROUP = 2
# Passes without a closed form: their picks overlap with those of the limit by about 0.9, see `examples/benchmarks`.
FALLBACK_PASSES = 30
FALLBACK_WARNING = (
    "No closed form for {}: {}. Noise stability takes {} passes instead; `passes=` with a number does the same without "
    "this warning."
)


class ClosedForm:
    r"""Scores $R(x) = \sum_l s_l^2 \|J_l(x)\|_F^2$ by one forward and a few backward passes.

    Along each direction in the space of outputs one backward pass serves all samples of a batch, each with its own
    direction; the gradient at a layer's output and the layer's input give every sample's squared gradient norm.

    Args:
        predictor: The model, on its device and in eval mode.
        batch: Some samples, to determine and check the parts of the model.
        noise: Amount and kind of the noise.
        modules: Glob patterns of the modules that get noise.
        output: The outputs on which the distance is measured.
        directions: Backward passes; the most important directions separately, all others together in the last one.
        seed: Integers that seed the random signs of the last one.

    Raises:
        UncountableError: If a parameter cannot be counted exactly, with its name.
        ValueError: If outputs are dense, nothing can be perturbed, or the model is random in eval mode.

    Cost: one forward pass and `directions` backward passes without weight gradients, and about half a forward pass more
        for each; memory of one batch's activations in training, and as much again for each of two directions.

    References:
        Li et al., Deep Active Learning with Noise Stability, Eq. 13.

    """

    def __init__(
        self,
        predictor: Predictor,
        batch: Any,
        *,
        noise: Noise,
        modules: Sequence[str] | None = None,
        output: Output = "softmax",
        directions: Directions = 2,
        seed: Sequence[int] = (0,),
    ) -> None:
        predictor.inspect(batch)  # before its layers are watched
        self._root = _Root(predictor)
        self._output: Output = output
        self._directions = directions
        clean: list[Tensor] = []
        parameters = noisy_parameters(predictor.module, lambda: clean.append(predictor(batch)), modules)
        with torch.no_grad():
            check_repeatable(clean[0], predictor(batch))
        check_not_dense(predictor, clean[0])
        self._generic = torch.randn(clean[0].shape[1], dtype=torch.float64, generator=make_generator(*seed))
        self._response(clean[0])
        variances = noise.variances(parameters)
        self._variances = dict(zip(map(id, parameters), variances, strict=True))
        with self._differentiable():
            self._parts: list[Part] = cover(self._root, batch, clean[0], parameters, variances)

    def chunk_scores(self, chunk: Sequence[Any]) -> Tensor:
        """Return the scores (n,) of a few batches, one batch after another."""
        scores = []
        for batch in chunk:
            scores.append(self.scores(batch))
            self._root.predictor.report_pass(1, 1, len(scores[-1]))
        return torch.cat(scores)

    def scores(self, batch: Any) -> Tensor:
        """Return the scores (B,) of a batch on the device.

        Raises:
            RuntimeError: If the forward pass calls other layers than it did for the first batch.

        """
        with self._differentiable():
            outputs, calls = watched_pass(self._root, batch, self._parts)
            called_parts = sorted(id(call.part) for call in calls)
            if called_parts != sorted(id(part) for part in self._parts if part.parameters):
                raise RuntimeError(
                    f'`passes="inf"`: {type(self._root.module).__name__} called other layers for this batch than for '
                    "the first one, or called them more often, so its parameters cannot be counted. Use a number of "
                    "passes, such as `passes=30`."
                )
            broken = ~outputs.detach().isfinite().all(1)
            sound = torch.where(broken[:, None], 0.0, outputs.detach())  # which have directions, unlike NaN
            vectors = output_directions(sound, self._response(sound), self._directions, self._generic)
            scores = torch.zeros(len(outputs), dtype=torch.float64, device=outputs.device)
            groups = vectors.split(DIRECTIONS_PER_GROUP)
            for position, group in enumerate(groups):
                output_gradients = backward_passes(outputs, calls, group, last=position == len(groups) - 1)
                for call, gradients in zip(calls, output_gradients, strict=True):
                    norms = call.part.norms(call, gradients, len(outputs))
                    for name, parameter in call.part.parameters.items():
                        scores += self._variances[id(parameter)] * norms[name].double().sum(1)
        return scores.masked_fill(broken, torch.nan).to(outputs.dtype)

    def _response(self, outputs: Tensor) -> Response:
        """Return the measured function of the outputs, depending on whether the model ends in it already."""
        if self._output == "identity" or self._root.predictor.to_probabilities(outputs, self._output) is not outputs:
            return self._output
        return "probabilities" if self._output == "softmax" else "identity"

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Require gradients for the parameters that count only, and select operators that have gradients."""
        module = self._root.module
        with ExitStack() as stack:
            for parameter in module.parameters():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(id(parameter) in self._variances)
            for layer in module.modules():
                if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                    # training omits the padding's row or weighs rows by frequency; noise does neither
                    plain: dict[str, Any] = {"scale_grad_by_freq": False, "sparse": False}
                    if isinstance(layer, nn.Embedding):  # a bag omits its padding in the outputs, too
                        plain["padding_idx"] = None
                    for name, value in plain.items():
                        stack.callback(setattr, layer, name, getattr(layer, name))
                        setattr(layer, name, value)
            if any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
                # recurrence has a gradient in eval mode only outside of cuDNN
                stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
                torch.backends.cudnn.enabled = False
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            yield


def find_closed_form(predictor: Predictor, batch: Any, **options: Any) -> ClosedForm | None:
    """Return the closed form of a model, or None with a warning that names the parameters without one.

    Args:
        predictor: The model.
        batch: Some samples.
        **options: Arguments of `ClosedForm`.

    """
    try:
        return ClosedForm(predictor, batch, **options)
    except UncountableError as error:
        rank_zero_warn(FALLBACK_WARNING.format(type(predictor.module).__name__, error, FALLBACK_PASSES))
        return None


def check_not_dense(predictor: Predictor, outputs: Tensor) -> None:
    """Raise for outputs (B, C, *positions), since a closed form would need separate passes for each position."""
    if outputs.ndim > 2:
        raise ValueError(DENSE_OUTPUT_ERROR.format(type(predictor.module).__name__, tuple(outputs.shape[1:])))


class _Root(nn.Module):
    """A predictor as a module, which contains the model."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.module = predictor.module
        self.predictor = predictor

    def forward(self, batch: Any) -> Tensor:
        """Return raw outputs (B, C)."""
        return self.predictor(batch)
