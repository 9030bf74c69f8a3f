"""Variation ratio: label samples on whose class few draws of dropout agree.

Passes per sample: K. Suits classification, multi-label and dense classification (mean over labels and positions) with
dropout modules. Memory: two numbers per sample.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.dropout import check_dropout, check_passes, dropout_passes
from lightning_al.model.output import ClassOutput, check_output
from lightning_al.model.position_scores import score_passes
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream


class VariationRatioAcquisition(Acquisition):
    r"""Label the samples with the largest share of draws that do not predict their most frequent class.

    $1 - \max_c \tfrac{1}{K} \sum_k [\hat y_k = c]$, ties decided by the entropy of the mean prediction.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        passes: K draws of dropout, at least 2; the score has at most K values.
        seed: Seed of the draws; None takes the datamodule's.
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit, or several labels, over which
            the score is averaged.

    Raises:
        ValueError: If an argument is out of range, or dropout changes no prediction.

    Cost: K forward passes per candidate, one read of the data; K predictions of a batch are held at once.

    Example:
        >>> VariationRatioAcquisition(query_size=100, passes=20).passes
        20

    References:
        Freeman, Elementary Applied Statistics (1965); Gal, Islam and Ghahramani, Deep Bayesian Active Learning with
        Image Data (2017).

    """

    def __init__(
        self, query_size: int | float, passes: int = 50, seed: int | None = None, output: ClassOutput = "softmax"
    ) -> None:
        super().__init__(query_size)
        check_output("VariationRatioAcquisition", output)
        check_passes("VariationRatioAcquisition", passes)
        self.passes = passes
        self.seed = seed
        self.output = output

    def prepare(self, context: QueryContext) -> None:
        """Check for dropout, and seed the draws."""
        check_dropout("VariationRatioAcquisition", context.predictor, context.batch)
        self._draws = [(RandomStream.DROPOUT, context.seed, context.cycle, step) for step in range(self.passes)]

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return (B, 2) the share of dissenting votes, and the entropy that breaks ties."""
        passes = list(dropout_passes(predictor, batch, self._draws, self.output))
        formulas = functional.variation_ratio, functional.predictive_entropy
        scores = [score_passes(formula, predictor, batch, passes, self.output) for formula in formulas]
        return torch.stack(scores, dim=1)

    def rows_to_gather(self, rows: Tensor, budget: int) -> Tensor:
        """Return the rows that may be picked."""
        return functional.top_k(rows[:, 0], budget, ties=rows[:, 1])

    def select(self, query: Query) -> list[int]:
        """Choose the largest share of dissenting votes; ties go to the largest entropy."""
        return query.pick(functional.top_k(query.pool[:, 0], query.budget, ties=query.pool[:, 1]))

    def score(self, rows: Tensor) -> Tensor:
        """Return the share of dissenting votes."""
        return rows[:, 0]
