"""Add noise to the scores of another acquisition, so that a batch has fewer near-duplicates."""

import math
from typing import Literal, get_args

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.query import Query
from lightning_al.wrappers.wrapper import AcquisitionFactory, Wrapper

Noise = Literal["power", "boltzmann", "soft_rank"]


class StochasticBatch(Wrapper):
    """Sample a batch by the scores of another acquisition instead of taking the largest ones.

    Scores change with every label, so their exact order is unreliable within a batch; the noise models this change, and
    separates near-duplicates. On BALD with `"power"` this is PowerBALD.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        acquisition: The class of an acquisition with one score per sample, or a `functools.partial` of it.
        noise: `"power"`, on the logarithms of non-negative scores; `"boltzmann"`, on the scores; `"soft_rank"`, on the
            logarithms of their ranks, for any score.
        temperature: Scale of the noise, positive; near 0 the largest scores are taken, far above 1 any.

    Raises:
        ValueError: If an argument is out of range, or the other acquisition has no score per sample.

    Cost: that of the other acquisition, and a sort.

    Example:
        >>> from lightning_al import MarginAcquisition
        >>> StochasticBatch(100, MarginAcquisition, noise="soft_rank").temperature
        1.0

    References:
        Kirsch et al., Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning (2023).

    """

    def __init__(
        self,
        query_size: int | float,
        acquisition: AcquisitionFactory,
        noise: Noise = "power",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(query_size, acquisition)
        if noise not in get_args(Noise) or not 0 < temperature < math.inf:
            raise ValueError(
                f"`StochasticBatch(noise={noise!r}, temperature={temperature!r})`: expected one of {get_args(Noise)} "
                "and a positive number."
            )
        self.noise = noise
        self.temperature = temperature

    def select(self, query: Query) -> list[int]:
        """Sample candidates without replacement."""
        scores = self._scores(query.pool)
        pick = {"power": functional.power, "boltzmann": functional.boltzmann, "soft_rank": functional.soft_rank}
        rows = pick[self.noise](scores, query.budget, generator=query.generator, temperature=self.temperature)
        return query.pick(rows)

    def _scores(self, rows: Tensor) -> Tensor:
        name = type(self.inner).__name__
        scores = self.inner.score(rows)
        if scores is None or not rows.numel():
            raise ValueError(
                f"`StochasticBatch(acquisition={name})`: it has no score per sample. Use it as it is; or wrap one that "
                "ranks samples, such as MarginAcquisition."
            )
        if self.noise == "power" and bool((scores < 0).any()):
            raise ValueError(
                f"`StochasticBatch(acquisition={name}, noise='power')` takes logarithms of scores, got "
                f'{scores.min().item():.4g}. Use noise="soft_rank", which uses their order only.'
            )
        return scores
