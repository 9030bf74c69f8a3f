"""Cycles in one Weights & Biases run, from Python: curves, tables of what was picked, the pool as an artifact.

Offline by default, so it needs no account; the last line says how to upload the run. The same command
continues an interrupted run under the same id.

    python examples/wandb_cycles.py
    python examples/wandb_cycles.py --online --project my-project
"""

import argparse
import sys
import warnings
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

sys.path.insert(0, str(Path(__file__).parent.parent))

from examples.digits import DigitsClassifier, DigitsDataModule
from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition, run_cycles
from lightning_al.tracking.wandb import run_id


def main() -> None:
    """Run the cycles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--online", action="store_true", help="upload while it runs; needs `wandb login`")
    parser.add_argument("--project", default="lightning-al", help="default: %(default)s")
    parser.add_argument("--cycles", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=50, help="per cycle (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs", "wandb_cycles"), help="default: %(default)s")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")  # its own use of torch
    options.folder.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        project=options.project, save_dir=options.folder, offline=not options.online, id=run_id(options.folder)
    )

    def make(cycle: int) -> tuple[Trainer, LightningModule]:
        query = NoiseStabilityAcquisition(query_size=20, passes="inf")
        trainer = Trainer(
            max_epochs=options.epochs,
            accelerator="cpu",
            callbacks=[query],
            logger=logger,  # the same for every cycle
            log_every_n_steps=1,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        return trainer, DigitsClassifier()

    data = ActiveLearningDataModule(DigitsDataModule(), initial_size=20)
    for record in run_cycles(
        make,
        data,
        cycles=options.cycles,
        run_dir=options.folder,
        target={"test/accuracy": 0.85},
        num_preview_samples=20,
    ):
        print(f"{record['labeled']:4d} labels: {record['test/accuracy']:.3f}")
    run = logger.experiment
    folder = Path(run.dir).parent
    run.finish()
    if not options.online:
        print(f"Upload it with: wandb sync {folder}")


if __name__ == "__main__":
    main()
