"""What strategies pick on some number of processes; a script, because DDP needs processes of its own.

python -m tests.ddp_picks 2 picks.json 7  # every seventh
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lightning_al import Acquisition, strategies
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.numerics.seeding import make_generator, seeded
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.strategy_settings import SETTINGS, WRAPPERS


def main(processes: int, path: Path, every: int) -> None:
    makers = {
        f"{strategy.__name__} {settings}": partial(strategy, **settings)
        for strategy, cases in SETTINGS.items()
        for settings in cases
    } | dict(WRAPPERS)
    picks = {name: picks_of(make(15), processes) for name, make in list(makers.items())[::every]}
    # of 20 candidates in batches of 32, the second of two processes has none
    picks["one batch"] = picks_of(strategies.EntropyAcquisition(5), processes, initial_size=100, batch_size=32)
    probe = StatisticsProbe()
    picks_of(probe, processes, model=ToyClassifier)
    picks["networks that score"] = probe.seen
    scores = ScoresProbe()
    picks_of(scores, processes)
    picks["scores of all"] = scores.seen
    path.write_text(json.dumps(picks))  # every process writes the same
    if torch.distributed.is_initialized():  # threads of a group that is still alive can abort the exit
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def picks_of(acquisition, processes=1, initial_size=20, batch_size=16, model=None):
    """Return the picks after a fit whose weights do not depend on the number of processes, nor do the scores then."""
    model = model or ScheduledClassifier
    data = ActiveLearningDataModule(ToyDataset(), initial_size=initial_size, batch_size=batch_size)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        callbacks=[acquisition],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with seeded(0):
        trainer.fit(model(), data)
    return data.pool.history[1].indices


class StatisticsProbe(Acquisition):
    """Count the different batch normalizations that candidates were measured with, on whatever process."""

    def __init__(self):
        super().__init__(5)
        self.seen = []

    def measure(self, predictor, batch):
        statistics = predictor.module.net[1].running_mean.sum()
        return torch.stack([batch[0][:, 0], statistics.expand(len(batch[0]))], dim=1)

    def select(self, query):
        if query.budget == self.query_size:  # not in the rehearsal
            self.seen.append(len(query.pool[:, 1].unique()))
        return query.pick(torch.arange(query.budget))


class ScoresProbe(Acquisition):
    """Note the scores of all candidates, of which each process hands on only its best."""

    def __init__(self):
        super().__init__(5)
        self.seen = []

    def measure(self, predictor, batch):
        return predictor(batch).amax(1)

    def metrics(self, query):
        if query.budget == self.query_size:
            self.seen.append([len(query.pool) < 100, query.candidate_scores.sort().values.tolist()])
        return {}


class ScheduledClassifier(ToyClassifier):
    """Weights move by the epoch alone: what two processes would move apart, gradients and statistics, leaves them."""

    def __init__(self):
        super().__init__()
        self.net[1].momentum = 0.0

    def on_train_epoch_start(self):
        generator = make_generator(self.current_epoch)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        optimizer.param_groups[0]["lr"] = 0.0
        return optimizer


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
