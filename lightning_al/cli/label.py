"""The command `lightning-al label`: a page on which people label what a run asks, or a table to fill in."""

import argparse
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_al.cli.arguments import print_line
from lightning_al.cli.run_dataset import dataset_of
from lightning_al.labeling.content import Reader, read_path, reader_of
from lightning_al.labeling.server import serve
from lightning_al.labeling.session import LabelingSession
from lightning_al.labeling.tables import export_queue, import_labels
from lightning_al.storage.labels_file import Labels
from lightning_al.storage.queue_file import Queue, latest_queue, read_queue
from lightning_al.storage.run_folder import RunRefusedError

PORT = 8765


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The arguments; None takes those of the process.

    Returns:
        The exit status: 0, or 1 if the run, the table or the port cannot be used.

    """
    options = _parser().parse_args(arguments)
    try:
        queue = _read_last_queue(options.run)
        labels = Labels(options.run / queue.labels, queue.classes or None)
        if options.export is not None:
            count = export_queue(queue, labels, options.export, options.suggest)
            print_line(f"{options.export} has {count} samples that wait for a label.")
        elif options.import_ is not None:
            count = import_labels(queue, labels, options.import_, options.by)
            print_line(f"{count} answers of {options.import_} were added. {_describe(queue, labels)}")
        else:
            _serve(options, queue, labels)
    except (ModuleNotFoundError, OSError, ValueError) as error:  # their messages are complete
        print_line(f"lightning-al label: {error}", sys.stderr)
        return 1
    return 0


def _serve(options: argparse.Namespace, queue: Queue, labels: Labels) -> None:
    session = LabelingSession(queue, labels, options.suggest)

    def report_start(address: str) -> None:
        print_line(f"{_describe(queue, labels)}\nOpen {address} in a browser; end with Ctrl-C.")

    try:
        serve(session, _reader(options.run, queue), report_start, port=options.port, by=options.by)
    except KeyboardInterrupt:
        labels.read()
        print_line(_describe(queue, labels))


def _read_last_queue(run: Path) -> Queue:
    path = latest_queue(run)
    if path is None:
        raise RunRefusedError(
            f"{run} has no cycle with a queue.jsonl, so no sample waits for a label. Run `lightning-al fit` with "
            "labels from a file first, or pass the folder of that run."
        )
    return read_queue(path)


def _reader(run: Path, queue: Queue) -> Reader:
    """Return a reader of files, or of the dataset of the run where samples have no file."""
    without_file = any(sample.path is None for sample in queue.samples)
    return reader_of(dataset_of(run)) if without_file else read_path


def _describe(queue: Queue, labels: Labels) -> str:
    answered = sum(sample.index in labels for sample in queue.samples)
    rest = len(queue.samples) - answered
    after = "the same command goes on" if rest else "run the same `fit` command to train with them"
    return f"{answered} of {len(queue.samples)} samples are answered in {labels.path}, {rest} wait; {after}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-al label",
        description="Open a page on this machine, on which people label the samples that a run asks about; each answer "
        "is in the run's file of labels before the next sample shows. Or write these samples as a table for a "
        "spreadsheet, and read the labels from it.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--port", type=int, default=PORT, help=f"of the page (default: {PORT}; 0 takes a free one)")
    parser.add_argument("--by", default=_user(), help="your name, stored with the answers (default: the account's)")
    parser.add_argument(
        "--suggest", action="store_true", help="show what the model predicts, which may bias the person who labels"
    )
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--export", type=Path, metavar="CSV", help="write the samples that wait as a table, and end")
    table.add_argument(
        "--import",
        type=Path,
        metavar="CSV",
        dest="import_",
        help="add the labels of a table with the columns `index` and `label`, all or none, and end; `?` is 'cannot "
        "say', semicolons separate several classes of a sample",
    )
    return parser


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in containers
        return ""
