"""End all processes with an error when one of them fails, so that none waits for another forever."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer


def compare_with_first(trainer: Trainer, value: Any) -> tuple[bool, Any]:
    """Return whether all processes have the value of the first one, and that value.

    Cost: one broadcast and one reduction.
    """
    first = trainer.strategy.broadcast(value)
    # every process votes, so that all of them learn it and none waits for another
    return trainer.strategy.reduce_boolean_decision(value == first), first


@contextmanager
def raised_on_all_processes(trainer: Trainer) -> Iterator[None]:
    """Raise an exception of one process on all of them, at the end of a block in which they do not communicate.

    Args:
        trainer: The process group of its strategy is alive.

    Raises:
        RuntimeError: On a process without an exception of its own, with the message of the first one that has one.

    Cost: one collective of a number per process; nothing on a single process.

    """
    if trainer.world_size == 1:
        yield
        return
    strategy, failure = trainer.strategy, None
    try:
        yield
    except Exception as error:
        failure = error
    failed = strategy.all_gather(torch.tensor([int(failure is not None)], device=strategy.root_device))
    if not failed.any():
        return
    first = int(failed.flatten().argmax())
    message = strategy.broadcast(f"{type(failure).__name__}: {failure}", first)
    raise failure or RuntimeError(f"Process {first} failed. {message}")
