"""The options of a query that `run_cycles` sets, and not the strategy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al.model.checkpoint import load_weights

NO_BEST_WEIGHTS = (
    "`{}` should score with the best weights (ckpt='best'), but no `ModelCheckpoint` saved any. Add one with "
    "`monitor=`, or use ckpt='last'."
)


@dataclass(eq=False)
class QueryOptions(Callback):
    """A callback without hooks: the trainer carries the options, so the user's acquisition is not changed.

    Attributes:
        ckpt: Which weights score: those of the last step, or those that `ModelCheckpoint` found best.
        num_preview_samples: How many of the picks are saved as pictures, sounds or texts.
        trust_checkpoints: Load checkpoints with any Python object in them, which can run any code.
        preview_dir: Where they are saved; None saves no files, and loggers get the picks all the same.
        is_continued: Whether the fit continues from a checkpoint or with a trained model, so that it may have no batch
            left to train.

    """

    ckpt: Literal["last", "best"] = "last"
    num_preview_samples: int = 32
    trust_checkpoints: bool = False
    preview_dir: Path | None = None
    is_continued: bool = False

    @classmethod
    def of(cls, trainer: Trainer) -> "QueryOptions":
        """Return the options that were added to a trainer's callbacks, or the defaults."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, cls)), cls())

    def load_weights(self, name: str, trainer: Trainer, module: LightningModule) -> None:
        """Load the weights that score into a module, which has those of the last step.

        Args:
            name: The strategy, for the message.
            trainer: The trainer that has just finished fitting.
            module: A module of the trainer's architecture.

        Raises:
            MisconfigurationException: If the best weights are asked for and none were saved.

        """
        if self.ckpt == "last" or trainer.fast_dev_run:  # type: ignore[attr-defined]  # which saves no checkpoint
            return
        path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if not path:
            raise MisconfigurationException(NO_BEST_WEIGHTS.format(name))
        load_weights(module, path, trusted=self.trust_checkpoints)
