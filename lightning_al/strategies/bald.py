"""BALD: label samples on whose class draws of dropout disagree, while each draw is confident.

Passes per sample: K. Suits classification, multi-label and dense classification (mean over labels and positions)
with dropout modules. Memory: one number per sample.
"""

from typing import Any

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import QueryContext
from lightning_al.model.dropout import check_dropout, check_passes, dropout_passes
from lightning_al.model.output import ClassOutput, check_output
from lightning_al.model.position_scores import score_passes
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream


class BALDAcquisition(Acquisition):
    r"""Label the samples with the largest mutual information between their class and the network's weights.

    $I(y; \theta | x) = H\big(\tfrac{1}{K} \sum_k p_k\big) - \tfrac{1}{K} \sum_k H(p_k)$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        passes: K draws of dropout, at least 2; the paper of noise stability uses 50 for its baselines.
        seed: Seed of the draws; None takes the datamodule's.
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit, or several labels, over which
            the score is averaged.

    Raises:
        ValueError: If an argument is out of range, or dropout changes no prediction.

    Cost: K forward passes per candidate, one read of the data.

    Example:
        >>> BALDAcquisition(query_size=100, passes=20).passes
        20

    References:
        Houlsby et al., Bayesian Active Learning for Classification and Preference Learning (2011); Gal, Islam and
        Ghahramani, Deep Bayesian Active Learning with Image Data (2017).

    """

    def __init__(
        self, query_size: int | float, passes: int = 50, seed: int | None = None, output: ClassOutput = "softmax"
    ) -> None:
        super().__init__(query_size)
        check_output("BALDAcquisition", output)
        check_passes("BALDAcquisition", passes)
        self.passes = passes
        self.seed = seed
        self.output = output

    def prepare(self, context: QueryContext) -> None:
        """Check for dropout, and seed the draws."""
        check_dropout("BALDAcquisition", context.predictor, context.batch)
        self._draws = [(RandomStream.DROPOUT, context.seed, context.cycle, step) for step in range(self.passes)]

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        passes = dropout_passes(predictor, batch, self._draws, self.output)
        return score_passes(functional.bald, predictor, batch, passes, self.output)
