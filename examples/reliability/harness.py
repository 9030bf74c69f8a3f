"""What the scripts share: processes that can be killed, what a run leaves behind, and how two runs differ."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree")


class Process:
    """A function in a fork of this process, or a command, in a session of its own; its output goes to a file.

    Args:
        work: What to run: a function without arguments, or the arguments of Python.
        log: The file for its output.

    """

    def __init__(self, work: Callable[[], None] | Sequence[object], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.started = time.monotonic()
        self.status: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        if not callable(work):
            with log.open("ab") as file:
                self._popen = subprocess.Popen(
                    [sys.executable, *map(str, work)], cwd=ROOT, stdout=file, stderr=file, start_new_session=True
                )
            self.pid = self._popen.pid
            return
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self._become(work)

    def _become(self, work: Callable[[], None]) -> None:
        os.setsid()
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
        status = 1
        try:
            work()
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """Return the exit status, negative after a signal, or None while it runs."""
        if self.status is None and self._popen is not None:
            self.status = self._popen.poll()
        elif self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status

    def wait(self, seconds: float = 300) -> int:
        """Wait for its end, and return the exit status.

        Raises:
            TimeoutError: If it still runs afterwards; it is killed then.

        """
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.end_session()
                raise TimeoutError(f"{self.log}: it still ran after {seconds:.0f} s")
            time.sleep(0.01)
        assert self.status is not None
        return self.status

    def session(self) -> list[int]:
        """Return the living processes of its session, such as those that a launcher started."""
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _session_of(entry) == self.pid]

    def end_session(self) -> None:
        """Kill whatever is left of it."""
        for process in self.session():
            os.kill(process, signal.SIGKILL)

    def seconds_until_all_are_gone(self, limit: float) -> float:
        """Return how long processes of its session outlive this call; kill them after the limit, and raise."""
        start = time.monotonic()
        while self.poll() is None or self.session():
            if time.monotonic() - start > limit:
                left = self.session()
                self.end_session()
                raise TimeoutError(f"{self.log}: {len(left)} processes still ran after {limit:.0f} s")
            time.sleep(0.05)
        return time.monotonic() - start


def _session_of(entry: Path) -> int | None:
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return None
    return None if fields[0] == "Z" else int(fields[3])


def at_file_operation(folder: Path, number: int, action: Callable[[str], None]) -> Callable[[], int]:
    """Call a function before one of the operations on files in a folder, by an audit hook of this process.

    Args:
        folder: Operations outside do not count, nor does reading.
        number: Which operation, from 1; 0 only counts.
        action: Receives the name and path of the operation.

    Returns:
        A function that returns how many operations there were.

    """
    count, prefix = 0, str(folder.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in EVENTS or not isinstance(arguments[0], (str, Path)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not os.path.abspath(arguments[0]).startswith(prefix):
            return
        count += 1
        if count == number:
            action(f"{event} {os.path.relpath(arguments[0], prefix)}")

    sys.addaudithook(hook)
    return lambda: count


def fresh(folder: Path) -> Path:
    """Return an empty folder of this path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def snapshot(folder: Path, run: str = "run") -> dict[str, Any]:
    """Return all that a run left, except for seconds.

    Args:
        folder: Holds the run folder, and `csv/` with the files of the logger.
        run: The name of the run folder.

    """
    path = folder / run
    with (path / "cycles.csv").open(newline="") as file:
        rows = [_without_seconds(row) for row in csv.DictReader(file)]
    history = json.loads((path / "pool.json").read_text())["history"]
    weights = {
        str(file.relative_to(path)): {
            name: tensor.tolist()
            for name, tensor in torch.load(file, map_location="cpu", weights_only=True)["state_dict"].items()
        }
        for file in sorted(path.rglob("*.ckpt"))
    }
    return {
        "labels": [{key: value for key, value in labeling.items() if key != "seconds"} for labeling in history],
        "cycles": rows,
        "steps": json.loads((path / "tracking.json").read_text())["steps"],
        "config": (path / "config.yaml").read_text().replace(str(folder), "FOLDER"),
        "files": sorted(str(file.relative_to(path)) for file in path.rglob("*")),
        "previews": {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.glob("cycle-*/picked/*"))},
        "weights": weights,
        "logged": logged_points(folder),
        "beside": sorted(file.name for file in folder.iterdir() if file.name not in (run, "csv")),
    }


def logged_points(folder: Path) -> dict[tuple[str, str], str]:
    """Return the last value of each metric at each step over the files of all processes, except for seconds."""
    points = {}
    for path in sorted((folder / "csv").rglob("metrics.csv"), key=lambda path: int(path.parent.name.split("_")[-1])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                points |= {(name, row["step"]): value for name, value in _without_seconds(row).items() if value}
    return points


def _without_seconds(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if not name.endswith("_seconds")}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of the parts in which two snapshots differ."""
    return [name for name in one if one[name] != other[name]]
