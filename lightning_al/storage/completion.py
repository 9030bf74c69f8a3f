"""The record of a finished run of a comparison, `finished.json`, written once, when the run ends."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_al.storage.schema import read_json, write_json

FILE_NAME = "finished.json"
RUN_NAME = re.compile(r"(.+)-seed-\d+")  # the run folders of a comparison


@dataclass(frozen=True)
class CompletionRecord:
    """The settings of a finished run, and how long it took.

    Attributes:
        strategy: The name of the strategy, that of its file.
        seed: Seed of labels, network and training.
        settings: `config` (the content of each file by name), `strategy` (that of its file), `arguments`.
        command: The command that repeats the run.
        minutes: Minutes that its process took.

    """

    strategy: str
    seed: int
    settings: dict[str, Any]
    command: str = ""
    minutes: float = 0.0


def run_name(strategy: str, seed: int) -> str:
    """Return the name of the folder of a run in a comparison."""
    return f"{strategy}-seed-{seed}"


def is_complete(run: Path) -> bool:
    """Return whether a run folder holds a completion record."""
    return (run / FILE_NAME).exists()


def write_completion(run: Path, record: CompletionRecord) -> None:
    """Write the completion record of a run folder, atomically."""
    write_json(run / FILE_NAME, record)


def read_completion(run: Path) -> CompletionRecord:
    """Read the completion record of a run folder.

    Raises:
        FileNotFoundError: If the run is not finished.
        DamagedFileError: If a field is missing or of another type.

    """
    return read_json(CompletionRecord, run / FILE_NAME)


def read_completions(folder: Path) -> list[CompletionRecord]:
    """Read the records of all finished runs in the folder of a comparison, by seed and then by strategy."""
    records = [read_completion(path.parent) for path in folder.glob(f"*-seed-*/{FILE_NAME}")]
    return sorted(records, key=lambda record: (record.seed, record.strategy))
