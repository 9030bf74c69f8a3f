"""MC dropout: label samples whose prediction, averaged over draws of dropout, is least certain.

Passes per sample: K. Suits classification, multi-label and dense classification (mean over labels and positions)
and, by the variance, regression, with dropout modules. Memory: one number per sample.
"""

from typing import Any, Literal, get_args

from torch import Tensor

from lightning_al import functional
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import QueryContext
from lightning_al.model.dropout import check_dropout, check_passes, dropout_passes
from lightning_al.model.output import ClassOutput, Output, check_output
from lightning_al.model.position_scores import score_passes
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream

Uncertainty = Literal["predictive_entropy", "expected_entropy", "variance"]


class MCDropoutAcquisition(Acquisition):
    r"""Label the samples whose predictions under dropout have the largest entropy, or for regression variance.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        passes: K draws of dropout, at least 2; the paper of noise stability uses 50.
        uncertainty: `"predictive_entropy"`, $H(\tfrac{1}{K} \sum_k p_k)$; `"expected_entropy"`, the mean entropy
            $\tfrac{1}{K} \sum_k H(p_k)$; `"variance"` of the outputs themselves, for regression.
        seed: Seed of the draws; None takes the datamodule's.
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit, or several labels, over which
            the entropies are averaged. The variance is that of raw outputs.

    Raises:
        ValueError: If an argument is out of range, or dropout changes no prediction.

    Cost: K forward passes per candidate, one read of the data.

    Example:
        >>> MCDropoutAcquisition(query_size=100, uncertainty="variance").passes
        50

    References:
        Gal and Ghahramani, Dropout as a Bayesian Approximation (2016); Gal, Islam and Ghahramani, Deep Bayesian Active
        Learning with Image Data (2017); for the variance, Li et al., Deep Active Learning with Noise Stability, A.4.2.

    """

    def __init__(
        self,
        query_size: int | float,
        passes: int = 50,
        uncertainty: Uncertainty = "predictive_entropy",
        seed: int | None = None,
        output: ClassOutput = "softmax",
    ) -> None:
        super().__init__(query_size)
        check_output("MCDropoutAcquisition", output)
        check_passes("MCDropoutAcquisition", passes)
        if uncertainty not in get_args(Uncertainty):
            raise ValueError(
                f"`MCDropoutAcquisition(uncertainty={uncertainty!r})`: expected one of {get_args(Uncertainty)}."
            )
        if uncertainty == "variance" and output != "softmax":
            raise ValueError(
                f'`MCDropoutAcquisition(uncertainty="variance", output={output!r})`: the variance is that of the raw '
                "outputs. Leave `output` out, or use an entropy."
            )
        self.passes = passes
        self.uncertainty = uncertainty
        self.seed = seed
        self.output = output

    def prepare(self, context: QueryContext) -> None:
        """Check for dropout, and seed the draws."""
        check_dropout("MCDropoutAcquisition", context.predictor, context.batch)
        self._draws = [(RandomStream.DROPOUT, context.seed, context.cycle, step) for step in range(self.passes)]

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        formula = {
            "variance": functional.predictive_variance,
            "expected_entropy": functional.expected_entropy,
            "predictive_entropy": functional.predictive_entropy,
        }[self.uncertainty]
        output: Output = "identity" if self.uncertainty == "variance" else self.output
        passes = dropout_passes(predictor, batch, self._draws, output)
        return score_passes(formula, predictor, batch, passes, output)
