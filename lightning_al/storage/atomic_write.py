"""Files that a crash cannot leave half-written."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` so that `path` holds either the old content or all of the new one, whatever happens.

    The text goes to a temporary file beside `path`, is forced to disk and then renamed over it; a rename within
    one folder is atomic. The folder is synced too, or a power cut could still lose the new name.

    Args:
        path: The file to replace; missing parent folders are made.
        text: The whole new content.

    Raises:
        OSError: If the disk refuses; the old file is then untouched.

    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private to the user; keep what an ordinary open() would have given
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # some network file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder beside the old one, and put it in the old one's place once everything is there.

    Args:
        folder: Replaced if it is there; left as it is after an exception.

    Yields:
        An empty folder to write into.

    """
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
