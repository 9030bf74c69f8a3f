"""The lock of a run folder: one process group at a time uses a folder, and its first process holds the lock."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_al.storage.atomic_write import FileNotWrittenError, write_atomically
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
        FileNotWrittenError: If the parent folder cannot be written.

    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    folder = folder.resolve()
    holder, path = (folder.with_name(f".{folder.name}.lock{suffix}") for suffix in (".json", ""))
    lock, is_new = FileLock(path), not path.exists()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunRefusedError(
            f"The run in {folder} belongs to {_describe(holder)}. Wait until that has ended, stop it, or choose "
            "another run folder."
        ) from error
    except OSError as error:
        raise FileNotWrittenError(path, error) from error
    try:
        for leftover in folder.parent.glob(f".{holder.name}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        write_atomically(holder, json.dumps({"host": socket.gethostname(), "process": os.getpid()}) + "\n")
        yield
    finally:
        with suppress(FileNotFoundError):
            holder.unlink()
        if is_new and not (folder / "pool.json").exists():  # a trial, or refused: nothing is left of it
            path.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    try:
        values = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {values['process']} on {values['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just beginning or ending
        return "another process"
