"""A strategy of your own in twenty lines: information density, which the package does not have.

Entropy alone picks outliers. Information density weighs the entropy of a sample by how similar it is to all candidates:
H(x) mean_u(cos(h(x), h(u))), after Settles and Craven, An Analysis of Active Learning Strategies for Sequence Labeling
Tasks (2008), equation 14. The script runs the checks for every strategy, then compares cycles with plain entropy.

    python examples/custom_strategy.py
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from examples.digits import DigitsClassifier, DigitsDataModule
from lightning_al import (
    Acquisition,
    ActiveLearningDataModule,
    EntropyAcquisition,
    Features,
    Predictor,
    Query,
    QueryContext,
    run_cycles,
)
from lightning_al.functional import entropy
from lightning_al.testing import check_acquisition


class InformationDensityAcquisition(Acquisition):
    """Label samples on which the model is unsure and which are similar to many candidates.

    Args:
        query_size: Samples to label per cycle.
        beta: How much the density counts; 0 is entropy.

    """

    def __init__(self, query_size: int, beta: float = 1.0) -> None:
        super().__init__(query_size)
        self.beta = beta

    def prepare(self, context: QueryContext) -> None:
        """Find the features: the input of the last linear layer."""
        self.features = Features(context.predictor, context.batch)

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return (B, 1 + D): the entropy of each sample, then its features with length 1."""
        outputs, features = self.features(batch)
        unit = torch.nn.functional.normalize(features, dim=1)
        return torch.cat([entropy(outputs.softmax(1))[:, None], unit], dim=1)

    def score(self, rows: Tensor) -> Tensor:
        """Return entropy times density; the mean similarity to all is the similarity to their mean."""
        unit = rows[:, 1:]
        density = (unit @ unit.mean(0)).clamp_min(0)
        return rows[:, 0] * density**self.beta

    def select(self, query: Query) -> list[int]:
        """Choose the largest scores."""
        return query.pick(self.score(query.pool).topk(query.budget).indices)


def main() -> None:
    """Check the strategy, then compare one run of it with one of entropy."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.")  # its own use of torch
    check_acquisition(lambda: InformationDensityAcquisition(5))
    print("InformationDensityAcquisition passes the checks of a strategy.")
    for strategy in (EntropyAcquisition, InformationDensityAcquisition):

        def make(cycle: int, strategy: type[Acquisition] = strategy) -> tuple[Trainer, DigitsClassifier]:
            quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False}
            return Trainer(max_epochs=30, accelerator="cpu", callbacks=[strategy(20)], **quiet), DigitsClassifier()

        data = ActiveLearningDataModule(DigitsDataModule(), initial_size=20)
        records = run_cycles(make, data, cycles=4, run_dir=Path("runs", "custom_strategy", strategy.__name__))
        curve = "  ".join(f"{record['labeled']}: {record['test/accuracy']:.3f}" for record in records)
        print(f"{strategy.__name__:30} {curve}")


if __name__ == "__main__":
    main()
