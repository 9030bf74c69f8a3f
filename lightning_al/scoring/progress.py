"""A progress bar for scoring, in the style of the trainer's bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

# Seconds between two states of a bar that is written to a file, which keeps every state.
PIPE_SECONDS = 10.0

ShowProgress = Callable[[int, str], object]  # takes samples to advance by, and a status
ReportPass = Callable[[int, int, int], object]  # takes the pass, from 1, of how many, over how many samples


def ignore_pass(step: int, count: int, samples: int) -> None:
    """Do nothing, where no bar is shown."""


class Bar:
    """The progress of scoring, in samples.

    A chunk may be the complete pool, so each pass over it moves the bar by its share of the samples.

    Args:
        total: Samples that this process scores.
        show: Moves the displayed bar.

    """

    def __init__(self, total: int, show: ShowProgress) -> None:
        self._total = total
        self._show = show
        self._finished = 0  # samples of finished chunks
        self._in_progress = 0.0  # samples of the current chunk, by the share of its passes that are done
        self._displayed = 0

    def finish(self, samples: int) -> None:
        """Count the samples of a finished chunk."""
        self._finished += samples
        self._in_progress = 0.0
        self._move("")

    def finish_pass(self, step: int, count: int, samples: int) -> None:
        """Count one of `count` passes over some samples of the chunk."""
        self._in_progress += samples / count
        self._move(f"pass {step} of {count}" if count > 1 else "")

    def _move(self, status: str) -> None:
        # a chunk that ran out of memory starts again: the bar waits until it has caught up
        reached = max(self._displayed, min(self._total, int(self._finished + self._in_progress + 1e-6)))
        self._show(reached - self._displayed, status)
        self._displayed = reached


class Progress:
    """The progress bars of one query: one for each part of the data that is scored.

    Args:
        trainer: Its progress bar callback decides between tqdm, rich and nothing; the first process shows it.

    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._current_bar: Bar | None = None

    def report_pass(self, step: int, count: int, samples: int) -> None:
        """Move the current bar, if there is one.

        Args:
            step: 1 for the first pass.
            count: How many passes there are over these samples.
            samples: How many samples it ran.

        """
        if self._current_bar is not None:
            self._current_bar.finish_pass(step, count, samples)

    @contextmanager
    def bar(self, total: int, description: str) -> Iterator[Callable[[int], object]]:
        """Show a bar while samples are scored, unless the trainer shows none: samples per second, time left, the pass.

        Args:
            total: Samples that this process scores.
            description: What is scored.

        Yields:
            A function that takes the number of samples of each finished chunk; `report_pass` moves the bar in between.

        """
        callback = self._trainer.progress_bar_callback
        # the bars of other libraries need not have `is_disabled`
        if callback is None or getattr(callback, "is_disabled", False) or not self._trainer.is_global_zero:
            yield lambda samples: None
            return
        rich = callback if isinstance(callback, RichProgressBar) else None
        with _rich_task(rich, total, description) if rich else _tqdm_bar(total, description) as show:
            self._current_bar = Bar(total, show)
            try:
                yield self._current_bar.finish
            finally:
                self._current_bar = None


@contextmanager
def _tqdm_bar(total: int, description: str) -> Iterator[ShowProgress]:
    """Show Lightning's tqdm bar, a widget in notebooks; a file gets a state every 10 seconds."""
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

        def show(samples: int, status: str) -> None:
            bar.set_postfix_str(status, refresh=False)
            bar.update(samples)

        yield show


@contextmanager
def _rich_task(callback: RichProgressBar, total: int, description: str) -> Iterator[ShowProgress]:
    """Add a bar to the trainer's display, which is still open; rich before 14.1 allows no second display."""
    display = callback.progress
    if display is None:
        yield lambda samples, status: None
        return
    task = display.add_task(description, total=total)

    def show(samples: int, status: str) -> None:
        display.update(task, advance=samples, description=f"{description} {status}".rstrip())
        callback.refresh()

    try:
        yield show
    finally:
        display.remove_task(task)
