"""Several runs of `lightning-al fit` side by side, each in its own process; finished runs are not repeated."""

import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_al.cli.arguments import available_cores
from lightning_al.cli.child_processes import run_processes, start_process
from lightning_al.cli.presets import to_config_argument
from lightning_al.storage.completion import CompletionRecord, is_complete, run_name, write_completion
from lightning_al.storage.run_folder import RunFolder, RunRefusedError
from lightning_al.storage.settings import describe_changes

UNFINISHED = 1  # the status of a run that ended without an error, but before its last cycle
PROGRAM = (sys.executable, "-m", "lightning_al")


@dataclass(frozen=True)
class Run:
    """One strategy with one seed: a command, a folder and a log.

    Attributes:
        folder: The folder of the comparison.
        strategy: The name of the strategy, which is that of its file or of a variant.
        seed: The seed of initial labels, network and training.
        config: The files with data, model and trainer.
        strategy_file: The file with the acquisition; may be a preset.
        arguments: Further arguments of `fit`, the same for all runs of a comparison.
        settings: Arguments of `fit` by their names, in which this strategy differs from its file.

    """

    folder: Path
    strategy: str
    seed: int
    config: tuple[Path, ...]
    strategy_file: Path
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder / run_name(self.strategy, self.seed)

    @property
    def log(self) -> Path:
        """The file that receives the output of the process."""
        return self.folder / f"{run_name(self.strategy, self.seed)}.log"

    @property
    def finished(self) -> bool:
        """Whether the run folder holds a completion record."""
        return is_complete(self.path)

    @property
    def command(self) -> list[str]:
        """The arguments of `lightning-al`."""
        files = (*map(str, self.config), to_config_argument(self.strategy_file))
        configs = [argument for file in files for argument in ("--config", file)]
        seed = ["--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.path)]
        settings = [f"--{name}={value}" for name, value in self.settings.items()]
        return ["fit", *configs, *seed, *self.arguments, *settings]

    def completion_record(self) -> CompletionRecord:
        """Return what is kept once this run is finished; its settings say whether a finished run is still this one."""
        names = [path.name for path in self.config]
        return CompletionRecord(
            strategy=self.strategy,
            seed=self.seed,
            settings={
                # by name, so that a comparison can be moved, unless files in different folders have the same one
                "config": {
                    name if names.count(name) == 1 else str(path): _read_yaml(path)
                    for name, path in zip(names, self.config, strict=True)
                },
                "strategy": {**(_read_yaml(self.strategy_file) or {}), **self.settings},
                "arguments": list(self.arguments),
            },
            command=shlex.join(["lightning-al", *self.command]),
        )


def check_settings(finished: Sequence[CompletionRecord], current: Sequence[CompletionRecord], folder: Path) -> None:
    """Raise if finished runs were made with other settings: in a comparison only strategies and seeds may differ.

    Args:
        finished: The records of the finished runs.
        current: The records that the runs of the command would get, or those of the finished runs if nothing is run.
        folder: The folder of the comparison, for the message.

    Raises:
        RunRefusedError: If a setting differs; the message names the run and the setting.

    """
    strategies = {record.strategy: record.settings["strategy"] for record in reversed(current)}
    for record in finished:
        strategy = strategies.get(record.strategy, record.settings["strategy"])
        changes = describe_changes(record.settings, {**current[0].settings, "strategy": strategy}, missing="not set")
        if changes:
            run = folder / run_name(record.strategy, record.seed)
            raise RunRefusedError(
                f"{run} was finished with other settings ({changes}). Choose another --folder, restore the setting, or "
                f"delete {run} to run it anew."
            )


def run_all(
    runs: Sequence[Run],
    workers: int,
    report: Callable[[Run, float, int], None],
    *,
    to_terminal: bool = False,
    devices: Sequence[str] = (),
) -> list[Run]:
    """Run what is not finished, in the order given and at most `workers` at a time.

    Args:
        runs: The runs; finished ones are left out.
        workers: How many processes at a time, at least 1. Each gets its share of the processor, unless
            OMP_NUM_THREADS is set already.
        report: Receives each run that ended, its minutes and the exit status of its process.
        to_terminal: Let the processes write to the terminal, and not to their logs.
        devices: GPUs of which each run sees one, in turn; without any, every run sees all.

    Returns:
        The runs that failed.

    Raises:
        KeyboardInterrupt: If this process is interrupted or terminated; its children are stopped first.

    """
    threads = max(1, available_cores() // workers)
    # wandb would announce every offline run
    environment = {"OMP_NUM_THREADS": str(threads), "WANDB_SILENT": "true", **os.environ}
    visible = [{"CUDA_VISIBLE_DEVICES": device} for device in devices] or [{}]
    unfinished = [run for run in runs if not run.finished]
    children = [
        _ChildRun(run, environment | device, to_terminal)
        for run, device in zip(unfinished, itertools.cycle(visible), strict=False)
    ]
    failed = []

    def on_end(position: int, status: int) -> None:
        child = children[position]
        minutes = (time.monotonic() - child.begun) / 60
        if status == 0 and RunFolder(child.run.path).lacks_cycles():
            status = UNFINISHED  # it ended well, but something else ended it
        if status == 0:
            write_completion(child.run.path, replace(child.record, minutes=round(minutes, 3)))
        else:
            failed.append(child.run)
        report(child.run, minutes, status)

    run_processes([child.start for child in children], workers, on_end)
    return failed


def devices_to_share_out(run: Run) -> list[str]:
    """Return the GPUs that runs can get one each of, as `CUDA_VISIBLE_DEVICES` names them.

    Args:
        run: One of the runs; none is shared out if its files or arguments set `trainer.devices`.

    """
    trainers = [content.get("trainer") or {} for content in map(_read_yaml, run.config) if isinstance(content, dict)]
    chosen = any(word.startswith("--trainer.devices") for word in run.command)
    if chosen or any("devices" in trainer for trainer in trainers if isinstance(trainer, dict)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


@dataclass
class _ChildRun:
    """A run, and from its start on what its completion record will say."""

    run: Run
    environment: dict[str, str]
    to_terminal: bool
    record: CompletionRecord = field(init=False)
    begun: float = field(init=False)

    def start(self) -> "subprocess.Popen[bytes]":
        """Start the process of the run; its files may change afterwards, so the record is made now."""
        command = [*PROGRAM, *self.run.command]
        self.record = self.run.completion_record()
        self.begun = time.monotonic()
        self.run.folder.mkdir(parents=True, exist_ok=True)
        if self.to_terminal:
            return start_process(command, self.environment)
        with self.run.log.open("ab") as log:
            log.write(f"$ {shlex.join(['lightning-al', *self.run.command])}\n".encode())
            log.flush()
            return start_process(command, self.environment, log)


def _read_yaml(path: Path) -> Any:
    # through JSON, as the completion record will be read back: keys become strings, dates are written out
    return json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), default=str))
