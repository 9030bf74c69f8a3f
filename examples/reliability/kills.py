"""Kill runs, continue them, and compare all that is left with a run that was never killed.

    python -m examples.reliability.kills moments --kills 100       # SIGKILL at random moments
    python -m examples.reliability.kills operations --every 1      # SIGKILL at each operation on a file
    python -m examples.reliability.kills full-disk --every 1       # each operation on a file fails once
    python -m examples.reliability.kills ddp --kills 20            # either of two processes
    python -m examples.reliability.kills ddp_spawn --kills 20
    python -m examples.reliability.kills compare --kills 20        # `lightning-al compare`, parent or child
    python -m examples.reliability.kills signals --kills 20        # SIGTERM and SIGINT in turn
    python -m examples.reliability.kills ddp_signals --kills 6     # the same to the first of two processes

The last line counts the kills, and in how many of them something differed; the status is 1 if anything did. Compared
are labels and scores, metrics, previews, checkpoints and their weights, the points and steps of the logger, and the
names of all files; seconds are not. Every process must be gone soon after a kill.
"""

import errno
import os
import random
import signal
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from examples.reliability import toy_run
from examples.reliability.harness import Process, at_file_operation, differences, fresh, snapshot

ORPHAN_SECONDS = 15.0  # Lightning looks every 5 s whether a process that it launched has died
SIGNAL_SECONDS = 10.0
WARNING = "Writing the picks failed"
TOY_RUN = "examples.reliability.toy_run"

Start = Callable[[Path], Process]


class Tally:
    """Counts kills, and prints those after which something differed."""

    def __init__(self) -> None:
        self.kills = 0
        self.failures = 0

    def add(self, moment: str, problems: Sequence[str]) -> None:
        """Count one kill with what went wrong after it."""
        self.kills += 1
        self.failures += bool(problems)
        print(f"{self.kills:4} {moment}: {'; '.join(problems) or 'equal'}", flush=True)


def forked(folder: Path) -> Process:
    """Start the toy run in a fork of this process, which has imported Lightning already."""
    return Process(partial(toy_run.run, folder), folder.parent / f"{folder.name}.log")


def launched(folder: Path, strategy: str) -> Process:
    """Start the toy run on two processes, as a user does."""
    command = ["-m", TOY_RUN, folder, "--devices", 2, "--strategy", strategy]
    return Process(command, folder.parent / f"{folder.name}.log")


def reference(folder: Path, start: Start) -> tuple[dict[str, Any], float]:
    """Return what a run leaves that is never killed, and the seconds that it takes."""
    process = start(fresh(folder))
    status = process.wait()
    if status:
        raise RuntimeError(f"The run that was never killed ended with status {status}; see {process.log}.")
    return snapshot(folder), time.monotonic() - process.started


def continue_and_compare(folder: Path, start: Start, expected: dict[str, Any]) -> list[str]:
    """Continue a killed run, and return what differs."""
    process = start(folder)
    try:
        status = process.wait()
    except TimeoutError as error:
        return [str(error)]
    return [f"status {status}, see {process.log}"] if status else differences(expected, snapshot(folder))


def kill_at_moments(
    folder: Path,
    start: Start,
    kills: int,
    signals: Sequence[signal.Signals] = (signal.SIGKILL,),
    limit: float = ORPHAN_SECONDS,
    statuses: Sequence[int] = (),
) -> Tally:
    """Send signals at random moments to a random one of the processes of a run.

    Args:
        folder: Where the runs go.
        start: Starts or continues a run.
        kills: How many.
        signals: Sent in turn.
        limit: Seconds after which every process must be gone.
        statuses: The allowed exit statuses, for signals that are sent to the first process; all processes are victims
            without.

    """
    tally, random_moments = Tally(), random.Random(0)
    expected, seconds = reference(folder / "expected", start)
    while tally.kills < kills:
        place = fresh(folder / f"kill-{tally.kills}")
        process = start(place)
        time.sleep(random_moments.uniform(0.05, 1) * seconds)
        if process.poll() is not None:
            continue  # it has ended
        victim = process.pid if statuses else random_moments.choice(process.session() or [process.pid])
        number = signals[tally.kills % len(signals)]
        who = "first process" if victim == process.pid else "another process"
        moment = f"{number.name} to the {who} after {time.monotonic() - process.started:.1f} s"
        os.kill(victim, number)
        problems = []
        try:
            moment += f", all gone in {process.seconds_until_all_are_gone(limit):.1f} s"
        except TimeoutError as error:
            problems.append(str(error))
        if statuses and process.status not in (0, *statuses):
            problems.append(f"status {process.status}")
        tally.add(moment, problems + continue_and_compare(place, start, expected))
    return tally


def at_operations(folder: Path, act: Callable[[str], None], every: int) -> Tally:
    """Disturb each operation on a file of the run folder once, and continue afterwards.

    Args:
        folder: Where the runs go.
        act: What happens in place of the operation; receives its name.
        every: 1 for each operation, 2 for every second one, and so on.

    """
    tally = Tally()
    expected, _ = reference(folder / "expected", forked)

    def disturbed(place: Path, number: int) -> None:
        count = at_file_operation(place, number, lambda operation: (print(operation, flush=True), act(operation))[1])
        toy_run.run(place)
        print(f"operations: {count()}", flush=True)

    counting = fresh(folder / "counting")
    log = folder / "counting.log"
    log.unlink(missing_ok=True)
    Process(partial(disturbed, counting, 0), log).wait()
    total = int(log.read_text().rpartition("operations: ")[2])
    for number in range(1, total + 1, every):
        place, log = fresh(folder / f"operation-{number}"), folder / f"operation-{number}.log"
        log.unlink(missing_ok=True)
        Process(partial(disturbed, place, number), log).wait()
        moment = next((line for line in log.read_text().splitlines() if line.startswith(("o", "s"))), "not reached")
        problems = continue_and_compare(place, forked, expected)
        if WARNING in log.read_text():  # a run goes on without its pictures, and says so
            moment, problems = f"{moment}, a warning", [part for part in problems if part not in ("files", "previews")]
        tally.add(f"{number} of {total}, {moment}", problems)
    return tally


def kill_oneself(operation: str) -> None:
    """End as a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk(operation: str) -> None:
    """Fail as on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main() -> None:
    """Parse the arguments, and run one kind of kills."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    kinds = ("moments", "operations", "full-disk", "ddp", "ddp_spawn", "compare", "signals", "ddp_signals")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/reliability"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets jobs in the background ignore it
    folder = fresh(arguments.folder.resolve() / f"kills-{arguments.kind}")
    if arguments.kind == "moments":
        tally = kill_at_moments(folder, forked, arguments.kills)
    elif arguments.kind == "operations":
        tally = at_operations(folder, kill_oneself, arguments.every)
    elif arguments.kind == "full-disk":
        tally = at_operations(folder, fill_the_disk, arguments.every)
    elif arguments.kind == "compare":
        from examples.reliability.compared import kill_comparisons

        tally = kill_comparisons(folder, arguments.kills, ORPHAN_SECONDS)
    elif arguments.kind in ("signals", "ddp_signals"):
        start = forked if arguments.kind == "signals" else partial(launched, strategy="ddp")
        signals = (signal.SIGTERM, signal.SIGINT)
        # 1: Lightning's status after Ctrl-C in a fit; 130: that of a shell; negative: before any handler was set
        statuses = (143, 1, 130, -signal.SIGTERM, -signal.SIGINT)
        tally = kill_at_moments(folder, start, arguments.kills, signals, SIGNAL_SECONDS, statuses)
    else:
        start = partial(launched, strategy=arguments.kind)
        tally = kill_at_moments(folder, start, arguments.kills)
    print(f"{arguments.kind}: {tally.kills} kills, after {tally.failures} of them something differed.")
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main()
