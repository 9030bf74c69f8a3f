"""Core-set: label samples whose features are farthest from those of all labeled ones.

Passes per sample: 1, for the labeled part too; none for embeddings that do not come from the model. Suits any task:
outputs are not used. Memory: D numbers per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.embeddings import EmbeddingSource
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.predictor import Predictor


class CoreSetAcquisition(Acquisition):
    r"""Label by greedy k-center: one after another, the sample farthest from all labeled and picked ones.

    $i_t = \arg\max_i \min_{j \in L \cup \{i_1, \dots\}} \| h(x_i) - h(x_j) \|$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        features: Name of the module whose output is h; None takes the input of the last linear layer. Features at
            several positions are averaged.
        embeddings: The vectors h: `"model"` for features of the trained model; `"input"` for the first 50 principal
            components of the inputs; or the path of a `.npy` file with one row per sample of the dataset, such as
            features of a foundation model, for which nothing is read but the file.

    Raises:
        ValueError: If no features are found, or there is no such source of embeddings.

    Cost: one forward pass per candidate and per labeled sample; then N * (M + query_size) * D multiplications.

    Example:
        >>> CoreSetAcquisition(query_size=100).features is None
        True

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach (2018).

    """

    needs_labeled = True
    embedding_source: EmbeddingSource

    def __init__(self, query_size: int | float, features: str | None = None, embeddings: str = "model") -> None:
        super().__init__(query_size)
        self.features = features
        self.embeddings = embeddings
        self.embedding_source = EmbeddingSource("CoreSetAcquisition", embeddings, features)
        self.needs_forward = not self.embedding_source.in_file

    def prepare(self, context: QueryContext) -> None:
        """Find the embeddings."""
        self._read = self.embedding_source.prepare(context)

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the embeddings of a batch."""
        return self._read(batch)[1]

    def select(self, query: Query) -> list[int]:
        """Choose by k-center, with the labeled part as first centers."""
        points, labeled = self.embedding_source.of_query(query)
        return query.pick(functional.k_center(points, query.budget, centers=labeled))
