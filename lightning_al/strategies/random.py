"""Random: label a random part of the pool, the baseline that every strategy has to beat.

Passes per sample: none; the pool is not read.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query
from lightning_al.model.predictor import Predictor


class RandomAcquisition(Acquisition):
    """Label samples drawn uniformly from the pool.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        seed: Seed of the draw; None takes the datamodule's.

    Cost: no forward pass and no read of the data.

    Example:
        >>> RandomAcquisition(query_size=0.05).query_size
        0.05

    """

    needs_forward = False

    def __init__(self, query_size: int | float, seed: int | None = None) -> None:
        super().__init__(query_size)
        self.seed = seed

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return a row without columns per sample."""
        return predictor(batch).flatten(1)[:, :0]

    def select(self, query: Query) -> list[int]:
        """Draw samples without replacement."""
        return query.pick(torch.randperm(len(query.indices), generator=query.generator)[: query.budget])
