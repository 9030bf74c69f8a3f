"""Write files atomically, so that a crash leaves none half-written."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class FileNotWrittenError(OSError):
    """A file that could not be written, as on a full disk; the old one is unchanged."""

    def __init__(self, path: str | os.PathLike[str], reason: BaseException) -> None:
        super().__init__(
            f"{os.fspath(path)} was not written ({getattr(reason, 'strerror', None) or reason}), and nothing else was "
            "changed. Make room on the disk, or the folder writable, and repeat the command."
        )


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write a file that holds either the old content or all of the new one, also after a crash.

    The text goes to a temporary file beside `path`, is forced to disk and then renamed over it; a rename within
    one folder is atomic. The folder is synced too, or a power cut could still lose the new name.

    Args:
        path: The file to replace; missing parent folders are made.
        text: The complete new content.

    Raises:
        FileNotWrittenError: If the file cannot be written; the old file is then unchanged.

    """
    try:
        _write(path, text)
    except OSError as error:
        raise FileNotWrittenError(path, error) from error


def _write(path: str | os.PathLike[str], text: str) -> None:
    path = Path(os.path.realpath(path))  # a link stays, and the file it points to is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_for(path))  # mkstemp makes files private to the user
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force the names of the files in a folder to disk, where the file system can do that."""
    with suppress(OSError):  # some network file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _mode_for(path: Path) -> int:
    """Return the mode of the old file, or what an ordinary `open` would give a new one."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Replace a folder by a new one, once the new one is complete.

    Args:
        folder: The folder to replace; it need not exist, and is unchanged after an exception.

    Yields:
        An empty folder to write into.

    """
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
