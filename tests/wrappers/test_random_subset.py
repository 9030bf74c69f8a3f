import re
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al import (
    ActiveLearningDataModule,
    BADGEAcquisition,
    CoreSetAcquisition,
    MarginAcquisition,
    NoiseStabilityAcquisition,
    RandomSubset,
    StochasticBatch,
)
from lightning_al.numerics.seeding import RandomStream, make_generator
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.formulas.draws import assert_frequencies
from tests.wrappers.fits import alone, fit, picks_of

pytestmark = pytest.mark.usefixtures("unrehearsed")


class Counting(ToyClassifier):
    """Notes which samples are scored, by their first coordinate."""

    def __init__(self):
        super().__init__()
        type(self).scored = []

    def acquisition_step(self, batch):
        if not torch.is_grad_enabled():  # the pass that decides how outputs are read records gradients
            self.scored.extend(batch[0][:, 0].tolist())
        return self(batch[0])


def scored_by(acquisition, **options):
    """Return how often each sample was scored: the dataset indices, once per forward pass."""
    sample_of = {float(point[0]): index for index, point in enumerate(ToyDataset().points)}
    fit(acquisition, model=Counting(), **options)
    return [sample_of[value] for value in Counting.scored]


def subset_of(indices, count, seed=0, cycle=0):
    rows = torch.randperm(len(indices), generator=make_generator(RandomStream.SUBSAMPLING, seed, cycle))[:count]
    return sorted(indices[row] for row in rows.tolist())


@pytest.mark.parametrize(("candidates", "count"), [(30, 30), (0.3, 30), (0.125, 12), (1.0, 100), (10_000, 100), (8, 8)])
def test_scores_only_so_many_samples_and_each_once(candidates, count):
    scored = scored_by(RandomSubset(7, MarginAcquisition, candidates=candidates))
    assert len(scored) == len(set(scored)) == count


def test_picks_the_best_of_the_part():
    _, query = alone(MarginAcquisition(7))
    shown = subset_of(query.indices, 30)
    assert scored_by(RandomSubset(7, MarginAcquisition, candidates=30)) == shown
    score = dict(zip(query.indices, query.pool.tolist(), strict=True))
    labeling = fit(RandomSubset(7, MarginAcquisition, candidates=30)).pool.history[1]
    assert labeling.indices == sorted(shown, key=lambda index: -score[index])[:7] != query.pick(query.pool.topk(7)[1])
    # other batches may round otherwise
    np.testing.assert_allclose(labeling.scores, [score[index] for index in labeling.indices], rtol=1e-5)


@pytest.mark.parametrize("candidates", [3, 7, 0.01])
def test_candidates_that_leave_no_choice_are_refused_before_training(candidates):
    with pytest.raises(MisconfigurationException, match="7 samples are to be picked from 7 candidates"):
        picks_of(RandomSubset(7, MarginAcquisition, candidates=candidates))


def test_draws_anew_each_cycle_and_for_each_seed():
    def shown(seed=None, data_seed=0, cycles=1):
        data = ActiveLearningDataModule(ToyDataset(), initial_size=list(range(20)), batch_size=32, seed=data_seed)
        factory = partial(BADGEAcquisition, seed=seed)
        return [set(scored_by(RandomSubset(2, factory, candidates=30), data=data)) for _ in range(cycles)][-1]

    assert shown() == shown() == set(subset_of(range(20, 120), 30))
    assert len(shown() & shown(cycles=2)) < 25
    assert shown(seed=5) == shown(seed=5, data_seed=1) == set(subset_of(range(20, 120), 30, seed=5))
    assert shown(data_seed=1) == set(subset_of(range(20, 120), 30, seed=1)) != shown()


def test_draws_from_what_the_datamodule_drew_and_not_alike():
    def data(candidates):
        return ActiveLearningDataModule(ToyDataset(), initial_size=20, batch_size=32, candidates=candidates)

    scored = scored_by(RandomSubset(2, MarginAcquisition, candidates=20), data=data(40))
    drawn = {count: set(scored_by(MarginAcquisition(2), data=data(count))) for count in (20, 40)}
    assert set(scored) < drawn[40]
    assert len(scored) == 20
    assert set(scored_by(RandomSubset(2, MarginAcquisition, candidates=20))) != drawn[20]


def test_every_candidate_is_as_likely_as_the_others():
    wrapper, indices = RandomSubset(1, MarginAcquisition, candidates=3), list(range(10, 20))
    counts = np.zeros(10)
    for cycle in range(1000):
        part = wrapper.subsample_candidates(indices, 1, make_generator(RandomStream.SUBSAMPLING, 0, cycle))
        assert list(part) == sorted(set(part))
        counts[np.array(part) - 10] += 1
    assert_frequencies(counts, np.full(10, 0.1))


def test_parts_of_parts():
    wrapper = RandomSubset(2, partial(RandomSubset, acquisition=MarginAcquisition, candidates=0.5), candidates=0.4)
    scored = scored_by(wrapper)
    assert len(scored) == 20
    assert set(scored) < set(subset_of(alone(MarginAcquisition(2))[1].indices, 40))


def test_the_order_of_a_part_and_of_noise_does_not_matter():
    part_of_noise = RandomSubset(7, partial(StochasticBatch, acquisition=MarginAcquisition, noise="soft_rank"), 30)
    noise_on_part = StochasticBatch(7, partial(RandomSubset, acquisition=MarginAcquisition, candidates=30), "soft_rank")
    assert picks_of(part_of_noise) == picks_of(noise_on_part) != picks_of(RandomSubset(7, MarginAcquisition, 30))


def test_the_labeled_part_is_looked_at_whole():
    scored = scored_by(RandomSubset(7, CoreSetAcquisition, candidates=30))
    data = ActiveLearningDataModule(ToyDataset(), initial_size=20)
    data.setup("fit")
    assert set(data.pool.labeled) < set(scored)
    assert len(set(scored)) == 50


def test_only_what_may_be_picked_travels_between_processes():
    rows = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    for selection, travels in (("topk", True), ("power", False)):
        stability = partial(NoiseStabilityAcquisition, passes=3, selection=selection)
        rows_to_gather = RandomSubset(7, stability).rows_to_gather(rows, 7)
        assert torch.equal(rows_to_gather, stability(7).rows_to_gather(rows, 7)) if travels else rows_to_gather is None


@pytest.mark.parametrize("candidates", [0, -1, 0.0, 1.5, True, float("nan")])
def test_other_numbers_of_candidates_are_refused(candidates):
    message = rf"^`RandomSubset\(candidates={re.escape(repr(candidates))}\)`: expected a number of samples"
    with pytest.raises(ValueError, match=message):
        RandomSubset(7, MarginAcquisition, candidates=candidates)
