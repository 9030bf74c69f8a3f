"""Active learning in Python: the two lines for one query, and all cycles. Runs on a CPU in seconds."""

import logging
import sys
import warnings
from pathlib import Path

from lightning.pytorch import Trainer

sys.path.insert(0, str(Path(__file__).parent.parent))

from examples.digits import DigitsClassifier, DigitsDataModule
from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition, run_cycles

QUIET = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False}
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")  # its own use of torch


def make(cycle: int) -> tuple[Trainer, DigitsClassifier]:
    """Return a fresh trainer and a fresh model for a cycle."""
    query = NoiseStabilityAcquisition(query_size=20, passes="inf")
    return Trainer(max_epochs=50, accelerator="cpu", callbacks=[query], **QUIET), DigitsClassifier()


data = ActiveLearningDataModule(DigitsDataModule(), initial_size=20)
for record in run_cycles(make, data, cycles=5, run_dir="runs/quickstart"):
    print(f"{record['labeled']:4d} labels: {record['test/accuracy']:.3f}")
