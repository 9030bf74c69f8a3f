"""Margin: label the samples whose two most likely classes are closest.

Passes per sample: 1. Suits classification, multi-label and dense classification (mean over labels and
positions). Memory: one number per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.model.output import ClassOutput, check_output
from lightning_al.model.position_scores import score_batch
from lightning_al.model.predictor import Predictor


class MarginAcquisition(Acquisition):
    r"""Label the samples with the smallest gap between the two most likely classes.

    $-(p_{(1)} - p_{(2)})$; of labels $-\tfrac{1}{L} \sum_l |2 p_l - 1|$.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit, or several labels, over which
            the score is averaged.

    Raises:
        ValueError: If `output` is neither.

    Cost: one forward pass per candidate.

    Example:
        >>> MarginAcquisition(query_size=100).query_size
        100

    References:
        Scheffer et al., Active Hidden Markov Models for Information Extraction (2001).

    """

    min_score = -1.0

    def __init__(self, query_size: int | float, output: ClassOutput = "softmax") -> None:
        super().__init__(query_size)
        check_output("MarginAcquisition", output)
        self.output = output

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        return score_batch(functional.margin, predictor, batch, self.output)
