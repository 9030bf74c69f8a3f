"""BatchBALD: label the batch of samples on whose joint classes draws of dropout disagree most.

Passes per sample: K. Suits classification with dropout modules. Memory: K * C numbers per sample.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.model.dropout import check_dropout, check_passes, dropout_passes
from lightning_al.model.output import ClassOutput, check_output
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream


class BatchBALDAcquisition(Acquisition):
    r"""Label the batch with the largest mutual information between all its classes and the network's weights.

    $I(y_1, \dots, y_b; \theta)$, greedily; unlike BALD it counts the information that two samples share only once.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        passes: K draws of dropout, at least 2. A batch has at most log K of information, so a large one needs many.
        configurations: Number of combinations of classes that estimate a joint entropy; exact up to this number.
        seed: Seed of the draws; None takes the datamodule's.
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit.

    Raises:
        ValueError: If an argument is out of range, dropout changes no prediction, dropout outside of dropout modules
            draws other masks for other samples, or outputs have several positions or labels, whose joint entropy has
            C^positions terms.

    Cost: K forward passes per candidate; then up to N * K * C * `configurations` multiplications per pick: score a
        random part of a large pool (`ActiveLearningDataModule(candidates=...)`).

    Example:
        >>> BatchBALDAcquisition(query_size=10, passes=100).configurations
        1000

    References:
        Kirsch, van Amersfoort and Gal, BatchBALD (2019).

    """

    def __init__(
        self,
        query_size: int | float,
        passes: int = 50,
        configurations: int = 1000,
        seed: int | None = None,
        output: ClassOutput = "softmax",
    ) -> None:
        super().__init__(query_size)
        check_output("BatchBALDAcquisition", output)
        check_passes("BatchBALDAcquisition", passes)
        if configurations < 1:
            raise ValueError(f"`BatchBALDAcquisition(configurations={configurations})`: expected at least 1.")
        self.passes = passes
        self.configurations = configurations
        self.seed = seed
        self.output = output

    def prepare(self, context: QueryContext) -> None:
        """Seed the draws, and check that a draw is the same network for all samples."""
        check_dropout("BatchBALDAcquisition", context.predictor, context.batch, consistent=True)
        self._draws = [(RandomStream.DROPOUT, context.seed, context.cycle, step) for step in range(self.passes)]

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the log-probabilities (B, K, C) of a batch."""
        probs_bkc = torch.stack(list(dropout_passes(predictor, batch, self._draws, self.output)), dim=1)
        if probs_bkc.ndim > 3 or (self.output == "sigmoid" and probs_bkc.shape[2] > 1):
            raise ValueError(
                f"`BatchBALDAcquisition(output={self.output!r})` needs one choice of a class per sample, got outputs "
                f"of shape {tuple(probs_bkc[:, 0].shape)}: the joint entropy of all positions and labels has too many "
                f"terms. Use `BALDAcquisition(output={self.output!r})`."
            )
        if self.output == "sigmoid":
            probs_bkc = torch.cat([1 - probs_bkc, probs_bkc], dim=2)
        # -inf would not pass the check of measurements
        return probs_bkc.clamp_min(torch.finfo(probs_bkc.dtype).tiny).log()

    def select(self, query: Query) -> list[int]:
        """Choose greedily the sample that adds most to the mutual information."""
        rows = functional.batch_bald(query.pool, query.budget, generator=query.generator, samples=self.configurations)
        return query.pick(rows)
