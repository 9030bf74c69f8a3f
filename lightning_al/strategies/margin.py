"""Margin: label the samples whose two most likely classes are closest.

Passes per sample: 1. Suits classification and dense classification (mean over the positions). Memory: one number
per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.model.predictor import Predictor


class MarginAcquisition(Acquisition):
    r"""Label the samples with the smallest gap between the two most likely classes.

    $-(p_{(1)} - p_{(2)})$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].

    Cost: one forward pass per candidate.

    Example:
        >>> MarginAcquisition(query_size=100).query_size
        100

    References:
        Scheffer et al., Active Hidden Markov Models for Information Extraction (2001).

    """

    min_score = -1.0

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        return functional.margin(predictor.probabilities(batch))
