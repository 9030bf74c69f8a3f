"""Noise stability: label the samples whose output moves most when the parameters are perturbed.

Passes per sample: K + 1. Suits classification, multi-label, dense and regression outputs. Memory: one number per
sample, or K * C for the selections that look at the deviations themselves.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_al.acquisition import Acquisition
from lightning_al.adapters import Output, Predictor
from lightning_al.backends import Method, make_backend
from lightning_al.functional import k_center, kmeans_plus_plus, lcmd, power, top_k
from lightning_al.functional.noise_stability import Norm, check_options, deviation_vectors
from lightning_al.noise import Distribution, Noise, Scope
from lightning_al.pilot import FEWEST_PASSES, draw_up, overlap, pilot_rows, pilot_size
from lightning_al.query import Context, Query
from lightning_al.racing import EVEN, FINISHED, ODD, SCORE, Plan, check_race, race
from lightning_al.seeding import Stream

Selection = Literal["topk", "k-center", "kmeans++", "lcmd", "power"]

RANKING = ("topk", "power")  # selections by one score per sample


class NoiseStabilityAcquisition(Acquisition):
    r"""Label the samples whose output moves most under small random changes of the parameters.

    $R(x) = \frac{1}{K} \sum_{k=1}^{K} \| f(x; \theta) - f(x; \theta + \xi_k D_k) \|^2$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        passes: K, at least 1; the paper uses 10 for images, 3 for segmentation, 5 for cryo-ET. `"auto"` runs as many,
            from 3 to `max_passes`, as it takes until two halves of them agree on the picks.
        magnitude: Noise magnitude, positive; 1e-3 as in the paper.
        relative: Scale the noise to the norm of the parameters.
        distribution: `"gaussian"`, `"uniform"` (-1, 1) or `"laplace"` (b = 1).
        scope: One scale for all parameters (`"global"`) or one per parameter tensor (`"tensor"`).
        modules: Glob patterns of the modules that get noise; None perturbs every parameter that trains.
        output: What the distance is measured on: `"softmax"` for classes, `"sigmoid"` for several labels,
            `"identity"` for regression.
        norm: `"squared"` (Eq. 1) or `"l2"` (Algorithm 1 as printed).
        selection: `"topk"` (the paper); `"k-center"` over the normalized deviations of all passes (its successor);
            `"kmeans++"` over the deviations; `"lcmd"`, the farthest deviation in the largest cluster around those of
            the labeled part and the picks; `"power"`, top-k of log R + Gumbel noise. The last four repeat themselves
            less within a query.
        method: `"finite_difference"`, exact; `"jvp"` or `"jvp_bf16"`, the first-order term by forward-mode
            differentiation in single precision or bfloat16; `"auto"` takes `"jvp_bf16"` on a GPU with bfloat16 if it
            ranks a batch as finite differences do, and else these.
        seed: Seed of noise and selection; None takes the datamodule's.
        racing: Let samples drop out of later passes once they can no longer be picked; with `"topk"` only. What a
            pilot of some hundred candidates shows decides who does.
        max_passes: Upper bound for `passes="auto"`.
        stability: Share of the picks, in (0, 1], on which the halves must agree for `passes="auto"`.
        compile: Run the passes through `torch.compile`, which pays for large pools; excludes the saving that `modules`
            brings.

    Raises:
        ValueError: If an argument is out of range.

    Cost: K + 1 forward passes per candidate, one read of the data. With `modules`, or frozen layers, the part that
        noise cannot reach runs once instead of K + 1 times where that is faster. With `racing`, about half of the
        passes when one candidate in ten is picked, fewer of a large pool; it looks at each candidate once more, so it
        does not pay together with `modules`, whose passes are cheap.

    Example:
        >>> NoiseStabilityAcquisition(query_size=500, passes=3, modules=["layer4", "fc"]).passes
        3

    References:
        Li et al., Deep Active Learning with Noise Stability, Algorithm 1.

    """

    def __init__(
        self,
        query_size: int | float,
        passes: int | Literal["auto"] = 10,
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
        racing: bool = False,
        max_passes: int = 30,
        stability: float = 0.8,
        compile: bool = False,
    ) -> None:
        super().__init__(query_size)
        check_options(max_passes if passes == "auto" else passes, output, norm, method)
        if selection not in get_args(Selection):
            raise ValueError(
                f"`NoiseStabilityAcquisition(selection={selection!r})`: expected one of {get_args(Selection)}."
            )
        if selection != "topk" and (racing or passes == "auto"):
            raise ValueError(
                f"`NoiseStabilityAcquisition(selection={selection!r})` looks at every score or deviation, so no pass "
                'can be saved: use a number of `passes` and racing=False, or selection="topk".'
            )
        if max_passes < FEWEST_PASSES or not 0 < stability <= 1:
            raise ValueError(
                f"`NoiseStabilityAcquisition(max_passes={max_passes}, stability={stability})`: expected at least "
                f"{FEWEST_PASSES} passes, whose halves can be compared, and a share in (0, 1]."
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
        self.seed = seed
        self.racing = racing
        self.max_passes = max_passes
        self.stability = stability
        self.compile = compile

    def prepare(self, context: Context) -> None:
        """Find the parameters that get noise, fix the seed of each pass, and choose the backend."""
        passes = self.max_passes if self.passes == "auto" else self.passes
        self._seeds = [(Stream.NOISE, context.seed, context.cycle, step) for step in range(passes)]
        self._backend = make_backend(
            context.predictor,
            context.batch,
            noise=self._noise,
            seeds=self._seeds,
            modules=self.modules,
            output=self.output,
            method=self.method,
            compiled=self.compile,
            static=not self.racing,
        )
        self._share = context.budget / context.candidates
        self._plan = None if self.racing or self.passes == "auto" else Plan(passes)
        if self.racing:
            check_race(self._backend, context.batch)

    def pilot(self, context: Context) -> int:
        """Ask for a pilot while there is no plan."""
        return pilot_size(context.candidates, self._share, self.passes == "auto") if self._plan is None else 0

    def learn(self, rows: Tensor) -> Tensor:
        """Decide how many passes to run, and who drops out on the way."""
        stability = self.stability if self.passes == "auto" else None
        looks_in_full = self._backend.looks_in_full
        self._plan, rows = draw_up(rows, len(self._seeds), self._share, self.racing, stability, looks_in_full)
        return rows

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Measure one batch: its scores, or its deviations."""
        return self.measure_chunk(predictor, [batch])

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Measure a few batches with the passes as the outer loop."""
        if self.selection not in RANKING:
            return deviation_vectors(self._backend, chunk, self._seeds, self.selection == "k-center").float()
        if self._plan is None:
            return pilot_rows(self._backend, chunk, self._seeds, self.norm, self.output).float()
        return race(self._backend, chunk, self._seeds, self._plan, self.norm, self.output).float()

    def shortlist(self, rows: Tensor, budget: int) -> Tensor | None:
        """Keep what top-k needs, and what the confidence needs: the best by each half of the passes."""
        if self.selection != "topk":
            return None
        best: Tensor = torch.cat([top_k(rows[:, column], budget) for column in (SCORE, EVEN, ODD)]).unique()
        return best

    def select(self, query: Query) -> list[int]:
        """Choose by the selection named in the constructor."""
        if self.selection == "topk":
            return query.pick(top_k(query.pool[:, SCORE], query.budget))
        if self.selection == "power":
            return query.pick(power(query.pool[:, SCORE], query.budget, generator=query.generator))
        if self.selection == "kmeans++":
            return query.pick(kmeans_plus_plus(query.pool, query.budget, generator=query.generator))
        if self.selection == "lcmd":
            assert query.labeled is not None
            return query.pick(lcmd(query.pool, query.budget, centers=query.labeled))
        origin = torch.zeros(1, query.pool.shape[1])
        return query.pick(k_center(query.pool, query.budget, centers=origin))

    def score(self, rows: Tensor) -> Tensor:
        """Return R(x) of each row; of the normalized deviations for k-center."""
        return rows[:, SCORE] if self.selection in RANKING else rows.square().sum(1) / len(self._seeds)

    def figures(self, query: Query) -> dict[str, float]:
        """Report the passes, how far two halves of them agree on the picks, and how many samples ran all of them."""
        passes = len(self._seeds) if self._plan is None else self._plan.passes
        figures = {"passes": float(passes)}
        if self.selection in RANKING and query.mean is not None:
            if passes > 1:
                figures["confidence"] = overlap(query.pool[:, EVEN], query.pool[:, ODD], query.budget)
            figures["racing"] = float(query.mean[FINISHED])
        return figures
