"""The state of trackers between processes, `tracking.json`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_al.storage.schema import DamagedFileError, read_json, write_json


@dataclass(frozen=True)
class TrackingNotes:
    """Notes of the trackers of one run.

    Attributes:
        steps: The last training step of each finished cycle, from which the next one counts on.
        environments: Versions and hardware, each with the `cycle` from which it applies.
        logger_runs: `id` and `processes` of the run that a tracker continues, by the name of the tracker.

    """

    steps: list[int] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    logger_runs: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_notes(path: Path) -> TrackingNotes:
    """Return the notes; empty ones if the file is missing or damaged, which loses no label and no metric."""
    try:
        return read_json(TrackingNotes, path)
    except (OSError, DamagedFileError):
        return TrackingNotes()


def update_notes(path: Path, **changes: Any) -> None:
    """Write notes with some fields replaced."""
    write_json(path, replace(read_notes(path), **changes))
