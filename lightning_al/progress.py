"""A progress bar for scoring, in the style of the bar that the trainer already shows."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


@contextmanager
def progress_bar(trainer: Trainer, total: int, description: str) -> Iterator[Callable[[int], object]]:
    """Show a bar while samples are scored, unless the trainer shows none.

    Args:
        trainer: Its progress bar callback decides between tqdm, rich and nothing.
        total: Samples that this process scores.
        description: What is going on.

    Yields:
        A function that moves the bar on by a number of samples.

    """
    callback = trainer.progress_bar_callback
    # bars of other makes need not say whether they are on
    if callback is None or getattr(callback, "is_disabled", False) or not trainer.is_global_zero:
        yield lambda samples: None
    elif isinstance(callback, RichProgressBar):
        with _rich_task(callback, total, description) as advance:
            yield advance
    else:
        with Tqdm(
            desc=description, total=total, unit="sample", leave=False, dynamic_ncols=True, file=sys.stdout
        ) as tqdm_bar:
            yield tqdm_bar.update


@contextmanager
def _rich_task(callback: RichProgressBar, total: int, description: str) -> Iterator[Callable[[int], object]]:
    """Add a bar to the trainer's display: that one is still alive, and rich before 14.1 allows no second."""
    display = callback.progress
    if display is None:
        yield lambda samples: None
        return
    task = display.add_task(description, total=total)

    def advance(samples: int) -> None:
        display.advance(task, samples)
        callback.refresh()

    try:
        yield advance
    finally:
        display.remove_task(task)
