"""What commands tell a person."""

import sys
from typing import TextIO


def say(text: str, file: TextIO | None = None) -> None:
    """Print a text at once, so that it is in order with what child processes print; to standard output by default."""
    print(text, file=file or sys.stdout, flush=True)
