"""What commands that compare runs have in common: an argument, and how they tell a person."""

import argparse
import sys
from typing import TextIO


def add_target(parser: argparse.ArgumentParser) -> None:
    """Let a command take the values of the metric whose cost in labels it reports."""
    parser.add_argument(
        "--target",
        nargs="+",
        type=float,
        default=[],
        help="values of the metric whose cost in labels is reported (default: the baseline's last mean)",
    )


def say(text: str, file: TextIO | None = None) -> None:
    """Print a text at once, so that it is in order with what child processes print; to standard output by default."""
    print(text, file=file or sys.stdout, flush=True)
