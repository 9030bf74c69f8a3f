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
        from rich.progress import Progress

        with Progress(transient=True) as rich_bar:
            task = rich_bar.add_task(description, total=total)
            yield lambda samples: rich_bar.advance(task, samples)
    else:
        with Tqdm(
            desc=description, total=total, unit="sample", leave=False, dynamic_ncols=True, file=sys.stdout
        ) as tqdm_bar:
            yield tqdm_bar.update
