"""BAIT: label the samples that lower the expected error of the last layer most, over the whole pool.

Passes per sample: 1, for the labeled part too. Suits classification, in its binary form, and regression. Memory:
D + 1 numbers per sample.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.embeddings import EmbeddingSource
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.predictor import Predictor

BAITOutput = Literal["softmax", "sigmoid", "identity"]


class BAITAcquisition(Acquisition):
    r"""Label greedily by the Fisher information of the last layer, forward, then backward.

    $\arg\min_S \mathrm{tr}\big(M_S^{-1} F\big)$, with $M_S$ the information of the labeled part and of S, and $F$ that
    of all samples. The information of a sample is $w \, h h^\top$, with $w = p (1 - p)$ of the top probability p, the
    binary form that is nearly as good as that of all classes and a factor of C^2 cheaper; $w = 1$ for a regression.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        output: `"softmax"` for classes, `"sigmoid"` for a binary logit, `"identity"` for regression, whose information
            does not depend on the outputs.
        features: Name of the module whose output is h; None takes the input of the last linear layer.
        embeddings: The vectors h: `"model"` for features of the trained model, on which the last layer is fitted;
            `"input"` for the first 50 principal components of the inputs; or the path of a `.npy` file with one row
            per sample of the dataset, such as features of a foundation model.
        ridge: Factor of the identity in M, positive, against which the length of h counts; the authors use 1.

    Raises:
        ValueError: If an argument is out of range, no features are found, or for outputs at several positions.

    Cost: one forward pass per candidate and per labeled sample; then N D^2 + 6 query_size N D multiplications.

    Example:
        >>> BAITAcquisition(query_size=100, output="identity").ridge
        1.0

    References:
        Ash, Goel, Krishnamurthy and Kakade, Gone Fishing: Neural Active Learning with Fisher Embeddings (2021).
        Huseljic et al., Fast Fishing: Approximating BAIT for Efficient and Scalable Deep Active Image Classification
        (2024), for the binary form.

    """

    needs_labeled = True
    embedding_source: EmbeddingSource

    def __init__(
        self,
        query_size: int | float,
        output: BAITOutput = "softmax",
        features: str | None = None,
        embeddings: str = "model",
        ridge: float = 1.0,
    ) -> None:
        super().__init__(query_size)
        if output not in get_args(BAITOutput) or not 0 < ridge < float("inf"):
            raise ValueError(
                f"`BAITAcquisition(output={output!r}, ridge={ridge!r})`: expected one of {get_args(BAITOutput)}, and "
                "a positive number."
            )
        self.output = output
        self.features = features
        self.embeddings = embeddings
        self.ridge = ridge
        self.embedding_source = EmbeddingSource("BAITAcquisition", embeddings, features)
        self.needs_forward = output != "identity" or not self.embedding_source.in_file

    def prepare(self, context: QueryContext) -> None:
        """Find the embeddings, and raise for outputs at several positions."""
        self._read = self.embedding_source.prepare(context)
        outputs = context.predictor(context.batch)
        if self.output == "sigmoid" and outputs.shape[1] > 1:
            raise ValueError(
                f'`BAITAcquisition(output="sigmoid")` needs one logit per sample, got {tuple(outputs.shape)}: its '
                'binary form has one weight per sample. For several labels use `BADGEAcquisition(output="sigmoid")`.'
            )
        if outputs.ndim > 2:
            raise ValueError(
                f"`BAITAcquisition` needs one row of outputs per sample, got {tuple(outputs.shape)}. For dense outputs "
                "use `CoreSetAcquisition` or `NoiseStabilityAcquisition`."
            )

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the weight of each sample of a batch, and its embeddings."""
        outputs, rows = self._read(batch)
        if self.output == "identity":
            return rows
        probs = predictor.to_probabilities(predictor(batch) if outputs is None else outputs, self.output)
        top = probs.amax(1, keepdim=True)
        return torch.cat([top * (1 - top), rows.to(top)], dim=1)

    def select(self, query: Query) -> list[int]:
        """Choose greedily by the Fisher information, with the labeled part in it."""
        weighted = self.output != "identity"
        points, labeled = self.embedding_source.of_query(query, begin=int(weighted))
        weights, labeled_weights = (query.pool[:, 0], query.labeled_rows()[:, 0]) if weighted else (None, None)
        rows = functional.bait(
            points,
            query.budget,
            labeled=labeled,
            weights=weights,
            labeled_weights=labeled_weights,
            ridge=self.ridge,
        )
        return query.pick(rows)
