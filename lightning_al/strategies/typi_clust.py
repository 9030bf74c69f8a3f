"""TypiClust: label the most typical sample of each cluster that holds no label yet; for the first few labels.

Passes per sample: 1, for the labeled part too. Suits any task with clusters in feature space. Memory: D numbers per
sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.features import Features
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream, derive_seed


class TypiClustAcquisition(Acquisition):
    r"""Label the most typical samples of the clusters with the fewest labels.

    $\text{typicality}(x) = \Big(\tfrac{1}{k} \sum_{x' \in k\text{-NN}(x)} \| h(x) - h(x') \|\Big)^{-1}$

    With few labels an uncertainty is a guess, and typical samples teach more than borderline ones. Features of a
    network trained without labels work best: pass `features=` of such a backbone.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        features: Name of the module whose output is h; None takes the input of the last linear layer. Features are
            scaled to length 1.
        max_clusters: Upper bound on the number of clusters, which is the number of labeled and queried samples.
        neighbors: k, at least 1.
        seed: Seed of the clustering; None takes the datamodule's.

    Raises:
        ValueError: If an argument is out of range or no features are found.
        ModuleNotFoundError: Without scikit-learn, whose k-means is used.

    Cost: one forward pass per candidate and per labeled sample; k-means over all of them.

    Example:
        >>> TypiClustAcquisition(query_size=10).neighbors
        20

    References:
        Hacohen, Dekel and Weinshall, Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets (2022).

    """

    needs_labeled = True

    def __init__(
        self,
        query_size: int | float,
        features: str | None = None,
        max_clusters: int = 500,
        neighbors: int = 20,
        seed: int | None = None,
    ) -> None:
        super().__init__(query_size)
        if max_clusters < 1 or neighbors < 1:
            raise ValueError(
                f"`TypiClustAcquisition(max_clusters={max_clusters}, neighbors={neighbors})`: expected at least 1."
            )
        self.features = features
        self.max_clusters = max_clusters
        self.neighbors = neighbors
        self.seed = seed

    def prepare(self, context: QueryContext) -> None:
        """Find the features."""
        self._read = Features(context.predictor, context.batch, self.features)
        self._seed = (
            derive_seed(RandomStream.CLUSTERS, context.seed, context.cycle) % 2**32
        )  # scikit-learn takes no more

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the features of a batch, scaled to length 1."""
        return self._read.directions(batch)

    def select(self, query: Query) -> list[int]:
        """Choose the most typical samples of the clusters with the fewest labels."""
        rows = functional.typiclust(
            query.pool,
            query.budget,
            labeled=query.labeled_rows(),
            seed=self._seed,
            max_clusters=self.max_clusters,
            neighbors=self.neighbors,
        )
        return query.pick(rows)
