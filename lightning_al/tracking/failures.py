"""A logger that fails costs a warning, never a cycle."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

_already_warned: set[str] = set()  # what was warned of


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Turn what goes wrong inside into a warning, once for each kind of error, and go on.

    Args:
        what: Who failed, at the beginning of the warning.

    """
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        warn_once(
            f"{what} failed ({type(error).__name__}: {reason}). The cycle goes on and its labels are safe; what was to "
            "be logged or shown is missing."
        )


def warn_once(message: str) -> None:
    """Warn of something the first time only, in this process."""
    if message not in _already_warned:
        _already_warned.add(message)
        rank_zero_warn(message)
