"""Checkpoint ensemble: label the samples on which the weights of the last epochs disagree.

Passes per sample: K. Suits classification, multi-label and dense classification (mean over labels and positions).
Memory: one number per sample, and K sets of weights.
"""

from collections import deque
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import QueryContext
from lightning_al.formulas.disagreement import bald
from lightning_al.model.output import ClassOutput, check_output
from lightning_al.model.position_scores import score_passes
from lightning_al.model.predictor import Predictor
from lightning_al.model.weight_swap import Weights, copy_to_device_of, copy_weights, weight_passes

TOO_SHORT = (
    "`CheckpointEnsembleAcquisition` compares the weights of at least 2 epochs of one fit, but {}. Train for longer "
    "(`Trainer(max_epochs=...)`), or use `QueryByCommitteeAcquisition`, whose members are trained separately."
)


class CheckpointEnsembleAcquisition(Acquisition):
    r"""Label the samples with the largest mutual information between their label and the epoch of the weights.

    An ensemble at the cost of one training: late epochs agree on what is learned, and still differ elsewhere.

    $I(y; k \mid x) = H(\frac{1}{K} \sum_k p_k(y \mid x)) - \frac{1}{K} \sum_k H(p_k(y \mid x))$

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        epochs: K, at least 2: how many epochs at the end of the fit; all of them if the fit had fewer. The last 10 as
            in the noise stability paper's comparison.
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit, or several labels, over which
            the score is averaged.

    Raises:
        ValueError: If `epochs` is below 2, or `output` is neither.

    Cost: K forward passes per candidate; K copies of the weights, on the CPU while the fit trains and on the device
        while it scores. `ckpt="best"` changes nothing.

    Example:
        >>> CheckpointEnsembleAcquisition(query_size=100, epochs=5).epochs
        5

    References:
        Chitta, Alvarez, Haussmann and Farabet, Large-Scale Visual Active Learning with Deep Probabilistic Ensembles
        (2019); Li et al., Deep Active Learning with Noise Stability, appendix A.3.

    """

    def __init__(self, query_size: int | float, epochs: int = 10, output: ClassOutput = "softmax") -> None:
        super().__init__(query_size)
        check_output("CheckpointEnsembleAcquisition", output)
        if epochs < 2:
            raise ValueError(
                f"`CheckpointEnsembleAcquisition(epochs={epochs})`: expected at least 2, since one set of weights "
                "cannot disagree with itself; the paper uses 10."
            )
        self.epochs = epochs
        self.output = output
        self._recent: deque[Weights] = deque(maxlen=epochs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clear the weights of an earlier fit, and raise if this one is too short."""
        super().setup(trainer, pl_module, stage)
        self._recent.clear()
        if stage == "fit" and trainer.max_epochs == 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise MisconfigurationException(TOO_SHORT.format("this fit has max_epochs=1"))
        if stage == "fit" and trainer.limit_train_batches == 0:  # as in `lightning_al.query`
            raise MisconfigurationException(TOO_SHORT.format("this fit trains no batch"))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the untrained weights as a second epoch, which `fast_dev_run` does not have."""
        super().on_fit_start(trainer, pl_module)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._recent.append(copy_weights(pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights of this epoch."""
        self._recent.append(copy_weights(pl_module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the weights."""
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the weights for a checkpoint, so that an interrupted fit continues with those of all its epochs."""
        return {"recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the weights of the epochs before the checkpoint."""
        self._recent.extend(state_dict["recent"])

    def prepare(self, context: QueryContext) -> None:
        """Copy the weights to the device; before training, the untrained ones twice."""
        module = context.predictor.module
        recent = [copy_weights(module)] * 2 if context.rehearsal else self._recent
        if len(recent) < 2:
            raise MisconfigurationException(TOO_SHORT.format(f"this fit finished {len(recent)}"))
        self._members = [copy_to_device_of(module, weights) for weights in recent]

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the scores of a batch."""
        passes = weight_passes(predictor, batch, self._members, self.output)
        return score_passes(bald, predictor, batch, passes, self.output)
