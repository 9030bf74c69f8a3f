"""The command `lightning-al`."""

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING

from lightning_al.cli.arguments import EXPLAINED_ERRORS
from lightning_al.cli.fit import EPILOG, ActiveLearningCLI

if TYPE_CHECKING:  # it imports jsonargparse, whose absence `fit` explains
    from lightning.pytorch.cli import ArgsType


class _Once(logging.Filter):
    """Show each message of Lightning once: every cycle has a trainer, and each reports the hardware again."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self.seen
        self.seen.add(message)
        return new


def main(args: "ArgsType" = None) -> None:
    """Run the command line; the working directory comes last on the import path, for classes defined there.

    Args:
        args: The arguments, as LightningCLI takes them; None takes those of the process.

    """
    if args is None and sys.argv[1:2] == ["compare"]:  # it starts processes of `fit`, and needs no LightningCLI
        from lightning_al.cli.compare import main as compare

        sys.exit(compare(sys.argv[2:]))
    if args is None and sys.argv[1:2] == ["report"]:
        from lightning_al.cli.report import main as report

        sys.exit(report(sys.argv[2:]))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # behind installed packages, which a file of the same name must not hide
    if args is None and sys.argv[1:2] == ["label"]:  # it may make the dataset of a run, of a class defined there
        from lightning_al.cli.label import main as label

        sys.exit(label(sys.argv[2:]))
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_Once())
    # raised by Lightning's use of torch, which no argument of this command changes
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")
    try:
        if args is None and sys.argv[1:2] == ["query"]:
            from lightning_al.cli.query import main as query

            query()
            return
        ActiveLearningCLI(args=args, parser_kwargs={"epilog": EPILOG})
    except EXPLAINED_ERRORS as refusal:  # its message is complete; a traceback would hide it
        sys.exit(f"lightning-al: {refusal}")
