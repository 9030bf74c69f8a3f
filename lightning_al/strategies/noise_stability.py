"""Noise stability: label the samples whose output moves most when the parameters are perturbed.

Passes per sample: K + 1. Suits classification, multi-label, dense and regression outputs. Memory: one number per
sample, or K * C for the selections that look at the deviations themselves.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_al.acquisition import Acquisition, Context, Query
from lightning_al.adapters import Output, Predictor
from lightning_al.functional import k_center, kmeans_plus_plus, power, top_k
from lightning_al.functional.noise_stability import (
    Method,
    Norm,
    check_options,
    deviation_vectors,
    mean_deviation,
)
from lightning_al.perturb import Distribution, Noise, Scope, check_repeatable, noisy_parameters
from lightning_al.seeding import Stream

Selection = Literal["topk", "k-center", "kmeans++", "power"]


class NoiseStabilityAcquisition(Acquisition):
    r"""Label the samples whose output moves most under small random changes of the parameters.

    $R(x) = \frac{1}{K} \sum_{k=1}^{K} \| f(x; \theta) - f(x; \theta + \xi_k D_k) \|^2$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        passes: K, at least 1; the paper uses 10 for images, 3 for segmentation, 5 for cryo-ET.
        magnitude: Noise magnitude, positive; 1e-3 as in the paper.
        relative: Scale the noise to the norm of the parameters.
        distribution: `"gaussian"`, `"uniform"` (-1, 1) or `"laplace"` (b = 1).
        scope: One scale for all parameters (`"global"`) or one per parameter tensor (`"tensor"`).
        modules: Glob patterns of the modules that get noise; None perturbs every parameter that trains.
        output: What the distance is measured on: `"softmax"` for classes, `"sigmoid"` for several labels,
            `"identity"` for regression.
        norm: `"squared"` (Eq. 1) or `"l2"` (Algorithm 1 as printed).
        selection: `"topk"` (the paper); `"k-center"` over the normalized deviations of all passes (its successor);
            `"kmeans++"` over the deviations; `"power"`, top-k of log R + Gumbel noise. The last three repeat
            themselves less within a query.
        method: `"finite_difference"`; `"auto"` takes the fastest that is exact.
        seed: Seed of noise and selection; None takes the datamodule's.

    Raises:
        ValueError: If an argument is out of range.

    Cost: K + 1 forward passes per candidate, one read of the data.

    Example:
        >>> NoiseStabilityAcquisition(query_size=500, passes=3, modules=["layer4", "fc"]).passes
        3

    References:
        Li et al., Deep Active Learning with Noise Stability, Algorithm 1.

    """

    def __init__(
        self,
        query_size: int | float,
        passes: int = 10,
        magnitude: float = 1e-3,
        relative: bool = True,
        distribution: Distribution = "gaussian",
        scope: Scope = "global",
        modules: Sequence[str] | None = None,
        output: Output = "softmax",
        norm: Norm = "squared",
        selection: Selection = "topk",
        method: Method = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(query_size)
        check_options(passes, output, norm, method)
        if selection not in get_args(Selection):
            raise ValueError(
                f"`NoiseStabilityAcquisition(selection={selection!r})`: expected one of {get_args(Selection)}."
            )
        self._noise = Noise(magnitude, relative, distribution, scope)
        self.passes = passes
        self.magnitude = magnitude
        self.relative = relative
        self.distribution = distribution
        self.scope = scope
        self.modules = modules
        self.output = output
        self.norm = norm
        self.selection = selection
        self.method = method
        self.seed = seed

    def prepare(self, context: Context) -> None:
        """Find the parameters that get noise, and fix the seed of each pass."""
        predictor = context.predictor
        check_repeatable(lambda batch: predictor.output(batch, self.output), context.batch)
        self._parameters = noisy_parameters(
            predictor.module, lambda: predictor.output(context.batch, self.output), self.modules
        )
        self._seeds = [(Stream.NOISE, context.seed, context.cycle, index) for index in range(self.passes)]

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Measure one batch: its scores, or its deviations."""
        return self.measure_chunk(predictor, [batch])

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Measure a few batches with the passes as the outer loop."""
        if self.selection in ("topk", "power"):
            return mean_deviation(
                predictor, chunk, self._parameters, self._noise, self._seeds, self.output, self.norm
            ).float()
        return deviation_vectors(
            predictor, chunk, self._parameters, self._noise, self._seeds, self.output, self.selection == "k-center"
        ).float()

    def select(self, query: Query) -> list[int]:
        """Choose by the selection named in the constructor."""
        if self.selection == "topk":
            return query.pick(top_k(query.pool, query.budget))
        if self.selection == "power":
            return query.pick(power(query.pool, query.budget, generator=query.generator))
        if self.selection == "kmeans++":
            return query.pick(kmeans_plus_plus(query.pool, query.budget, generator=query.generator))
        origin = torch.zeros(1, query.pool.shape[1])
        return query.pick(k_center(query.pool, query.budget, centers=origin))

    def score(self, rows: Tensor) -> Tensor:
        """Return R(x) of each row; of the normalized deviations for k-center."""
        return rows if rows.ndim == 1 else rows.square().sum(1) / self.passes
