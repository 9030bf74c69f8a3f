import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from lightning_al import (
    ActiveLearningDataModule,
    BADGEAcquisition,
    CoreSetAcquisition,
    EntropyAcquisition,
    MarginAcquisition,
    Mixture,
    NoiseStabilityAcquisition,
    RandomAcquisition,
    RandomSubset,
    StochasticBatch,
)
from lightning_al.functional import k_center
from lightning_al.testing import ToyDataset
from tests.wrappers.fits import alone, fit, picks_of, selection_generator

pytestmark = pytest.mark.usefixtures("unrehearsed")

STABILITY = partial(NoiseStabilityAcquisition, passes=3)
PARTS = {
    "scores": [MarginAcquisition, EntropyAcquisition],
    "random last": [MarginAcquisition, RandomAcquisition],
    "random first": [RandomAcquisition, partial(STABILITY, selection="topk"), EntropyAcquisition],
    "labeled": [MarginAcquisition, CoreSetAcquisition],
    "labeled twice": [CoreSetAcquisition, RandomAcquisition, CoreSetAcquisition],
    "vectors": [BADGEAcquisition, partial(STABILITY, selection="k-center"), partial(STABILITY, selection="kmeans++")],
    "only random": [RandomAcquisition, RandomAcquisition],
    "wrapped": [partial(StochasticBatch, acquisition=EntropyAcquisition), MarginAcquisition],
}


# ---------------------------------------------------------------- shares


def largest_remainders(budget, shares):
    exact = [Fraction(share) * budget / sum(map(Fraction, shares)) for share in shares]
    whole = [int(part) for part in exact]
    order = sorted(range(len(exact)), key=lambda position: whole[position] - exact[position])
    for position in order[: budget - sum(whole)]:
        whole[position] += 1
    return whole


@given(budget=st.integers(1, 10_000), shares=st.lists(st.integers(1, 1000), min_size=2, max_size=6))
def test_shares_are_rounded_by_the_largest_remainder(budget, shares):
    for scale in (1.0, 0.1, 1 / sum(shares)):
        scaled = [share * scale for share in shares]
        budgets = Mixture(1, [MarginAcquisition] * len(shares), shares=scaled).budgets(budget)
        assert budgets == largest_remainders(budget, shares)
        assert sum(budgets) == budget
        assert all(abs(part - budget * share / sum(shares)) < 1 for part, share in zip(budgets, shares, strict=True))


@pytest.mark.parametrize(
    ("budget", "shares", "expected"),
    [
        (7, [0.5, 0.5], [4, 3]),
        (7, None, [4, 3]),
        (1, [0.3, 0.7], [0, 1]),
        (10, [0.1, 0.2, 0.7], [1, 2, 7]),
        (10, [1, 1, 1], [4, 3, 3]),
        (3, [0.29, 0.29, 0.42], [1, 1, 1]),
        # ties that rounding could break
        (2, [0.3, 0.1], [2, 0]),
        (90, [0.35, 0.15, 0.5], [32, 13, 45]),
    ],
)
def test_examples_of_budgets(budget, shares, expected):
    parts = [MarginAcquisition] * len(expected)
    assert Mixture(5, parts, shares=shares).budgets(budget) == expected


# ---------------------------------------------------------------- picks


@pytest.mark.parametrize("name", PARTS)
def test_each_picks_what_it_alone_would_pick_from_what_is_left(name):
    parts = PARTS[name]
    mixture = Mixture(11, parts, shares=range(2, 2 + len(parts)))
    expected, generator = [], selection_generator()
    for part, budget in zip(parts, mixture.budgets(11), strict=True):
        prepared, query = alone(part(11))
        left = replace(query, generator=generator).without(expected, budget)
        expected += prepared.select(left)
    labeling = fit(mixture).pool.history[1]
    assert labeling.indices == expected
    assert labeling.strategy == "Mixture"
    assert labeling.scores is None


def test_a_part_that_looks_at_labels_sees_the_earlier_picks_as_labeled():
    _, query = alone(MarginAcquisition(8))
    _, features = alone(CoreSetAcquisition(8))
    first = query.pool.topk(4).indices
    rest = [row for row in range(100) if row not in first.tolist()]
    covered = torch.cat([features.labeled, features.pool[first]])
    rows = k_center(features.pool[rest], 4, centers=covered)
    expected = query.pick(first) + [query.indices[rest[row]] for row in rows.tolist()]
    assert picks_of(Mixture(8, [MarginAcquisition, CoreSetAcquisition])) == expected


def test_the_order_of_the_parts_decides_who_picks_first():
    one, other = picks_of(Mixture(8, PARTS["labeled"])), picks_of(Mixture(8, PARTS["labeled"][::-1]))
    assert one[:4] == picks_of(MarginAcquisition(4))
    assert other[:4] == picks_of(CoreSetAcquisition(4))


def test_a_part_without_a_share_of_a_small_query_picks_nothing():
    assert picks_of(Mixture(1, [RandomAcquisition, MarginAcquisition], [0.2, 0.8])) == picks_of(MarginAcquisition(1))


def test_the_same_acquisition_twice_is_that_acquisition():
    assert picks_of(Mixture(9, [MarginAcquisition] * 2)) == picks_of(MarginAcquisition(9))


@pytest.mark.parametrize("parts", [[MarginAcquisition, RandomAcquisition], [RandomAcquisition] * 2])
def test_the_seed_of_a_part_is_that_of_its_draws(parts):
    def picks(seed):
        return picks_of(Mixture(8, [*parts[:-1], partial(parts[-1], seed=seed)]))

    assert picks(1) == picks(1)
    assert picks(1)[:4] == picks(2)[:4] == picks(None)[:4]
    assert picks(1)[4:] != picks(2)[4:]


def test_the_seed_of_a_part_is_that_of_its_noise():
    largest = partial(STABILITY, selection="topk")
    prepared, query = alone(largest(4, seed=5))
    assert picks_of(Mixture(8, [partial(largest, seed=5), MarginAcquisition]))[:4] == prepared.select(query)
    assert picks_of(Mixture(8, [largest, MarginAcquisition]))[:4] != prepared.select(query)


# ---------------------------------------------------------------- what is read


class Reads(ToyDataset):
    """Counts how often each sample was read since the training ended."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __getitem__(self, index):
        self.counts[index] += 1
        return super().__getitem__(index)


class ForgetTraining(Callback):
    def on_train_end(self, trainer, pl_module):
        trainer.datamodule.datamodule.train_dataloader().dataset.counts.clear()


@pytest.mark.parametrize(
    ("parts", "often"),
    [
        ([RandomAcquisition, RandomAcquisition], {}),
        ([MarginAcquisition, EntropyAcquisition, RandomAcquisition], {1: 68, 2: 32}),
        ([MarginAcquisition, CoreSetAcquisition], {1: 68 + 20, 2: 32}),
    ],
)
def test_all_measure_in_one_read_of_the_data(parts, often):
    """The first batch is read twice, since acquisitions may look at it ahead."""
    dataset = Reads()
    fit(Mixture(8, parts), ForgetTraining(), data=ActiveLearningDataModule(dataset, initial_size=20, batch_size=32))
    assert Counter(dataset.counts.values()) == often


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("parts", "shares"),
    [
        ([], None),
        ([MarginAcquisition], None),
        ([MarginAcquisition] * 2, [1.0]),
        ([MarginAcquisition] * 2, [1.0, 0.0]),
        ([MarginAcquisition] * 2, [1.0, -1.0]),
        ([MarginAcquisition] * 2, [1.0, float("nan")]),
        ([MarginAcquisition] * 2, [1.0, float("inf")]),
    ],
)
def test_other_shares_are_refused(parts, shares):
    message = r"^`Mixture\(acquisitions=.*shares=" + re.escape(str(shares)) + r"\)`: expected at least two acquisitions"
    with pytest.raises(ValueError, match=message):
        Mixture(7, parts, shares=shares)


def test_parts_are_classes():
    with pytest.raises(ValueError, match=r"^`Mixture\(acquisition=<.*MarginAcq.*>\)`: expected an acquisition class"):
        Mixture(7, [MarginAcquisition, MarginAcquisition(7)])


def test_a_part_that_looks_at_some_candidates_only_is_refused():
    """All parts share one read of the data, so it would be shown all of them."""
    subset = partial(RandomSubset, acquisition=MarginAcquisition, candidates=20)
    for part in (subset, partial(StochasticBatch, acquisition=subset, noise="soft_rank")):
        with pytest.raises(
            ValueError, match=r"^`Mixture\(acquisitions=.*(RandomSubset|StochasticBatch).*[Ww]rap the mix"
        ):
            Mixture(8, [RandomAcquisition, part])
    mixture = partial(Mixture, acquisitions=[RandomAcquisition, MarginAcquisition])
    assert len(picks_of(RandomSubset(8, mixture, candidates=20))) == 8
