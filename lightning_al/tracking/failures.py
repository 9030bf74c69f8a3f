"""Turn failures of loggers into warnings, so that they never stop a cycle."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

_already_warned: set[str] = set()  # messages, so that each is shown once


@contextmanager
def warn_on_failure(subject: str) -> Iterator[None]:
    """Turn an exception inside into a warning, once for each message, and go on.

    Args:
        subject: The beginning of the warning: what failed.

    """
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        warn_once(
            f"{subject} failed ({type(error).__name__}: {reason}). The cycle goes on and its labels are safe; what was "
            "to be logged or shown is missing."
        )


def warn_once(message: str) -> None:
    """Warn the first time that a process has this message."""
    if message not in _already_warned:
        _already_warned.add(message)
        rank_zero_warn(message)
