"""Least confidence: label the samples whose most likely class is least likely.

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


class LeastConfidenceAcquisition(Acquisition):
    r"""Label the samples with the smallest probability of the most likely class.

    $1 - \max_c p_c$; of labels $\tfrac{1}{L} \sum_l \min(p_l, 1 - p_l)$.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit, or several labels, over which
            the score is averaged.

    Raises:
        ValueError: If `output` is neither.

    Cost: one forward pass per candidate.

    Example:
        >>> LeastConfidenceAcquisition(query_size=100).query_size
        100

    References:
        Lewis and Gale, A Sequential Algorithm for Training Text Classifiers (1994).

    """

    def __init__(self, query_size: int | float, output: ClassOutput = "softmax") -> None:
        super().__init__(query_size)
        check_output("LeastConfidenceAcquisition", output)
        self.output = output

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        return score_batch(functional.least_confidence, predictor, batch, self.output)
