"""BADGE: label samples whose loss gradients are long and differ from each other.

Passes per sample: 1. Suits classification, also multi-label. Memory: C + D numbers per sample.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.formulas.badge import hypothetical_label_residuals, hypothetical_residuals
from lightning_al.model.features import Features
from lightning_al.model.output import ClassOutput, check_output
from lightning_al.model.predictor import Predictor


class BADGEAcquisition(Acquisition):
    r"""Label by k-means++ over the gradients of the loss in the last layer, with the predicted class as the label.

    $g(x) = (p(x) - e_{\hat y(x)}) \, h(x)^\top$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        features: Name of the module whose output is h; None takes the input of the last linear layer.
        seed: Seed of the draws; None takes the datamodule's.
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit or several labels, with the rows
            $(p_l - [p_l \ge \tfrac12]) \, h^\top$.

    Raises:
        ValueError: If `output` is neither or no features are found; for outputs at several positions, whose gradients
            are no outer product.

    Cost: one forward pass per candidate; then N * query_size * (C + D) multiplications. The N x C x D gradients are
        never formed.

    Example:
        >>> BADGEAcquisition(query_size=100, features="backbone").features
        'backbone'

    References:
        Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds (2020).

    """

    def __init__(
        self,
        query_size: int | float,
        features: str | None = None,
        seed: int | None = None,
        output: ClassOutput = "softmax",
    ) -> None:
        super().__init__(query_size)
        check_output("BADGEAcquisition", output)
        self.features = features
        self.seed = seed
        self.output = output

    def prepare(self, context: QueryContext) -> None:
        """Find the features, and raise for outputs at several positions."""
        self._read = Features(context.predictor, context.batch, self.features)
        outputs, _ = self._read(context.batch)
        self._classes = outputs.shape[1]
        if outputs.ndim > 2:
            raise ValueError(
                f"`BADGEAcquisition` needs one row of outputs per sample, got {tuple(outputs.shape)}: the gradient of "
                "a loss over positions is no outer product of two vectors. For dense outputs use `CoreSetAcquisition` "
                "or `NoiseStabilityAcquisition`."
            )

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the two factors of each gradient of a batch."""
        outputs, features = self._read(batch)
        residuals_of = hypothetical_residuals if self.output == "softmax" else hypothetical_label_residuals
        residuals = residuals_of(predictor.to_probabilities(outputs, self.output))
        return torch.cat([residuals.to(features), features], dim=1)

    def select(self, query: Query) -> list[int]:
        """Draw samples by k-means++."""
        residuals, features = query.pool[:, : self._classes], query.pool[:, self._classes :]
        return query.pick(functional.badge(residuals, features, query.budget, generator=query.generator))

    def score(self, rows: Tensor) -> Tensor:
        """Return the length of each gradient."""
        lengths: Tensor = rows[:, : self._classes].norm(dim=1) * rows[:, self._classes :].norm(dim=1)
        return lengths
