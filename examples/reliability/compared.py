"""Kills of `lightning-al compare`, of the command itself and of the runs that it starts.

python -m examples.reliability.kills compare --kills 20
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from examples.reliability.harness import Process, differences, fresh, snapshot

RUNS = ("random-seed-0", "margin-seed-0")
CONFIG = """\
cycles: 2
data:
  datamodule_or_train_dataset: examples.reliability.toy_run.Pictures
  initial_size: 9
  batch_size: 4
  test_dataset:
    class_path: examples.reliability.toy_run.Pictures
    init_args: {size: 24, seed: 1}
model: examples.reliability.toy_run.PictureClassifier
acquisition:
  class_path: RandomAcquisition
  init_args: {query_size: 4}
trainer:
  max_epochs: 3
  num_sanity_val_steps: 0
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
"""


def compare(folder: Path) -> Process:
    """Start or continue a comparison."""
    config = folder.parent / "toy.yaml"
    config.write_text(CONFIG)
    command = ["-m", "lightning_al", "compare", "--config", config, "--strategies", "random", "margin"]
    command += ["--seeds", 1, "--workers", 2, "--folder", folder]
    return Process(command, folder.parent / f"{folder.name}.log")


def snapshots(folder: Path) -> dict[str, Any]:
    """Return what every run of a comparison left."""
    parts = {run: snapshot(folder, run) for run in RUNS}
    return {f"{run} {name}": value for run, part in parts.items() for name, value in part.items()}


def kill_comparisons(folder: Path, kills: int, limit: float) -> Any:
    """Kill the command or one of its runs at random moments, continue, and compare every run."""
    from examples.reliability.kills import Tally

    tally, random_moments = Tally(), random.Random(0)
    process = compare(fresh(folder / "expected"))
    if process.wait():
        raise RuntimeError(f"The comparison that was never killed failed; see {process.log}.")
    seconds, expected = time.monotonic() - process.started, snapshots(folder / "expected")
    while tally.kills < kills:
        place = fresh(folder / f"kill-{tally.kills}")
        process = compare(place)
        time.sleep(random_moments.uniform(0.1, 1) * seconds)
        if process.poll() is not None:
            continue
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        threads = Path(f"/proc/{process.pid}/task").glob("*/children")
        children += [child for path in threads for child in path.read_text().split()]
        of_parent = tally.kills % 2 == 0 or not children
        victim = process.pid if of_parent else int(random_moments.choice(children))
        moment = f"SIGKILL to the {'command' if of_parent else 'run'} after {time.monotonic() - process.started:.1f} s"
        os.kill(victim, signal.SIGKILL)
        problems = []
        runs = [int(child) for child in children]
        if of_parent:
            deadline = time.monotonic() + limit
            while any(Path(f"/proc/{run}").exists() for run in runs) and time.monotonic() < deadline:
                time.sleep(0.05)
            problems += [f"run {run} outlives the command" for run in runs if Path(f"/proc/{run}").exists()]
        process.wait()
        again = compare(place)
        status = again.wait()
        problems += [f"status {status}, see {again.log}"] if status else differences(expected, snapshots(place))
        tally.add(moment, problems)
    return tally
