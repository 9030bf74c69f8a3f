"""Least confidence: label the samples whose most likely class is least likely.

Passes per sample: 1. Suits classification and dense classification (mean over the positions). Memory: one number
per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.model.predictor import Predictor


class LeastConfidenceAcquisition(Acquisition):
    r"""Label the samples with the smallest probability of the most likely class.

    $1 - \max_c p_c$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].

    Cost: one forward pass per candidate.

    Example:
        >>> LeastConfidenceAcquisition(query_size=100).query_size
        100

    References:
        Lewis and Gale, A Sequential Algorithm for Training Text Classifiers (1994).

    """

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        return functional.least_confidence(predictor.probabilities(batch))
