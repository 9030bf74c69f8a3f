"""A run with a CSV logger in a process of its own, which may die in its second cycle.

python -m tests.tracked_run folder cycles [hook]
"""

import sys
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from lightning_al import EntropyAcquisition, run_cycles
from tests.runs import Crash, make_data, make_trainer
from tests.tracking.test_cycle_tracker import StepClassifier


def main(folder: Path, cycles: int, hook: str | None = None) -> None:
    logger = CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)

    def make(cycle):
        crash = [Crash(hook)] if hook and cycle == 1 else []
        trainer = make_trainer(EntropyAcquisition(5), *crash, logger=logger, log_every_n_steps=1)
        return trainer, StepClassifier()

    run_cycles(make, make_data(), cycles=cycles, run_dir=folder / "run")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
