"""What trackers remember from process to process, `tracking.json`."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.schema import DamagedFileError, read_json


@dataclass(frozen=True)
class TrackingNotes:
    """Notes of the trackers of one run.

    Attributes:
        steps: The last step of training of each finished cycle, at which the next one goes on.
        environments: Versions and hardware, each from its `cycle` on.
        logger_runs: What a tracker needs to continue its run, by the name of the tracker: `id` and `processes`.

    """

    steps: list[int] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    logger_runs: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_notes(path: Path) -> TrackingNotes:
    """Return the notes; empty ones if the file is missing or damaged, which loses no label and no figure."""
    try:
        return read_json(TrackingNotes, path)
    except (OSError, DamagedFileError):
        return TrackingNotes()


def update_notes(path: Path, **changes: Any) -> None:
    """Replace some fields of the notes, and keep the others."""
    write_atomically(path, json.dumps(asdict(replace(read_notes(path), **changes)), indent=1) + "\n")
