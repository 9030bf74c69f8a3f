from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_al import ActiveLearningDataModule
from lightning_al.seeding import Stream, make_generator
from lightning_al.survey import Survey, draw_pilot
from lightning_al.testing import ToyDataset
from tests.functional.draws import assert_frequencies

# ---------------------------------------------------------------- draw_pilot

PART = list(range(3, 303, 3))


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 1), (40, 40), (99, 99), (100, 99), (1000, 99)])
def test_a_pilot_is_drawn_from_the_candidates_and_leaves_one_over(size, expected):
    pilot = draw_pilot(PART, size, seed=0, cycle=0)
    assert len(pilot) == len(set(pilot)) == expected
    assert pilot == sorted(pilot)
    assert set(pilot) <= set(PART)


def test_a_pilot_depends_on_seed_and_cycle_alone():
    drawn = {(seed, cycle): draw_pilot(PART, 30, seed, cycle) for seed in range(3) for cycle in range(3)}
    assert len(set(map(tuple, drawn.values()))) == 9
    with torch.random.fork_rng():
        torch.manual_seed(99)
        before = torch.get_rng_state()
        assert drawn == {key: draw_pilot(PART, 30, *key) for key in drawn}
        assert torch.equal(torch.get_rng_state(), before)
    order = torch.randperm(100, generator=make_generator(Stream.PILOT, 1, 2)).tolist()
    assert drawn[1, 2] == sorted(PART[row] for row in order[:30])


def test_every_candidate_is_as_likely_in_a_pilot():
    counts = np.zeros(10)
    for seed in range(400):
        counts[draw_pilot(range(10), 3, seed, 0)] += 1
    assert_frequencies(counts, np.full(10, 0.1))


# ---------------------------------------------------------------- Survey


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


def survey_of(data: ActiveLearningDataModule, **options: Any) -> Survey:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return Survey(
        **{
            "name": "Name",
            "trainer": trainer,
            "datamodule": data,
            "transfer": lambda batch: batch,
            "measure": lambda chunk: torch.cat([points for points, _ in chunk]),
            **options,
        }
    )


def test_a_part_is_measured_in_order_and_read_once(data):
    part = [2, 3, 5, 50, 51, 77, 90, 91, 92, 118]
    measured = survey_of(data).read(part)
    points = data.datamodule.train.points[part]
    assert measured.indices == part
    assert torch.equal(measured.rows, points)
    assert measured.count == 10
    torch.testing.assert_close(measured.mean, points.mean(0))
    assert data.datamodule.train.reads == part


def test_batches_are_moved_before_they_are_measured(data):
    measured = survey_of(data, transfer=lambda batch: (batch[0].double() + 1, batch[1])).read([4, 7])
    assert measured.rows.dtype == torch.float64
    assert torch.equal(measured.rows, data.datamodule.train.points[[4, 7]].double() + 1)


def test_nothing_is_measured_of_no_samples(data):
    measured = survey_of(data, measure=None).read([])
    assert (measured.indices, len(measured.rows), measured.count) == ([], 0, 0)
    assert not data.datamodule.train.reads


def test_equal_rows_are_refused_only_where_samples_are_ranked_by_them(data):
    survey = survey_of(data, measure=lambda chunk: torch.ones(sum(len(labels) for _, labels in chunk)))
    assert survey.read([1, 2, 3], ranked=False).rows.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="`Name`: all 3 samples have the same measurement"):
        survey.read([1, 2, 3])


def test_one_process_keeps_the_rows_that_are_on_no_shortlist(data):
    measured = survey_of(data).read([1, 2, 3], shortlist=lambda rows: torch.tensor([0]))
    assert measured.indices == [1, 2, 3]


def test_the_pilot_is_measured_first_and_decides_how_the_others_are(data):
    factors, learned = [1.0], []

    def measure(chunk: list[Any]) -> Tensor:
        return factors[-1] * torch.cat([points for points, _ in chunk])

    def learn(rows: Tensor) -> Tensor:
        learned.append(rows)
        factors.append(10.0)
        return -rows

    part, points = list(range(30, 60)), data.datamodule.train.points
    pilot = [33, 34, 41, 47, 52, 53, 55, 56, 59]
    others = [index for index in part if index not in pilot]
    measured = survey_of(data, measure=measure).read_after_pilot(part, pilot, learn, lambda rows: None)
    assert data.datamodule.train.reads == pilot + others
    assert len(learned) == 1
    assert torch.equal(learned[0], points[pilot])
    assert measured.indices == part
    expected = torch.stack([-points[index] if index in pilot else 10 * points[index] for index in part])
    assert torch.equal(measured.rows, expected)
    assert measured.count == 30
    torch.testing.assert_close(measured.mean, expected.mean(0))


def constant(value: float) -> Any:
    return lambda chunk: torch.full((sum(len(labels) for _, labels in chunk),), value)


@pytest.mark.parametrize("pilot", [[41], [41, 44, 45], [40, 41, 42, 43, 44, 45, 46, 47]])
def test_equal_rows_within_the_pilot_or_the_rest_are_no_error(data, pilot):
    measured = survey_of(data, measure=constant(2.0)).read_after_pilot(
        range(40, 50), pilot, lambda rows: 3 * rows, lambda rows: None
    )
    assert measured.rows.tolist() == [6.0 if index in pilot else 2.0 for index in range(40, 50)]


@pytest.mark.parametrize("pilot", [[], [41], [41, 44, 45]])
def test_equal_rows_of_the_whole_are_refused(data, pilot):
    survey = survey_of(data, measure=constant(2.0))
    message = r"`Name`: all 10 samples have the same measurement, so none comes first"
    if not pilot:
        with pytest.raises(ValueError, match=message):
            survey.read(range(40, 50))
        return
    with pytest.raises(ValueError, match=message):
        survey.read_after_pilot(range(40, 50), pilot, lambda rows: rows, lambda rows: None)


@pytest.mark.parametrize("broken", [44, 49])
def test_a_broken_row_is_refused_in_the_pilot_and_in_the_rest(data, broken):
    point = data.datamodule.train.points[broken]

    def measure(chunk: list[Any]) -> Tensor:
        points = torch.cat([points for points, _ in chunk])
        return torch.where((points == point).all(1, keepdim=True), float("nan"), points)

    with pytest.raises(ValueError, match=rf"`Name`: 1 of \d samples have NaN or infinite .* \[{broken}\]"):
        survey_of(data, measure=measure).read_after_pilot(range(40, 50), [41, 44], lambda rows: rows, lambda rows: None)


def test_what_is_learned_may_have_rows_of_another_shape(data):
    widths = [3]

    def measure(chunk: list[Any]) -> Tensor:
        return torch.cat([points[:, : widths[-1]] for points, _ in chunk])

    def learn(rows: Tensor) -> Tensor:
        widths.append(2)
        return rows[:, :2]

    measured = survey_of(data, measure=measure).read_after_pilot(range(40, 50), [41, 44], learn, lambda rows: None)
    assert torch.equal(measured.rows, data.datamodule.train.points[40:50, :2])


@pytest.mark.parametrize("size", [1, 17, 99, 500])
def test_a_survey_with_a_pilot_reads_every_candidate_exactly_once(data, size):
    part = list(data.candidate_indices())
    pilot = draw_pilot(part, size, seed=0, cycle=0)
    measured = survey_of(data).read_after_pilot(part, pilot, lambda rows: rows, lambda rows: None)
    assert Counter(data.datamodule.train.reads) == Counter(part)
    assert measured.indices == part
    assert torch.equal(measured.rows, data.datamodule.train.points[part])
