"""What the commands `compare` and `report` share: an argument, and how they print."""

import argparse
import os
import sys
from typing import TextIO

from lightning_al.storage.atomic_write import FileNotWrittenError
from lightning_al.storage.run_folder import RunRefusedError
from lightning_al.storage.schema import DamagedFileError

# Errors whose message says all: commands print it without a traceback.
EXPLAINED_ERRORS = (RunRefusedError, DamagedFileError, FileNotWrittenError)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add `--target`, the values of the metric for which a command reports the number of labels needed."""
    parser.add_argument(
        "--target",
        nargs="+",
        type=float,
        default=[],
        help="values of the metric for which the labels needed are reported (default: the baseline's last mean)",
    )


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a text and flush, so that it stays in order with what child processes print."""
    print(text, file=file or sys.stdout, flush=True)


def available_cores() -> int:
    """Return how many cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
