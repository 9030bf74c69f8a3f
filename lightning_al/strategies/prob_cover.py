"""ProbCover: label samples whose neighborhoods contain most uncovered samples; for the first few labels.

Passes per sample: 1, for the labeled part too; none for embeddings that do not come from the model. Suits any task
with clusters in the space of embeddings. Memory: D numbers per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.candidates import check_bound
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.embeddings import EmbeddingSource
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream, derive_seed


class ProbCoverAcquisition(Acquisition):
    r"""Label, one after another, the sample with the most uncovered samples within a radius.

    $i_t = \arg\max_i |\{ j : \| h(x_i) - h(x_j) \| \le \delta \} \setminus \text{covered}|$

    Features of a network trained without labels work best: pass `features=` of such a backbone, or
    `embeddings=`.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        radius: The radius, in (0, 2] since features are scaled to length 1; None takes the largest one at which a share
            of `purity` of the neighborhoods lies within one of as many clusters as there are classes.
        features: Name of the module whose output is h; None takes the input of the last linear layer.
        purity: In (0, 1]; the authors use 0.95.
        embeddings: The vectors h: `"model"` for features of the trained model; `"input"` for the first 50 principal
            components of the inputs; or the path of a `.npy` file with one row per sample of the dataset, such as
            features of a foundation model, for which nothing is read but the file.
        candidates: Most candidates per query, drawn at random, since the cost grows with their square; None for all.

    Raises:
        ValueError: If an argument is out of range, no features are found, or there are no classes to cluster by.
        ModuleNotFoundError: Without scikit-learn and without a radius.

    Cost: one forward pass per candidate and per labeled sample; then about 2 N^2 D multiplications.

    Example:
        >>> ProbCoverAcquisition(query_size=10, radius=0.3).radius
        0.3

    References:
        Yehuda, Dekel, Hacohen and Weinshall, Active Learning Through a Covering Lens (2022).

    """

    needs_labeled = True
    embedding_source: EmbeddingSource

    def __init__(
        self,
        query_size: int | float,
        radius: float | None = None,
        features: str | None = None,
        purity: float = 0.95,
        embeddings: str = "model",
        candidates: int | None = 10_000,
    ) -> None:
        super().__init__(query_size)
        if (radius is not None and not 0 < radius <= 2) or not 0 < purity <= 1:
            raise ValueError(
                f"`ProbCoverAcquisition(radius={radius}, purity={purity})`: expected a radius in (0, 2] or None, and a "
                "share in (0, 1]."
            )
        self.radius = radius
        self.features = features
        self.purity = purity
        self.embeddings = embeddings
        self.candidates = candidates
        self.max_candidates = check_bound("ProbCoverAcquisition", candidates)
        self.embedding_source = EmbeddingSource("ProbCoverAcquisition", embeddings, features, unit_length=True)
        self.needs_forward = radius is None or not self.embedding_source.in_file

    def prepare(self, context: QueryContext) -> None:
        """Find the embeddings, and the number of classes."""
        self._read = self.embedding_source.prepare(context)
        self._classes = context.predictor(context.batch).shape[1]
        self._seed = (
            derive_seed(RandomStream.CLUSTERS, context.seed, context.cycle) % 2**32
        )  # scikit-learn takes no more
        if self.radius is None and self._classes < 2:
            raise ValueError(
                "`ProbCoverAcquisition(radius=None)` finds the radius from as many clusters as there are classes, but "
                f"{type(context.predictor.module).__name__} has one output. Pass a radius."
            )

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the embeddings of a batch, scaled to length 1."""
        return self._read(batch)[1]

    def select(self, query: Query) -> list[int]:
        """Choose greedily the sample that covers most uncovered ones."""
        points, labeled = self.embedding_source.of_query(query)
        radius = self.radius
        if radius is None:
            radius = functional.purity_radius(points, clusters=self._classes, seed=self._seed, purity=self.purity)
        rows = functional.prob_cover(points, query.budget, labeled=labeled, radius=radius, generator=query.generator)
        return query.pick(rows)
