"""The folder of a run: the paths of its files, the checks before a run continues, and `overwrite`."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lightning_al.storage.atomic_write import FileNotWrittenError
from lightning_al.storage.cycles_table import CycleRecord, read_cycles, write_cycles
from lightning_al.storage.pool_file import Labeling
from lightning_al.storage.settings import (
    describe_changes,
    lacking_settings,
    plain,
    read_settings,
    training_settings,
    write_settings,
)


class RunRefusedError(ValueError):
    """A run that must not start or continue in a folder; the message states the reason and the remedy."""


class RunFolder:
    """The files of a run: `pool.json`, `cycles.csv`, `config.yaml`, `tracking.json` and one folder per cycle.

    Args:
        path: The folder; made when the first file is written.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pool_file = path / "pool.json"
        self.config_file = path / "config.yaml"
        self.cycles_file = path / "cycles.csv"
        self.notes_file = path / "tracking.json"

    def cycle(self, cycle: int) -> Path:
        """Return the folder of one cycle."""
        return self.path / f"cycle-{cycle:02d}"

    def preview_dir(self, cycle: int) -> Path:
        """Return the folder for the picks of the query at the end of a cycle."""
        return self.cycle(cycle) / "picked"

    def weights(self, cycle: int) -> Path:
        """Return the file of the weights that a warm start needs."""
        return self.cycle(cycle) / "weights.ckpt"

    @rank_zero_only
    def delete_temporary_files(self) -> None:
        """Delete what a killed process was writing; call it while no other process writes here."""
        for folder in (self.path, *self.path.glob("cycle-*")):
            for path in folder.glob(".*.tmp"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    @rank_zero_only
    def write_weights(self, cycle: int, model: LightningModule) -> None:
        """Write the weights of a cycle for the next one, which may run in another process."""
        self.cycle(cycle).mkdir(parents=True, exist_ok=True)
        partial = self.cycle(cycle) / ".weights.tmp"
        try:
            torch.save({"state_dict": model.state_dict()}, partial)
            partial.replace(self.weights(cycle))
        except (OSError, RuntimeError) as error:  # torch raises the second one for a full disk
            partial.unlink(missing_ok=True)
            raise FileNotWrittenError(self.weights(cycle), error) from error

    def read_records(self) -> list[CycleRecord]:
        """Return the records of the finished cycles.

        Raises:
            RunRefusedError: If there are records without their pool.
            DamagedFileError: If a record cannot be read.

        """
        if not self.cycles_file.exists():
            return []
        if not self.pool_file.exists():
            raise RunRefusedError(
                f"{self.cycles_file} lists finished cycles, but {self.pool_file.name} beside it, which holds their "
                "labels, is missing. Restore it, or set the old run aside with `overwrite` (`--overwrite`)."
            )
        return read_cycles(self.cycles_file)

    def check_records(self, records: Sequence[CycleRecord], history: Sequence[Labeling]) -> None:
        """Raise if the pool contradicts the records, such as a pool from an older backup.

        Args:
            records: Those of `cycles.csv`.
            history: The labelings of `pool.json`.

        Raises:
            RunRefusedError: With the row and the expected values; or if the settings of a run with records are missing.

        """
        labeled = 0
        for position, record in enumerate(records):
            labeled += len(history[position]) if position < len(history) else 0
            queried = len(history[position + 1]) if position + 1 < len(history) else 0
            expected = (position, labeled, queried)
            stored = (record.cycle, record.labeled, record.queried)
            if stored != expected:
                raise RunRefusedError(
                    f"{self.cycles_file}, row {position + 1} does not fit {self.pool_file.name}: expected cycle, "
                    f"labeled and queried {expected}, got {stored}. Restore both files from the same moment, or set "
                    "the run aside with `overwrite` (`--overwrite`)."
                )
        if records and not self.config_file.exists():
            raise RunRefusedError(
                f"{self.path} holds finished cycles, but no {self.config_file.name} with their settings. Restore "
                "it, or set the run aside with `overwrite` (`--overwrite`)."
            )

    def lacks_cycles(self) -> bool:
        """Return whether fewer cycles are finished than `config.yaml` asks for, though samples are left to query."""
        if not self.config_file.exists():
            return False
        cycles, records = read_settings(self.config_file).get("cycles"), self.read_records()
        if not isinstance(cycles, int) or len(records) >= cycles:
            return False
        return not records or records[-1].queried > 0

    @rank_zero_only
    def write_records(self, records: Sequence[CycleRecord]) -> None:
        """Write one row per finished cycle, atomically."""
        write_cycles(self.cycles_file, records)

    def check_config(
        self, config: Mapping[str, Any], may_change: Collection[str], finished: int, retrain: bool = False
    ) -> None:
        """Raise if a run would continue with another configuration; log that the run continues.

        Args:
            config: Nested settings that YAML can hold.
            may_change: Dotted names of settings that may differ; a name takes everything below it.
            finished: How many cycles are finished.
            retrain: Whether settings of training may differ, too.

        Raises:
            RunRefusedError: If another setting differs, naming each one.

        """
        if not self.pool_file.exists():
            return
        before = read_settings(self.config_file) if self.config_file.exists() else plain(config)
        after, may_change = plain(config), {*may_change, *lacking_settings(before)}
        changes = describe_changes(before, after, may_change)
        is_retrainable = not describe_changes(before, after, {*may_change, *training_settings(config)})
        if changes and not (retrain and is_retrainable):
            hint = "keep its labels and train with them by `retrain` (`--retrain`), " if is_retrainable else ""
            raise RunRefusedError(
                f"The run in {self.path} was started with another configuration ({changes}). Choose another run "
                f"folder, restore the setting, {hint}or set the old run aside with `overwrite` (`--overwrite`)."
            )
        if changes:
            rank_zero_info(f"From cycle {finished} on the run trains with other settings ({changes}).")
        rank_zero_info(
            f"Continuing the run in {self.path} after {finished} finished cycle{'' if finished == 1 else 's'}."
        )

    @rank_zero_only
    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration of the run."""
        write_settings(self.config_file, config)

    @rank_zero_only
    def set_aside(self) -> None:
        """Rename the folder of an old run, so that a new one can start.

        Raises:
            RunRefusedError: If the folder is the working directory or contains it.

        """
        if not self.pool_file.exists() and not self.cycles_file.exists():
            return
        if Path.cwd().is_relative_to(self.path.resolve()):
            raise RunRefusedError(
                f"`overwrite=True` would rename {self.path}, in which this process works. Choose a run folder of its "
                "own: `Trainer(default_root_dir=...)`."
            )
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(old)
        rank_zero_info(f"The old run is now in {old}.")
