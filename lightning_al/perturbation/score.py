"""Noise stability: how far a model's output moves when its parameters are perturbed."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lightning_al.model.clone import clone_module
from lightning_al.model.memory_format import prefer_channels_last
from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.float32 import true_float32
from lightning_al.numerics.seeding import RandomStream
from lightning_al.perturbation.backend_choice import Method, make_backend
from lightning_al.perturbation.closed_form import FALLBACK_PASSES, ClosedForm, find_closed_form
from lightning_al.perturbation.deviations import Backend, Norm, PositionMaskOf, Seed, deviation_sizes
from lightning_al.perturbation.directions import Directions
from lightning_al.perturbation.noise import Distribution, Noise, Scope
from lightning_al.scoring.memory import MemoryLimit, chunked, samples_finder, within_memory
from lightning_al.scoring.transfer import to_module

Passes: TypeAlias = int | float | Literal["inf"]
"""A number of passes, or `"inf"`, in YAML also `.inf`; no other float is valid."""


def noise_stability(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    passes: Passes = 10,
    magnitude: float = 1e-3,
    relative: bool = True,
    distribution: Distribution = "gaussian",
    scope: Scope = "global",
    modules: Sequence[str] | None = None,
    output: Output = "softmax",
    norm: Norm = "squared",
    method: Method = "finite_difference",
    directions: Directions = 2,
    compile: bool = False,
    seed: int = 0,
) -> Tensor:
    r"""Score samples by the mean squared deviation of the output under K parameter perturbations.

    A sample whose output moves far when the parameters move a little is one on which the model is not settled: to
    first order the score is proportional to the squared norm of the Jacobian with respect to the parameters.

    $R(x) = \frac{1}{K} \sum_{k=1}^{K} \| f(x; \theta) - f(x; \theta + \xi_k D_k) \|^2$

    Args:
        model: Any `nn.Module`; a clone of it is scored, in eval mode and true single precision, where it is.
        batches: Batches of the model's loader, with or without labels; read once.
        passes: K, at least 1, or `"inf"` for the limit of infinitely many in closed form, which draws no noise: faster
            than ten passes, and without sampling error.
        magnitude: Noise magnitude, positive; 1e-3 as in the paper.
        relative: Scale the noise to the norm of the parameters.
        distribution: `"gaussian"`, `"uniform"` (-1, 1) or `"laplace"` (b = 1).
        scope: One scale for all parameters (`"global"`) or one per parameter tensor (`"tensor"`).
        modules: Glob patterns of the modules that get noise; None perturbs every parameter that trains.
        output: The outputs on which the distance is measured: `"softmax"` for classes, `"sigmoid"` for several labels,
            `"identity"` for regression. On raw logits of a classifier the ranking is reversed.
        norm: `"squared"` (Eq. 1) or `"l2"` (Algorithm 1 as printed).
        method: `"finite_difference"`, exact; `"jvp"` or `"jvp_bf16"`, the first-order term by forward-mode
            differentiation in single precision or bfloat16.
        directions: Backward passes per sample for `passes="inf"`: the most important directions of the outputs
            separately, and all others together, with random signs, in the last one; `"all"` is exact.
        compile: Run the passes through `torch.compile`, which is faster for large pools.
        seed: Seed of the noise, the same noise as that of the callback in cycle 0.

    Returns:
        (N,) float32 scores in the order of the samples, on the CPU; larger means 'label first'.

    Raises:
        ValueError: If an argument is out of range, no parameter can be perturbed, the model is random in eval mode,
            or `batches` is empty.
        TypeError: If inputs or predictions cannot be identified in a batch or an output.

    Cost: K + 1 forward passes per sample; memory of a clone, twice its parameters and one chunk of batches. In closed
        form some five forward passes for two directions, and the memory of a training step on one batch, with as much
        again for each of two directions.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.eye(3, 2)), model.bias.zero_()
        >>> scores = noise_stability(model, [torch.tensor([[9.0, 0.0], [0.1, 0.0]])], passes=20)
        >>> scores.argmax().item()  # the second sample lies between the classes
        1

    References:
        Li et al., Deep Active Learning with Noise Stability, Eq. 1 and 2, Algorithm 1.

    """
    count = check_options(passes, output, norm, method, directions, compile)
    noise = Noise(magnitude, relative, distribution, scope)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), true_float32(device):
        predictor = Predictor(clone_module(model, device))
        measure: Callable[[list[Any]], Tensor] | None = None
        scores = []
        limit = MemoryLimit()
        find_samples = samples_finder(batches, partial(to_module, module=predictor.module))
        for chunk in chunked((to_module(batch, predictor.module) for batch in batches), limit):
            if measure is None:
                prefer_channels_last(predictor, chunk[0])
                scorer = find_scorer(
                    predictor,
                    chunk[0],
                    count,
                    (RandomStream.NOISE, seed, 0),
                    noise=noise,
                    modules=modules,
                    output=output,
                    method=method,
                    directions=directions,
                    compiled=compile,
                )
                measure = partial(_scores, scorer, norm, predictor.position_mask)
            scores.append(within_memory(measure, chunk, limit, find_samples=find_samples).float().cpu())
    if not scores:
        raise ValueError("`noise_stability(batches=...)`: there is no batch to score.")
    all_scores = torch.cat(scores)
    broken = (~all_scores.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"`noise_stability(batches=...)`: {len(broken)} of {len(all_scores)} samples have NaN or infinite scores, "
            f"first {broken[:5]} (rows). Look for a diverged training or broken inputs."
        )
    return all_scores


class SeededPasses(NamedTuple):
    """Passes with noise: the backend, and the seed of each pass."""

    backend: Backend
    seeds: Sequence[Seed]


def find_scorer(
    predictor: Predictor,
    batch: Any,
    passes: int | None,
    seed: Seed,
    *,
    noise: Noise,
    modules: Sequence[str] | None,
    output: Output,
    method: Method,
    directions: Directions,
    compiled: bool,
) -> ClosedForm | SeededPasses:
    """Return the closed form for `passes=None`, if the model has one; else seeded passes, by default 30.

    Args:
        predictor: The model, on its device and in eval mode; call under `torch.no_grad`.
        batch: Some samples, to inspect the forward pass.
        passes: The result of `check_options`.
        seed: Integers that seed the signs of the closed form, or with its number each pass.
        noise: Amount and kind of the noise.
        modules: Glob patterns of the modules that get noise; None for all.
        output: The outputs on which deviations are measured.
        method: The backend of the passes.
        directions: Backward passes of the closed form.
        compiled: Whether to compile the passes.

    """
    if passes is None:
        closed_form = find_closed_form(
            predictor, batch, noise=noise, modules=modules, output=output, directions=directions, seed=seed
        )
        if closed_form is not None:
            return closed_form
    seeds = [(*seed, step) for step in range(passes or FALLBACK_PASSES)]
    backend = make_backend(
        predictor, batch, noise=noise, seeds=seeds, modules=modules, output=output, method=method, compiled=compiled
    )
    return SeededPasses(backend, seeds)


def _scores(scorer: ClosedForm | SeededPasses, norm: Norm, position_mask: PositionMaskOf, chunk: list[Any]) -> Tensor:
    """Return the scores (n,) of a chunk."""
    if isinstance(scorer, ClosedForm):
        return scorer.chunk_scores(chunk)
    sizes = deviation_sizes(scorer.backend, chunk, seeds=scorer.seeds, norm=norm, position_mask=position_mask)
    return sizes.mean(1)


def check_options(
    passes: Passes, output: str, norm: str, method: str, directions: Directions = 2, compile: bool = False
) -> int | None:
    """Raise if options of noise stability do not exist or cannot be combined.

    Returns:
        The number of passes, or None for the limit of infinitely many.

    Raises:
        ValueError: With the option, the expected and the actual value.

    """
    for name, value, allowed in (("output", output, Output), ("norm", norm, Norm), ("method", method, Method)):
        if value not in get_args(allowed):
            raise ValueError(f"`{name}={value!r}`: expected one of {get_args(allowed)}.")
    if directions != "all" and (isinstance(directions, bool) or not isinstance(directions, int) or directions < 1):
        raise ValueError(f'`directions={directions!r}`: expected a number of backward passes, at least 1, or "all".')
    if passes not in ("inf", math.inf):
        if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
            raise ValueError(
                f'`passes={passes!r}`: expected at least one pass, or "inf" for the limit of infinitely many; the '
                "paper uses 10."
            )
        return passes
    if norm != "squared":
        raise ValueError(
            f'`passes="inf"` with `norm={norm!r}`: the expected squared deviation has a closed form, the expected '
            'length has none. Use norm="squared", or a number of passes.'
        )
    if method != "finite_difference" or compile:
        raise ValueError(
            f'`passes="inf"` with `method={method!r}`, `compile={compile}`: the closed form runs no perturbed passes, '
            "and watches layers, which a compiled model hides. Leave both out, or use a number of passes."
        )
    return None
