"""How the query of a cycle is made and kept, as far as `run_cycles` decides it and not the strategy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, Trainer


@dataclass(eq=False)
class QueryOptions(Callback):
    """A callback without hooks: it travels with the trainer, so the user's acquisition stays as it was made.

    Attributes:
        ckpt: Which weights score: those of the last step, or those that `ModelCheckpoint` found best.
        num_preview_samples: How many of the picks are kept for a person to look at.
        trust_checkpoints: Load checkpoints with any Python object in them, which can run any code.
        preview_dir: Where they are kept; None keeps none, and loggers get them all the same.

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
