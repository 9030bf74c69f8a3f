"""Noise stability once more, naively and in float64: what the package's scores must equal.

Written from DESIGN.md ("Noise stability, exactly") without looking at `perturb.py`, and slow on purpose: a fresh copy
of the model for every pass, a whole pass over the data per copy, scales and norms as plain sums.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_al.numerics.seeding import RandomStream, make_generator


def twin(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    passes: int = 10,
    magnitude: float = 1e-3,
    relative: bool = True,
    distribution: str = "gaussian",
    scope: str = "global",
    output: str = "softmax",
    norm: str = "squared",
    noisy: Sequence[str] | None = None,
    seeds: Sequence[tuple[int, ...]] | None = None,
    seed: int = 0,
    call: Callable[[nn.Module, Any], Tensor] = lambda model, batch: model(batch),
) -> Tensor:
    """Return R(x) of every sample in float64.

    Noise is drawn in the precision that the package scores in, since a generator gives other numbers in another one,
    and everything after the draw is done in double precision.

    Args:
        model: Left alone.
        batches: Whatever `call` takes.
        noisy: Names of the parameters that get noise, in the order of the draws; None for all that train.
        seeds: Of the generator of each pass; None for those of the function.
        call: Maps (model, batch) to raw outputs (B, C, *positions).

    """
    seeds = [(RandomStream.NOISE, seed, 0, k) for k in range(passes)] if seeds is None else seeds
    pairs = twin_outputs(
        model,
        batches,
        magnitude=magnitude,
        relative=relative,
        distribution=distribution,
        scope=scope,
        output=output,
        noisy=noisy,
        seeds=seeds,
        call=call,
    )
    return torch.stack([_sizes(noised - clean, norm) for clean, noised in pairs]).sum(dim=0) / len(seeds)


def twin_outputs(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    seeds: Sequence[tuple[int, ...]],
    magnitude: float = 1e-3,
    relative: bool = True,
    distribution: str = "gaussian",
    scope: str = "global",
    output: str = "softmax",
    noisy: Sequence[str] | None = None,
    call: Callable[[nn.Module, Any], Tensor] = lambda model, batch: model(batch),
) -> list[tuple[Tensor, Tensor]]:
    """Return the outputs (N, C, *positions) of a clean and of a noised copy, for each pass."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    names = names if noisy is None else list(noisy)
    clean = _outputs(_double(model), batches, call, output)
    pairs = []
    for entropy in seeds:
        noised = _double(model)
        _add_noise(noised, model, names, make_generator(*entropy), magnitude, relative, distribution, scope)
        pairs.append((clean, _outputs(noised, batches, call, output)))
    return pairs


def _double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval()


def _add_noise(
    noised: nn.Module,
    model: nn.Module,
    names: Sequence[str],
    generator: torch.Generator,
    magnitude: float,
    relative: bool,
    distribution: str,
    scope: str,
) -> None:
    drawn = {name: _draw(model.get_parameter(name), distribution, generator) for name in names}
    weights = {name: model.get_parameter(name).detach().double() for name in names}
    for name in names:
        together = names if scope == "global" else [name]
        factor = magnitude * (_length(weights, together) / _length(drawn, together) if relative else 1.0)
        with torch.no_grad():
            noised.get_parameter(name).copy_(weights[name] + factor * drawn[name])


def _draw(parameter: Tensor, distribution: str, generator: torch.Generator) -> Tensor:
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32

    def empty() -> Tensor:
        return torch.empty(parameter.shape, dtype=dtype)

    if distribution == "gaussian":
        noise = empty().normal_(generator=generator)
    elif distribution == "uniform":
        noise = empty().uniform_(-1, 1, generator=generator)
    else:  # Laplace: the difference of two exponentials
        minus, plus = empty().exponential_(generator=generator), empty().exponential_(generator=generator)
        noise = plus.double() - minus.double()
    return noise.double()


def _length(tensors: dict[str, Tensor], names: Sequence[str]) -> float:
    return math.sqrt(sum(float((tensors[name] * tensors[name]).sum()) for name in names))


def _outputs(model: nn.Module, batches: Sequence[Any], call: Callable[[nn.Module, Any], Tensor], output: str) -> Tensor:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention layer by layer, as in training
    try:
        with torch.no_grad():
            raw = torch.cat([call(model, batch) for batch in batches])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    if output == "softmax":
        powers = torch.exp(raw - raw.amax(dim=1, keepdim=True))
        return powers / powers.sum(dim=1, keepdim=True)
    return 1 / (1 + torch.exp(-raw)) if output == "sigmoid" else raw


def _sizes(deviations: Tensor, norm: str) -> Tensor:
    """Reduce (N, C, *positions) to (N,): the norm over C, averaged over the positions."""
    squared = (deviations * deviations).sum(dim=1)
    sizes = squared if norm == "squared" else torch.sqrt(squared)
    return torch.stack([sample.mean() for sample in sizes])
