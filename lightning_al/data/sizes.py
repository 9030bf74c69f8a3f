"""Sizes that are given as a number of samples or as a share of a total."""

from typing import Any


def is_size(size: Any) -> bool:
    """Return whether a number is a count (int, at least 1) or a share (float in (0, 1])."""
    if isinstance(size, float):
        return 0 < size <= 1
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def check_size(argument: str, size: int | float, of: str) -> int | float:
    """Return a number of samples as an int, or a share as a float.

    Args:
        argument: The argument with its value, for the message.
        size: A number of Python, NumPy or torch.
        of: The total that a share refers to, for the message.

    Raises:
        ValueError: If it is neither a whole number of at least 1 nor a share in (0, 1].

    """
    number: Any = size
    if getattr(number, "ndim", None) == 0:  # a number of NumPy or torch
        number = number.item()
    if not is_size(number):
        raise ValueError(
            f"{argument}: expected a number of samples (int, at least 1) or a share of {of} (float in (0, 1])."
        )
    checked: int | float = number
    return checked


def resolve_size(size: int | float, total: int) -> int:
    """Return the number of samples; a share of the total is at least 1.

    Example:
        >>> resolve_size(5, 100), resolve_size(0.25, 100), resolve_size(0.001, 100)
        (5, 25, 1)

    """
    return size if isinstance(size, int) else max(1, round(size * total))


def check_counts(**counts: int | None) -> None:
    """Raise ValueError if an argument of the datamodule that counts something is below 1; None is allowed."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"`ActiveLearningDataModule({name}={value})`: `{name}` must be at least 1.")
