"""Runs as they lie on disk; what a run does not have is left empty, so an old or half-finished run is shown, too."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lightning_al.cli.child_runs import MARKER
from lightning_al.data.pool import Labeling, Pool
from lightning_al.storage.cycles_table import Record, read_table
from lightning_al.storage.run_folder import RunFolder, RunRefusedError
from lightning_al.tracking.cycle_tracker import ENVIRONMENTS
from lightning_al.tracking.query_summary import QUANTILES

NAMED = re.compile(r"(.+)-seed-\d+")  # the folders of a comparison


@dataclass(frozen=True)
class Query:
    """What the query at the end of a cycle picked.

    Attributes:
        cycle: The number of the cycle.
        folder: Where its pictures are.
        figures: Numbers by name, as in `query.json`.
        quantiles: The 0, 5, ..., 100 % quantiles of the candidates' scores.
        scores: Those of the picks.
        picks: The rows of `picked.csv`.

    """

    cycle: int
    folder: Path
    figures: dict[str, float]
    quantiles: list[float]
    scores: list[float]
    picks: list[dict[str, str]]

    @property
    def classes(self) -> dict[str, float]:
        """How many of each class were labeled."""
        return {name.removeprefix("label/"): n for name, n in self.figures.items() if name.startswith("label/")}

    @property
    def scored(self) -> bool:
        """Whether the scores of all candidates are known."""
        return len(self.quantiles) == QUANTILES

    @property
    def quantiles_of_picks(self) -> list[float]:
        """The same quantiles of the scores of the picks."""
        found: list[float] = np.quantile(self.scores, np.linspace(0, 1, QUANTILES)).tolist()
        return found


@dataclass(frozen=True)
class ReportedRun:
    """One run folder.

    Attributes:
        path: The folder.
        records: One per finished cycle, as in `cycles.csv`.
        config: What is in `config.yaml`.
        marker: What `lightning-al compare` wrote when the run was finished.
        notes: What trackers remember.
        history: What was labeled when.

    """

    path: Path
    records: list[Record]
    config: dict[str, Any] = field(default_factory=dict)
    marker: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    history: Sequence[Labeling] = ()

    @property
    def compared(self) -> bool:
        """Whether the run is one of a comparison, which has checked that its runs differ in strategy and seed only."""
        return bool(self.marker) or NAMED.fullmatch(self.path.name) is not None

    @property
    def strategy(self) -> str:
        """The name of the strategy file, as far as the run is of a comparison, or the class of the acquisition."""
        section = self.config.get("acquisition") or {}
        named = str(section.get("class_path") or section.get("class") or "").rpartition(".")[2]
        of_history = self.history[-1].strategy if len(self.history) > 1 else ""
        compared = NAMED.fullmatch(self.path.name)
        file = self.marker.get("strategy") or (compared and compared[1])
        return str(file or named or of_history or self.path.name)

    @property
    def seed(self) -> int | None:
        """The seed of labels, network and training."""
        data = self.config.get("data") or {}
        for seed in (self.marker.get("seed"), self.config.get("seed_everything"), data.get("seed")):
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
        if self.marker or self.planned is None or not self.records[-1]["queried"]:
            return False
        return len(self.records) < self.planned

    @property
    def fit_seconds(self) -> float:
        """What all fits took."""
        return float(sum(record.get("fit_seconds", 0) for record in self.records))

    @property
    def query_seconds(self) -> float:
        """What all queries took."""
        parts = ("score_seconds", "select_seconds")
        return float(sum(record.get(part, 0) for record in self.records for part in parts))

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Versions and hardware, each from its `cycle` on."""
        found = self.notes.get(ENVIRONMENTS, [])
        return found if isinstance(found, list) else []

    @cached_property
    def queries(self) -> list[Query]:
        """What each cycle picked, as far as the folder tells."""
        found = []
        for record in self.records:
            cycle = int(record["cycle"])
            labeling = self.history[cycle + 1] if len(self.history) > cycle + 1 else None
            query = _read_query(RunFolder(self.path).picked(cycle), cycle, (labeling and labeling.scores) or [])
            if query is not None:
                found.append(query)
        return found


def find_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Read run folders, and those inside folders of a comparison.

    Args:
        paths: Run folders, or folders that hold some.

    Returns:
        The runs in the order given, each once; those of one folder by strategy and seed.

    Raises:
        RunRefusedError: If a folder is missing, or neither is a run with a finished cycle nor holds one.

    """
    found: dict[Path, ReportedRun] = {}
    for path in paths:
        if not path.is_dir():
            raise RunRefusedError(f"There is no folder {path}; name a run folder, which holds `cycles.csv`.")
        inside = (
            [path] if (path / "cycles.csv").is_file() else sorted(file.parent for file in path.glob("*/cycles.csv"))
        )
        runs = [run for run in map(_read_run, inside) if run.records]
        if not runs:
            raise RunRefusedError(f"{path} holds no run with a finished cycle: there is no `cycles.csv` with a row.")
        runs.sort(key=lambda run: (run.strategy, run.seed or 0))
        found |= {run.path.resolve(): run for run in runs if run.path.resolve() not in found}
    return list(found.values())


def _read_run(path: Path) -> ReportedRun:
    folder = RunFolder(path)
    try:
        records = read_table(folder.table)
        if any("cycle" not in record or "labeled" not in record for record in records):
            raise ValueError("a row has no `cycle` or `labeled`")
        config = yaml.safe_load(folder.config_file.read_text(encoding="utf-8")) if folder.config_file.exists() else {}
        marker = json.loads((path / MARKER).read_text(encoding="utf-8")) if (path / MARKER).exists() else {}
        history = Pool.load(folder.pool_file).history if folder.pool_file.exists() else ()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunRefusedError(
            f"The run in {path} cannot be read ({error}); mend the file or leave the run out."
        ) from error
    return ReportedRun(path, records, config or {}, marker, folder.read_notes(), history)


def _read_query(folder: Path, cycle: int, scores: Sequence[float]) -> Query | None:
    """Return what is told of a query; None where there is nothing."""
    try:
        told = json.loads((folder / "query.json").read_text(encoding="utf-8"))
        with (folder / "picked.csv").open(encoding="utf-8", newline="") as file:
            picks = list(csv.DictReader(file))
    except (OSError, ValueError):  # a strategy or a run that keeps none
        return None
    return Query(cycle, folder, told.get("figures") or {}, told.get("quantiles") or [], list(scores), picks)
