"""Failures on one of two processes, each of which must end both; a script, because DDP needs processes of its own.

python -m tests.ddp_failures folder
"""

import json
import sys
from pathlib import Path

import torch

from lightning_al import EntropyAcquisition, NoiseStabilityAcquisition
from lightning_al.testing import ToyClassifier
from tests.runs import make_data, make_trainer


class Failing(EntropyAcquisition):
    """Fails on the second process, in the rehearsal or in one step of the query."""

    def __init__(self, step, rehearsal):
        super().__init__(5)
        self.step, self.rehearsal, self.is_rehearsal = step, rehearsal, True

    def fail_at(self, step):
        if step == self.step and self.rehearsal == self.is_rehearsal and torch.distributed.get_rank() == 1:
            raise ValueError(f"{step} failed")

    def prepare(self, context):
        self.is_rehearsal = context.rehearsal
        self.fail_at("prepare")

    def measure(self, predictor, batch):
        self.fail_at("measure")
        return super().measure(predictor, batch)

    def rows_to_gather(self, rows, budget):
        self.fail_at("rows_to_gather")
        return super().rows_to_gather(rows, budget)

    def select(self, query):
        self.fail_at("select")
        return super().select(query)


class BrokenOnSecond(ToyClassifier):
    """After training, outputs of the last sample of a batch are NaN on the second process."""

    def forward(self, points):
        outputs = super().forward(points)
        if torch.distributed.get_rank() == 1 and not self.training and self.trainer.global_step:
            outputs[-1] = float("nan")
        return outputs


CASES = {
    **{f"rehearsed {step}": (lambda step=step: Failing(step, True), ToyClassifier) for step in ("prepare", "measure")},
    **{
        step: (lambda step=step: Failing(step, False), ToyClassifier)
        for step in ("prepare", "measure", "rows_to_gather", "select")
    },
    "NaN in a formula": (lambda: EntropyAcquisition(5), BrokenOnSecond),
    "NaN in a score": (lambda: NoiseStabilityAcquisition(5, passes=2), BrokenOnSecond),
}


def main(folder: Path) -> None:
    errors = {}
    for name, (acquisition, model) in CASES.items():
        data = make_data(pool_batch_size=16)
        try:
            make_trainer(acquisition(), strategy="ddp", devices=2, max_epochs=1).fit(model(), data)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
        assert data.pool.cycle == 0, "it labeled"
    rank = torch.distributed.get_rank()
    (folder / f"{rank}.json").write_text(json.dumps(errors))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
