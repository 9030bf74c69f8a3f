"""Runs as they lie on disk; what a run does not have is left empty, so an old or half-finished run is shown, too."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightning_al.storage.completion import FILE_NAME, RUN_NAME, CompletionRecord, read_completion
from lightning_al.storage.cycles_table import CycleRecord, read_cycles
from lightning_al.storage.pool_file import StoredLabeling, read_pool
from lightning_al.storage.query_files import NUM_QUANTILES, PickRow, read_query
from lightning_al.storage.run_folder import RunFolder, RunRefusedError
from lightning_al.storage.schema import DamagedFileError
from lightning_al.storage.settings import read_settings
from lightning_al.storage.tracking_notes import TrackingNotes, read_notes


@dataclass(frozen=True)
class ReportedQuery:
    """What the query at the end of a cycle picked.

    Attributes:
        cycle: The number of the cycle.
        folder: Where its pictures are.
        metrics: Numbers by name, as in `query.json`.
        quantiles: The 0, 5, ..., 100 % quantiles of the candidates' scores.
        scores: Those of the picks.
        picks: The rows of `picked.csv`.

    """

    cycle: int
    folder: Path
    metrics: dict[str, float]
    quantiles: list[float]
    scores: list[float]
    picks: list[PickRow]

    @property
    def classes(self) -> dict[str, float]:
        """How many of each class were labeled."""
        return {name.removeprefix("label/"): n for name, n in self.metrics.items() if name.startswith("label/")}

    @property
    def has_score_quantiles(self) -> bool:
        """Whether the scores of all candidates are known."""
        return len(self.quantiles) == NUM_QUANTILES

    @property
    def quantiles_of_picks(self) -> list[float]:
        """The same quantiles of the scores of the picks."""
        quantiles: list[float] = np.quantile(self.scores, np.linspace(0, 1, NUM_QUANTILES)).tolist()
        return quantiles


@dataclass(frozen=True)
class ReportedRun:
    """One run folder.

    Attributes:
        path: The folder.
        records: One per finished cycle, as in `cycles.csv`.
        config: What is in `config.yaml`.
        completion: What `lightning-al compare` wrote when the run was finished.
        notes: What trackers remember.
        history: What was labeled when.

    """

    path: Path
    records: list[CycleRecord]
    config: dict[str, Any] = field(default_factory=dict)
    completion: CompletionRecord | None = None
    notes: TrackingNotes = field(default_factory=TrackingNotes)
    history: Sequence[StoredLabeling] = ()

    @property
    def compared(self) -> bool:
        """Whether the run is one of a comparison, which has checked that its runs differ in strategy and seed only."""
        return self.completion is not None or RUN_NAME.fullmatch(self.path.name) is not None

    @property
    def strategy(self) -> str:
        """The name of the strategy file, as far as the run is of a comparison, or the class of the acquisition."""
        section = self.config.get("acquisition") or {}
        named = str(section.get("class_path") or section.get("class") or "").rpartition(".")[2]
        of_history = self.history[-1].strategy if len(self.history) > 1 else ""
        compared = RUN_NAME.fullmatch(self.path.name)
        file = self.completion.strategy if self.completion else compared and compared[1]
        return str(file or named or of_history or self.path.name)

    @property
    def seed(self) -> int | None:
        """The seed of labels, network and training."""
        data = self.config.get("data") or {}
        for seed in (self.completion and self.completion.seed, self.config.get("seed_everything"), data.get("seed")):
            if isinstance(seed, int) and not isinstance(seed, bool):
                return seed
        return None

    @property
    def planned(self) -> int | None:
        """How many cycles the run was to have, where that is known."""
        cycles = self.config.get("cycles")
        return cycles if isinstance(cycles, int) else None

    @property
    def unfinished(self) -> bool:
        """Whether cycles are known to be missing; a pool of which all is labeled ends a run early."""
        if self.completion or self.planned is None or not self.records[-1].queried:
            return False
        return len(self.records) < self.planned

    @property
    def fit_seconds(self) -> float:
        """What all fits took."""
        return float(sum(record.fit_seconds for record in self.records))

    @property
    def query_seconds(self) -> float:
        """What all queries took."""
        return float(sum(record.query_seconds for record in self.records))

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Versions and hardware, each from its `cycle` on."""
        return self.notes.environments

    @cached_property
    def _queries(self) -> tuple[list[ReportedQuery], list[str]]:
        """What each cycle picked, and for each query that cannot be read the reason."""
        queries, unreadable = [], []
        for record in self.records:
            labeling = self.history[record.cycle + 1] if len(self.history) > record.cycle + 1 else None
            folder = RunFolder(self.path).preview_dir(record.cycle)
            try:
                query = _read_query(folder, record.cycle, (labeling and labeling.scores) or [])
            except DamagedFileError as error:
                unreadable.append(str(error))
                continue
            if query is not None:
                queries.append(query)
        return queries, unreadable

    @property
    def queries(self) -> list[ReportedQuery]:
        """What each cycle picked, as far as the folder says."""
        return self._queries[0]

    @property
    def unreadable(self) -> list[str]:
        """For each query that cannot be read the file, the field and what was expected."""
        return self._queries[1]


def find_runs(paths: Sequence[Path]) -> tuple[list[ReportedRun], list[str]]:
    """Read run folders, and those inside folders of a comparison.

    Args:
        paths: Run folders, or folders that hold some.

    Returns:
        The runs in the order given, each once; those of one folder by strategy and seed. And for each run that cannot
        be read the file, the field and what was expected.

    Raises:
        RunRefusedError: If a folder is missing, or neither is a run with a finished cycle nor holds one.

    """
    by_path: dict[Path, ReportedRun] = {}
    unreadable: list[str] = []
    for path in paths:
        if not path.is_dir():
            raise RunRefusedError(f"There is no folder {path}; name a run folder, which holds `cycles.csv`.")
        inside = (
            [path] if (path / "cycles.csv").is_file() else sorted(file.parent for file in path.glob("*/cycles.csv"))
        )
        results = [_read_run(folder) for folder in inside]
        runs = [run for run in results if isinstance(run, ReportedRun) and run.records]
        reasons = [reason for reason in results if isinstance(reason, str)]
        if not runs:
            details = " ".join(reasons) or "there is no `cycles.csv` with a row."
            raise RunRefusedError(f"{path} holds no run with a finished cycle that can be read: {details}")
        unreadable += reasons
        runs.sort(key=lambda run: (run.strategy, run.seed or 0))
        by_path |= {run.path.resolve(): run for run in runs if run.path.resolve() not in by_path}
    return list(by_path.values()), unreadable


def _read_run(path: Path) -> ReportedRun | str:
    """Return a run, or why it cannot be read."""
    folder = RunFolder(path)
    try:
        return ReportedRun(
            path,
            records=read_cycles(folder.cycles_file),
            config=read_settings(folder.config_file) if folder.config_file.exists() else {},
            completion=read_completion(path) if (path / FILE_NAME).exists() else None,
            notes=read_notes(folder.notes_file),
            history=read_pool(folder.pool_file).history if folder.pool_file.exists() else (),
        )
    except (OSError, DamagedFileError) as error:
        return str(error)


def _read_query(folder: Path, cycle: int, scores: Sequence[float]) -> ReportedQuery | None:
    """Return what the files of a query hold; None where it left none."""
    files = read_query(folder)
    if files is None:
        return None
    query, picks = files
    return ReportedQuery(cycle, folder, query.figures, query.quantiles or [], list(scores), picks)


def read_media(file: Path, max_bytes: int) -> bytes | None:
    """Return the content of a picture or recording; None if it is missing, too large, or no regular file.

    A run folder may come from elsewhere: a link could bring any file of this machine onto the page, and a pipe would
    never end.

    Args:
        file: In the folder of a query.
        max_bytes: What may be read.

    """
    try:
        status = file.lstat()
        return file.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= max_bytes else None
    except OSError:
        return None
