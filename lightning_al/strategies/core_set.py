"""Core-set: label samples whose features are farthest from those of all labeled ones.

Passes per sample: 1, for the labeled part too. Suits any task: outputs are not used. Memory: D numbers per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.features import Features
from lightning_al.model.predictor import Predictor


class CoreSetAcquisition(Acquisition):
    r"""Label by greedy k-center: one after another, the sample farthest from all labeled and picked ones.

    $i_t = \arg\max_i \min_{j \in L \cup \{i_1, \dots\}} \| h(x_i) - h(x_j) \|$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        features: Name of the module whose output is h; None takes the input of the last linear layer. Features at
            several positions are averaged.

    Raises:
        ValueError: If no features are found.

    Cost: one forward pass per candidate and per labeled sample; then N * (M + query_size) * D multiplications.

    Example:
        >>> CoreSetAcquisition(query_size=100).features is None
        True

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach (2018).

    """

    needs_labeled = True

    def __init__(self, query_size: int | float, features: str | None = None) -> None:
        super().__init__(query_size)
        self.features = features

    def prepare(self, context: QueryContext) -> None:
        """Find the features."""
        self._read = Features(context.predictor, context.batch, self.features)

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the features of a batch."""
        return self._read(batch)[1]

    def select(self, query: Query) -> list[int]:
        """Choose by k-center, with the labeled part as first centers."""
        return query.pick(functional.k_center(query.pool, query.budget, centers=query.labeled_rows()))
