"""TypiClust: label the most typical sample of each cluster that holds no label yet; for the first few labels.

Passes per sample: 1, for the labeled part too; none for embeddings that do not come from the model. Suits any task
with clusters in the space of embeddings. Memory: D numbers per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.embeddings import EmbeddingSource
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream, derive_seed


class TypiClustAcquisition(Acquisition):
    r"""Label the most typical samples of the clusters with the fewest labels.

    $\text{typicality}(x) = \Big(\tfrac{1}{k} \sum_{x' \in k\text{-NN}(x)} \| h(x) - h(x') \|\Big)^{-1}$

    With few labels an uncertainty is a guess, and typical samples teach more than borderline ones. Features of a
    network trained without labels work best: pass `features=` of such a backbone, or `embeddings=`.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        features: Name of the module whose output is h; None takes the input of the last linear layer. Features are
            scaled to length 1.
        max_clusters: Upper bound on the number of clusters, which is the number of labeled and queried samples.
        neighbors: k, at least 1.
        seed: Seed of the clustering; None takes the datamodule's.
        embeddings: The vectors h: `"model"` for features of the trained model; `"input"` for the first 50 principal
            components of the inputs; or the path of a `.npy` file with one row per sample of the dataset, such as
            features of a foundation model, for which nothing is read but the file.

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
    embedding_source: EmbeddingSource

    def __init__(
        self,
        query_size: int | float,
        features: str | None = None,
        max_clusters: int = 500,
        neighbors: int = 20,
        seed: int | None = None,
        embeddings: str = "model",
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
        self.embeddings = embeddings
        self.embedding_source = EmbeddingSource("TypiClustAcquisition", embeddings, features, unit_length=True)
        self.needs_forward = not self.embedding_source.in_file

    def prepare(self, context: QueryContext) -> None:
        """Find the embeddings."""
        self._read = self.embedding_source.prepare(context)
        self._entropy = (context.seed, context.cycle)

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the embeddings of a batch, scaled to length 1."""
        return self._read(batch)[1]

    def select(self, query: Query) -> list[int]:
        """Choose the most typical samples of the clusters with the fewest labels."""
        points, labeled = self.embedding_source.of_query(query)
        # `prepare` runs only before a pass over the data; the generator's seed holds the same two numbers
        entropy = self._entropy if self.needs_forward else (query.generator.initial_seed(),)
        rows = functional.typiclust(
            points,
            query.budget,
            labeled=labeled,
            seed=derive_seed(RandomStream.CLUSTERS, *entropy) % 2**32,  # scikit-learn takes no more
            max_clusters=self.max_clusters,
            neighbors=self.neighbors,
        )
        return query.pick(rows)
