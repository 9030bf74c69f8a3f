"""A run with W&B in a process of its own, which may die in its second cycle; offline unless WANDB_BASE_URL is set.

python -m tests.wandb_run folder cycles [hook]
"""

import os
import sys
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from lightning_al import EntropyAcquisition, run_cycles
from lightning_al.tracking.wandb import run_id
from tests.runs import Crash, make_data, make_trainer
from tests.tracking.test_cycle_tracker import StepClassifier


def main(folder: Path, cycles: int, hook: str | None = None) -> None:
    os.environ["WANDB_SILENT"] = "true"
    offline = "WANDB_BASE_URL" not in os.environ
    logger = WandbLogger(project="test", save_dir=folder, offline=offline, id=run_id(folder / "run"))

    def make(cycle):
        crash = [Crash(hook)] if hook and cycle == 1 else []
        trainer = make_trainer(EntropyAcquisition(5), *crash, logger=logger, log_every_n_steps=1)
        return trainer, StepClassifier()

    run_cycles(make, make_data(), cycles=cycles, run_dir=folder / "run")
    logger.experiment.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
