"""Many runs of `lightning-al fit` side by side, each in a process of its own, kept where they can be taken up again."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_al.storage.atomic_write import write_atomically
from lightning_al.storage.run_folder import RunRefusedError

PROGRAM = (sys.executable, "-m", "lightning_al")
MARKER = "finished.json"  # in a run folder; written once the run's process has ended well
POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Run:
    """One strategy with one seed: a command, a folder and a log.

    Attributes:
        folder: Of the whole comparison.
        strategy: Its name, that of its file.
        seed: Of labels, network and training.
        config: The files that say data, model and trainer.
        strategy_file: The file that says the acquisition.
        arguments: Further arguments of `fit`.

    """

    folder: Path
    strategy: str
    seed: int
    config: tuple[Path, ...]
    strategy_file: Path
    arguments: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder / f"{self.strategy}-seed-{self.seed}"

    @property
    def log(self) -> Path:
        """Where the output of the process goes."""
        return self.folder / f"{self.strategy}-seed-{self.seed}.log"

    @property
    def finished(self) -> bool:
        """Whether the run is finished; starts no process."""
        return (self.path / MARKER).exists()

    @property
    def command(self) -> list[str]:
        """The arguments of `lightning-al`."""
        files = [argument for path in (*self.config, self.strategy_file) for argument in ("--config", str(path))]
        seed = ["--seed_everything", str(self.seed), "--trainer.default_root_dir", str(self.path)]
        return ["fit", *files, *seed, *self.arguments]

    def marker(self) -> dict[str, Any]:
        """Return what the marker of this run holds; its settings tell whether a finished run is still this one."""
        return {
            "strategy": self.strategy,
            "seed": self.seed,
            "settings": {
                "config": {path.name: _read_yaml(path) for path in self.config},
                "strategy": _read_yaml(self.strategy_file),
                "arguments": list(self.arguments),
            },
            "command": shlex.join(["lightning-al", *self.command]),
        }

    def mark_finished(self, marker: dict[str, Any], minutes: float) -> None:
        """Write the marker as it was when the run began."""
        text = json.dumps({**marker, "minutes": round(minutes, 3)}, indent=1)
        write_atomically(self.path / MARKER, text + "\n")


def read_markers(folder: Path) -> list[dict[str, Any]]:
    """Return the markers of all finished runs in the folder of a comparison, by seed and then by strategy."""
    markers = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"*-seed-*/{MARKER}")]
    return sorted(markers, key=lambda marker: (marker["seed"], marker["strategy"]))


def check_settings(markers: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]], folder: Path) -> None:
    """Refuse finished runs that were made with other settings: a comparison is of nothing but strategies and seeds.

    Args:
        markers: Those of the finished runs.
        now: The markers that the runs of the command would get; of the finished ones, if nothing is run.
        folder: Of the comparison, for the message.

    Raises:
        RunRefusedError: If a setting differs, naming the run and the setting.

    """
    strategies = {marker["strategy"]: marker["settings"]["strategy"] for marker in reversed(now)}
    for marker in markers:
        old, new = dict(marker["settings"]), dict(now[0]["settings"])
        new["strategy"] = strategies.get(marker["strategy"], old["strategy"])
        before, after = _flatten(old), _flatten(new)
        missing = "not set"
        changes = [
            f"{name}: {before.get(name, missing)!r} then, {after.get(name, missing)!r} now"
            for name in dict.fromkeys((*before, *after))
            if before.get(name, missing) != after.get(name, missing)
        ]
        if changes:
            run = folder / f"{marker['strategy']}-seed-{marker['seed']}"
            raise RunRefusedError(
                f"{run} was finished with other settings ({'; '.join(changes)}). Choose another --folder, restore the "
                f"setting, or delete {run} to run it anew."
            )


def run_all(
    runs: Sequence[Run], workers: int, report: Callable[[Run, float, int], None], *, shown: bool = False
) -> list[Run]:
    """Run what is not finished, in the order given and at most `workers` at a time.

    Args:
        runs: The runs; finished ones are left out.
        workers: How many processes at a time, at least 1. Each gets its share of the processor, unless
            OMP_NUM_THREADS is set already.
        report: Called with each run that ended, its minutes and the exit status of its process.
        shown: Let the processes write to the terminal, and not to their logs.

    Returns:
        The runs that failed. When this process is interrupted or told to end, its children are stopped first.

    """
    waiting = [run for run in runs if not run.finished]
    running: list[_Process] = []
    failed = []
    with _ended_by_signals():
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(_Process(waiting.pop(0), workers, shown))
                for process in [process for process in running if process.child.poll() is not None]:
                    running.remove(process)
                    minutes, status = (time.monotonic() - process.begun) / 60, process.child.returncode
                    if status == 0:
                        process.run.mark_finished(process.marker, minutes)
                    else:
                        failed.append(process.run)
                    report(process.run, minutes, status)
                time.sleep(POLL_SECONDS if running else 0)
        finally:
            _stop([process.child for process in running])
    return failed


@dataclass
class _Process:
    """A run that has been started."""

    run: Run
    workers: int
    shown: bool
    child: "subprocess.Popen[bytes]" = field(init=False)
    marker: dict[str, Any] = field(init=False)
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        # wandb would announce every offline run
        environment = {"OMP_NUM_THREADS": str(threads), "WANDB_SILENT": "true", **os.environ}
        command = [*PROGRAM, *self.run.command]
        self.marker = self.run.marker()
        self.begun = time.monotonic()
        self.run.folder.mkdir(parents=True, exist_ok=True)
        # in a session of their own, so that Ctrl-C reaches this process alone, which then stops them in order
        if self.shown:
            self.child = subprocess.Popen(command, env=environment, start_new_session=True)
            return
        with self.run.log.open("ab") as log:
            log.write(f"$ {shlex.join(['lightning-al', *self.run.command])}\n".encode())
            log.flush()
            self.child = subprocess.Popen(
                command, env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )


def _stop(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End processes and their loader workers: politely, then for good. A run folder survives either."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
    finally:  # also when a second Ctrl-C ends the waiting
        for child in children:
            _kill(child)


def _kill(child: "subprocess.Popen[bytes]") -> None:
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, as of a closed terminal, end this process as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGHUP")]
    numbers = [number for number in known if signal.getsignal(number) == signal.SIG_DFL]  # nohup stays in force
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _read_yaml(path: Path) -> Any:
    # through JSON, as the marker will be read back: keys become strings, dates are written out
    return json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), default=str))


def _flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(settings, dict) and settings:
        parts = (_flatten(value, f"{prefix}.{name}" if prefix else name) for name, value in settings.items())
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: settings}
