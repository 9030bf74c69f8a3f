"""How the processes of a run end: at once when they are asked to, and none of them alone."""

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from lightning_al.cycles.die_with_parent import die_with

TERMINATED = 128 + signal.SIGTERM  # the status of a process that ended because it was asked to
# The environment variable with the id of the process whose launcher starts the others.
LAUNCHER = "LIGHTNING_AL_LAUNCHER"
EXIT_SECONDS = 10.0  # how long the processes of a group wait for each other at exit


@contextmanager
def ending_together() -> Iterator[None]:
    """End this process at once on SIGTERM, and the processes that Lightning's launcher starts with it.

    Lightning itself looks at SIGTERM after a batch, which would let a query of hours go on, and sends a message to the
    other processes, which hangs where they wait for another one. Under SLURM its way stays, since it requeues jobs.
    """
    with _ending_with_launcher() if os.environ.get("LOCAL_RANK", "0") != "0" else _launching():
        yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(_end_process_group)


@contextmanager
def _ending_with_launcher() -> Iterator[None]:
    if LAUNCHER in os.environ:
        die_with(int(os.environ[LAUNCHER]))
    yield


@contextmanager
def _launching() -> Iterator[None]:
    os.environ[LAUNCHER] = str(os.getpid())
    in_main_thread = threading.current_thread() is threading.main_thread()
    takes_signal = in_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if takes_signal and not SLURMEnvironment.detect():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        os.environ.pop(LAUNCHER, None)
        if takes_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Termination(Callback):
    """Take SIGTERM back from Lightning on several processes: the one that began the run ends, the others are killed."""

    def __init__(self) -> None:
        self.process = os.getpid()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the handler, behind Lightning."""
        if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
            return
        if not SLURMEnvironment.detect():
            signal.signal(signal.SIGTERM, _terminate if os.getpid() == self.process else signal.SIG_DFL)

    on_train_start = on_test_start = on_sanity_check_start


def kill_spawned(trainer: Trainer) -> None:
    """Kill the processes that the launcher of a trainer started and that still run, for which exit would wait."""
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(TERMINATED)


def _end_process_group() -> None:
    """End the process group before the interpreter does, whose threads could abort the exit."""
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        with suppress(RuntimeError):  # another process has ended already
            torch.distributed.monitored_barrier(timeout=timedelta(seconds=EXIT_SECONDS))
        torch.distributed.destroy_process_group()
