"""Entropy: label the samples whose predicted distribution is widest.

Passes per sample: 1. Suits classification and dense classification (mean over the positions). Memory: one number
per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.model.predictor import Predictor


class EntropyAcquisition(Acquisition):
    r"""Label the samples with the largest entropy of the predicted class distribution.

    $H(x) = -\sum_c p_c \log p_c$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].

    Cost: one forward pass per candidate.

    Example:
        >>> EntropyAcquisition(query_size=100).query_size
        100

    References:
        Shannon 1948; Settles, Active Learning Literature Survey (2009), section 3.1.

    """

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        return functional.entropy(predictor.probabilities(batch))
