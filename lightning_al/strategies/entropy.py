"""Entropy: label the samples whose predicted distribution is widest.

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


class EntropyAcquisition(Acquisition):
    r"""Label the samples with the largest entropy of the predicted class distribution.

    $H(x) = -\sum_c p_c \log p_c$; of labels $-\tfrac{1}{L} \sum_l p_l \log p_l + (1 - p_l) \log (1 - p_l)$.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit, or several labels, over which
            the score is averaged.

    Raises:
        ValueError: If `output` is neither.

    Cost: one forward pass per candidate.

    Example:
        >>> EntropyAcquisition(query_size=100).query_size
        100

    References:
        Shannon 1948; Settles, Active Learning Literature Survey (2009), section 3.1.

    """

    def __init__(self, query_size: int | float, output: ClassOutput = "softmax") -> None:
        super().__init__(query_size)
        check_output("EntropyAcquisition", output)
        self.output = output

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        return score_batch(functional.entropy, predictor, batch, self.output)
