"""Child processes side by side, none of which outlives this process."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

GRACE_SECONDS = 10.0  # between the polite request to end and the kill; enough to write a checkpoint of a small model
DIE_WITH_PARENT = Path(__file__).parents[1] / "cycles" / "die_with_parent.py"


def start_process(
    command: Sequence[str], environment: Mapping[str, str], log: BinaryIO | None = None
) -> "subprocess.Popen[bytes]":
    """Start a command in a session of its own, so that Ctrl-C reaches this process alone, which then stops it.

    On Linux it is killed as soon as the calling thread ends, also by a kill of this process.

    Args:
        command: The program and its arguments.
        environment: All environment variables of the process.
        log: Where output and errors go; None leaves them on the terminal.

    """
    if sys.platform == "linux":
        # -I and -S: neither the environment nor installed packages can slow this script down
        command = [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid()), *command]
    return subprocess.Popen(
        command, env=environment, stdout=log, stderr=None if log is None else subprocess.STDOUT, start_new_session=True
    )


def run_processes(
    starts: Sequence[Callable[[], "subprocess.Popen[bytes]"]], workers: int, on_end: Callable[[int, int], None]
) -> None:
    """Start processes in the order given, at most `workers` at a time, and wait for all of them.

    SIGTERM and SIGHUP interrupt it as Ctrl-C does. Whatever ends it, its processes are stopped first.

    Args:
        starts: Each starts one process, as `start_process` does.
        workers: How many processes at a time, at least 1.
        on_end: Receives the position and the exit status of each process that ended, in this thread.

    Raises:
        KeyboardInterrupt: If interrupted.

    """
    pool = _ProcessPool(starts)
    with _interrupted_by_signals(), ThreadPoolExecutor(workers) as executor:
        futures: list[Future[tuple[int, int]]] = []
        try:
            futures += (executor.submit(pool.run_next) for _ in starts)
            for future in as_completed(futures):
                on_end(*future.result())
        finally:
            pool.stop(futures)


class _ProcessPool:
    """The processes of one call of `run_processes`, each started by the thread that waits for it."""

    def __init__(self, starts: Sequence[Callable[[], "subprocess.Popen[bytes]"]]) -> None:
        self._waiting = iter(enumerate(starts))
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped = False
        self._lock = threading.Lock()  # keeps the order of starts, and lets none follow `stop`

    def run_next(self) -> tuple[int, int]:
        """Start the next process and wait for it; return its position and its exit status."""
        with self._lock:
            if self._stopped:
                raise CancelledError
            position, start = next(self._waiting)
            process = start()
            self._running.append(process)
        status = process.wait()
        with self._lock:
            self._running.remove(process)
        return position, status

    def stop(self, futures: Sequence["Future[tuple[int, int]]"]) -> None:
        """End what runs: politely, then for good, with the loader workers of each process."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        try:
            for process in running:
                process.terminate()
            if running:
                wait(futures, GRACE_SECONDS)
        finally:  # also when a second Ctrl-C ends the waiting
            for process in running:
                _kill_session(process)


def _kill_session(process: "subprocess.Popen[bytes]") -> None:
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM, and for SIGHUP as of a closed terminal, as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    available = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGHUP")]
    numbers = [number for number in available if signal.getsignal(number) == signal.SIG_DFL]  # nohup stays in force
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
