"""A progress bar for scoring, in the style of the bar that the trainer already shows."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

PIPE_SECONDS = 10.0  # between two states of a bar in a file, where each stays

Show = Callable[[int, str], object]  # takes samples to move on by, and what runs


class Bar:
    """How far scoring is, in samples of which all passes are done.

    A chunk may be the whole pool, so each pass over it moves the bar by its share of the samples.

    Args:
        total: Samples that this process scores.
        show: Moves what is on the screen.

    """

    def __init__(self, total: int, show: Show) -> None:
        self._total = total
        self._show = show
        self._whole = 0  # samples of finished chunks
        self._part = 0.0  # of the chunk at work
        self._shown = 0

    def finish(self, samples: int) -> None:
        """Count a chunk whose rows are there."""
        self._whole += samples
        self._part = 0.0
        self._move("")

    def finish_pass(self, step: int, count: int, samples: int) -> None:
        """Count one of `count` passes over some samples of the chunk."""
        self._part += samples / count
        self._move(f"pass {step} of {count}" if count > 1 else "")

    def _move(self, said: str) -> None:
        # a chunk that ran out of memory begins again: the bar waits until it is as far as before
        reached = max(self._shown, min(self._total, int(self._whole + self._part + 1e-6)))
        self._show(reached - self._shown, said)
        self._shown = reached


_in_sight: ContextVar[Bar | None] = ContextVar("_in_sight", default=None)


def tell_pass(step: int, count: int, samples: int) -> None:
    """Let the bar in sight, if there is one, say which pass is done.

    Args:
        step: 1 for the first pass.
        count: How many passes there are over these samples.
        samples: How many samples it ran.

    """
    bar = _in_sight.get()
    if bar is not None:
        bar.finish_pass(step, count, samples)


@contextmanager
def progress_bar(trainer: Trainer, total: int, description: str) -> Iterator[Callable[[int], object]]:
    """Show a bar while samples are scored, unless the trainer shows none: samples per second, time left, the pass.

    Args:
        trainer: Its progress bar callback decides between tqdm, rich and nothing; the first process shows it.
        total: Samples that this process scores.
        description: What is going on.

    Yields:
        A function that takes the number of samples of each finished chunk; `tell_pass` moves the bar in between.

    """
    callback = trainer.progress_bar_callback
    # bars of other makes need not say whether they are on
    if callback is None or getattr(callback, "is_disabled", False) or not trainer.is_global_zero:
        yield lambda samples: None
        return
    rich = callback if isinstance(callback, RichProgressBar) else None
    with _rich_task(rich, total, description) if rich else _tqdm_bar(total, description) as show:
        bar = Bar(total, show)
        before = _in_sight.set(bar)
        try:
            yield bar.finish
        finally:
            _in_sight.reset(before)


@contextmanager
def _tqdm_bar(total: int, description: str) -> Iterator[Show]:
    """Show a bar of Lightning's own make, a widget in notebooks; a file gets a state now and then."""
    piped = "notebook" not in Tqdm.__mro__[1].__module__ and not sys.stdout.isatty()
    with Tqdm(
        desc=description,
        total=total,
        unit="sample",
        leave=False,
        dynamic_ncols=True,
        file=sys.stdout,
        mininterval=PIPE_SECONDS if piped else 0.1,
    ) as bar:

        def show(samples: int, said: str) -> None:
            bar.set_postfix_str(said, refresh=False)
            bar.update(samples)

        yield show


@contextmanager
def _rich_task(callback: RichProgressBar, total: int, description: str) -> Iterator[Show]:
    """Add a bar to the trainer's display: that one is still alive, and rich before 14.1 allows no second."""
    display = callback.progress
    if display is None:
        yield lambda samples, said: None
        return
    task = display.add_task(description, total=total)

    def show(samples: int, said: str) -> None:
        display.update(task, advance=samples, description=f"{description} {said}".rstrip())
        callback.refresh()

    try:
        yield show
    finally:
        display.remove_task(task)
