"""The options of a query that `run_cycles` sets, and not the strategy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, Trainer


@dataclass(eq=False)
class QueryOptions(Callback):
    """A callback without hooks: the trainer carries the options, so the user's acquisition is not changed.

    Attributes:
        ckpt: Which weights score: those of the last step, or those that `ModelCheckpoint` found best.
        num_preview_samples: How many of the picks are saved as pictures, sounds or texts.
        trust_checkpoints: Load checkpoints with any Python object in them, which can run any code.
        preview_dir: Where they are saved; None saves no files, and loggers get the picks all the same.

    """

    ckpt: Literal["last", "best"] = "last"
    num_preview_samples: int = 32
    trust_checkpoints: bool = False
    preview_dir: Path | None = None

    @classmethod
    def of(cls, trainer: Trainer) -> "QueryOptions":
        """Return the options that were added to a trainer's callbacks, or the defaults."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, cls)), cls())
