"""Noise stability: label the samples whose output moves most when the parameters are perturbed.

Passes per sample: K + 1, or some five for the limit of infinitely many. Suits classification, multi-label, dense and
regression outputs. Memory: one number per sample, or K * C for the selections that use the deviations themselves.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.functional import k_center, kmeans_plus_plus, lcmd, power, top_k
from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream
from lightning_al.perturbation.backend_choice import Method
from lightning_al.perturbation.closed_form import FALLBACK_PASSES, ClosedForm
from lightning_al.perturbation.deviations import (
    EVEN,
    ODD,
    SCORE,
    Norm,
    deviation_sizes,
    deviation_vectors,
    ranking_rows,
)
from lightning_al.perturbation.directions import Directions
from lightning_al.perturbation.noise import Distribution, Noise, Scope
from lightning_al.perturbation.score import Passes, SeededPasses, check_options, find_scorer

Selection = Literal["topk", "k-center", "kmeans++", "lcmd", "power"]

RANKING = ("topk", "power")  # selections by one score per sample


class NoiseStabilityAcquisition(Acquisition):
    r"""Label the samples whose output moves most under small random changes of the parameters.

    $R(x) = \frac{1}{K} \sum_{k=1}^{K} \| f(x; \theta) - f(x; \theta + \xi_k D_k) \|^2$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        passes: K, at least 1; the paper uses 10 for images, 3 for segmentation, 5 for cryo-ET. `"inf"` takes the limit
            of infinitely many in closed form, which draws no noise: faster than ten passes, and without sampling
            error. It scores with `"power"` or `"topk"` where there is one row of outputs per sample.
        magnitude: Noise magnitude, positive; 1e-3 as in the paper.
        relative: Scale the noise to the norm of the parameters.
        distribution: `"gaussian"`, `"uniform"` (-1, 1) or `"laplace"` (b = 1).
        scope: One scale for all parameters (`"global"`) or one per parameter tensor (`"tensor"`).
        modules: Glob patterns of the modules that get noise; None perturbs every parameter that trains.
        output: The outputs on which the distance is measured: `"softmax"` for classes, `"sigmoid"` for several labels,
            `"identity"` for regression.
        norm: `"squared"` (Eq. 1) or `"l2"` (Algorithm 1 as printed).
        selection: `"power"`, top-k of log R + Gumbel noise; `"topk"`, the largest R (the paper), which picks
            near-duplicates; `"k-center"` over the normalized deviations of all passes (its successor); `"kmeans++"`
            over the deviations; `"lcmd"`, the farthest deviation in the largest cluster around those of the labeled
            part and the picks.
        method: `"finite_difference"`, exact; `"jvp"` or `"jvp_bf16"`, the first-order term by forward-mode
            differentiation in single precision or bfloat16.
        directions: Backward passes per sample for `passes="inf"`: the most important directions of the outputs
            separately, and all others together, with random signs, in the last one; `"all"` is exact.
        seed: Seed of noise and selection; None takes the datamodule's.
        compile: Run the passes through `torch.compile`, which is faster for large pools.

    Raises:
        ValueError: If an argument is out of range.

    Cost: K + 1 forward passes per candidate, one read of the data. In closed form some five forward passes for two
        directions, and the memory of a training step on one batch, with as much again for each of two directions.

    Example:
        >>> NoiseStabilityAcquisition(query_size=500, passes=3, modules=["layer4", "fc"]).passes
        3

    References:
        Li et al., Deep Active Learning with Noise Stability, Algorithm 1.

    """

    def __init__(
        self,
        query_size: int | float,
        passes: Passes = 10,
        magnitude: float = 1e-3,
        relative: bool = True,
        distribution: Distribution = "gaussian",
        scope: Scope = "global",
        modules: Sequence[str] | None = None,
        output: Output = "softmax",
        norm: Norm = "squared",
        selection: Selection = "power",
        method: Method = "finite_difference",
        directions: Directions = 2,
        seed: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(query_size)
        self._count = check_options(passes, output, norm, method, directions, compile)
        if selection not in get_args(Selection):
            raise ValueError(
                f"`NoiseStabilityAcquisition(selection={selection!r})`: expected one of {get_args(Selection)}."
            )
        if self._count is None and selection not in RANKING:
            raise ValueError(
                f'`NoiseStabilityAcquisition(passes="inf", selection={selection!r})`: this selection compares the '
                "deviations of single passes, and the closed form has none. Use a number of passes, or one of "
                f"{RANKING}."
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
        self.needs_labeled = selection == "lcmd"
        self.method = method
        self.directions = directions
        self.seed = seed
        self.compile = compile
        self._scorer: ClosedForm | SeededPasses | None = None  # unknown before `prepare`

    def prepare(self, context: QueryContext) -> None:
        """Find the closed form of the model, or the parameters that get noise and the seeds of the passes."""
        self._scorer = find_scorer(
            context.predictor,
            context.batch,
            self._count,
            (RandomStream.NOISE, context.seed, context.cycle),
            noise=self._noise,
            modules=self.modules,
            output=self.output,
            method=self.method,
            directions=self.directions,
            compiled=self.compile and not context.rehearsal,  # which would take longer than the rehearsal
        )

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch, or its deviations."""
        return self.measure_chunk(predictor, [batch])

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Return the measurements of a few batches, in closed form or with the passes as the outer loop."""
        if self._scorer is None:
            raise RuntimeError("`NoiseStabilityAcquisition.measure`: call `prepare(context)` first.")
        if isinstance(self._scorer, ClosedForm):
            return self._scorer.chunk_scores(chunk).unsqueeze(1).float()
        backend, seeds = self._scorer
        if self.selection not in RANKING:
            normalize = self.selection == "k-center"
            return deviation_vectors(backend, chunk, seeds, normalize, predictor.position_mask).float()
        return ranking_rows(deviation_sizes(backend, chunk, seeds, self.norm, predictor.position_mask)).float()

    def rows_to_gather(self, rows: Tensor, budget: int) -> Tensor | None:
        """Return the best rows by all passes, and by each half of them for the confidence."""
        if self.selection != "topk":
            return None
        best: Tensor = torch.cat([top_k(column, budget) for column in rows.unbind(1)]).unique()
        return best

    def select(self, query: Query) -> list[int]:
        """Choose samples by the option `selection`."""
        if self.selection == "topk":
            return query.pick(top_k(query.pool[:, SCORE], query.budget))
        if self.selection == "power":
            return query.pick(power(query.pool[:, SCORE], query.budget, generator=query.generator))
        if self.selection == "kmeans++":
            return query.pick(kmeans_plus_plus(query.pool, query.budget, generator=query.generator))
        if self.selection == "lcmd":
            return query.pick(lcmd(query.pool, query.budget, centers=query.labeled_rows()))
        origin = torch.zeros(1, query.pool.shape[1])
        return query.pick(k_center(query.pool, query.budget, centers=origin))

    def score(self, rows: Tensor) -> Tensor:
        """Return R(x) of each row, for k-center that of the normalized deviations."""
        return rows[:, SCORE] if self.selection in RANKING else rows.square().sum(1) / (self._count or FALLBACK_PASSES)

    def metrics(self, query: Query) -> dict[str, float]:
        """Return the passes, and the overlap of the picks by two halves of them; nothing for the closed form."""
        if isinstance(self._scorer, ClosedForm):
            return {}
        passes = self._count or FALLBACK_PASSES
        metrics = {"passes": float(passes)}
        if self.selection in RANKING and passes > 1:
            metrics["confidence"] = _overlap(query.pool[:, EVEN], query.pool[:, ODD], query.budget)
        return metrics


def _overlap(first: Tensor, second: Tensor, budget: int) -> float:
    """Return the share of the `budget` largest of `one` (N,) that are also among those of `other` (N,)."""
    common = set(top_k(first, budget).tolist()) & set(top_k(second, budget).tolist())
    return len(common) / min(budget, len(first))
