from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_al import ActiveLearningDataModule
from lightning_al.scoring.progress import Progress
from lightning_al.scoring.scoring_pass import ScoringPass
from lightning_al.testing import ToyDataset


class CountedDataset(ToyDataset):
    """Notes every read, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads.append(index)
        return super().__getitem__(index)


@pytest.fixture
def data() -> ActiveLearningDataModule:
    data = ActiveLearningDataModule(CountedDataset(), initial_size=20, batch_size=8)
    data.setup("fit")
    data.datamodule.train.reads.clear()
    return data


def scoring_pass(data: ActiveLearningDataModule, **options: Any) -> ScoringPass:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return ScoringPass(
        **{
            "name": "Name",
            "trainer": trainer,
            "datamodule": data,
            "transfer": lambda batch: batch,
            "progress": Progress(trainer),
            "measure": lambda chunk: torch.cat([points for points, _ in chunk]),
            **options,
        }
    )


def test_a_part_is_measured_in_order_and_read_once(data):
    part = [2, 3, 5, 50, 51, 77, 90, 91, 92, 118]
    measured = scoring_pass(data).run(part)
    points = data.datamodule.train.points[part]
    assert measured.indices == part
    assert torch.equal(measured.rows, points)
    assert data.datamodule.train.reads == part


def test_batches_are_moved_before_they_are_measured(data):
    measured = scoring_pass(data, transfer=lambda batch: (batch[0].double() + 1, batch[1])).run([4, 7])
    assert measured.rows.dtype == torch.float64
    assert torch.equal(measured.rows, data.datamodule.train.points[[4, 7]].double() + 1)


def test_equal_rows_are_refused_only_where_samples_are_ranked_by_them(data):
    scoring = scoring_pass(data, measure=lambda chunk: torch.ones(sum(len(labels) for _, labels in chunk)))
    assert scoring.run([1, 2, 3], ranked=False).rows.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="`Name`: all 3 samples have the same measurement"):
        scoring.run([1, 2, 3])


def test_one_process_keeps_the_rows_that_are_on_no_shortlist(data):
    measured = scoring_pass(data).run([1, 2, 3], rows_to_gather=lambda rows: torch.tensor([0]))
    assert measured.indices == [1, 2, 3]
