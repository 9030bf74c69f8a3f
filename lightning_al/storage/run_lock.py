"""The lock of a run folder: one process group at a time uses a folder, and its first process holds the lock."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.run_folder import RunRefusedError


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, on the first process of a group.

    The operating system releases the lock when the process ends, however it ends, so a lock is never stale. The lock
    file lies beside the folder and not inside, since the folder of an old run may be renamed.

    Args:
        folder: The run folder; need not exist.

    Raises:
        RunRefusedError: If another process holds the lock, with its host and process id.

    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    holder = folder.with_name(f".{folder.name}.lock.json")
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunRefusedError(
            f"The run in {folder} belongs to {_describe(holder)}. Wait until that has ended, stop it, or choose "
            "another run folder."
        ) from error
    try:
        write_atomically(holder, json.dumps({"host": socket.gethostname(), "process": os.getpid()}) + "\n")
        yield
    finally:
        with suppress(FileNotFoundError):
            holder.unlink()
        lock.release()


def _describe(holder: Path) -> str:
    try:
        values = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {values['process']} on {values['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just beginning or ending
        return "another process"
