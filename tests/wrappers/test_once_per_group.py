import re
import warnings
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_al import (
    ActiveLearningDataModule,
    BADGEAcquisition,
    CoreSetAcquisition,
    EntropyAcquisition,
    MarginAcquisition,
    Mixture,
    NoiseStabilityAcquisition,
    OncePerGroup,
    Query,
    RandomAcquisition,
    StochasticBatch,
)
from lightning_al.functional import k_center
from lightning_al.numerics.seeding import make_generator
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.wrappers.fits import alone, fit, picks_of

pytestmark = pytest.mark.usefixtures("unrehearsed")

SAMPLES = 120
FEW = [f"video {index % 20}" for index in range(SAMPLES)]
INNER = {
    "entropy": EntropyAcquisition,
    "noise_stability": partial(NoiseStabilityAcquisition, passes=3),
    "kmeans": partial(NoiseStabilityAcquisition, passes=3, selection="kmeans++"),
    "k_center": partial(NoiseStabilityAcquisition, passes=3, selection="k-center"),
    "topk": partial(NoiseStabilityAcquisition, passes=3, selection="topk"),
    "core_set": CoreSetAcquisition,
    "badge": BADGEAcquisition,
    "random": RandomAcquisition,
    "stochastic": partial(StochasticBatch, acquisition=MarginAcquisition, noise="soft_rank"),
    "mixture": partial(Mixture, acquisitions=[MarginAcquisition, CoreSetAcquisition, RandomAcquisition]),
}


def walk(ranked, budget, groups, per_group):
    """Go down a ranking and take what its group has room for; then, if that is too few, what was passed over."""
    counts, picks = Counter(), []
    for index in ranked:
        if len(picks) < budget and counts[groups[index]] < per_group:
            counts[groups[index]] += 1
            picks.append(index)
    return picks + [index for index in ranked if index not in picks][: budget - len(picks)]


def ranked(query):
    return query.pick(query.pool.sort(descending=True, stable=True).indices)


# ---------------------------------------------------------------- the ranking


@given(data=st.data(), total=st.integers(2, 14), per_group=st.integers(1, 3), kinds=st.integers(1, 8))
def test_walks_down_the_ranking(data, total, per_group, kinds):
    indices = sorted(data.draw(st.sets(st.integers(0, 30), min_size=total, max_size=total)))
    groups = data.draw(st.lists(st.integers(1, kinds), min_size=31, max_size=31))
    scores = data.draw(st.lists(st.integers(0, 9), min_size=total, max_size=total))
    budget = data.draw(st.integers(1, total - 1))
    query = Query(torch.tensor(scores, dtype=torch.float32), indices, budget, make_generator(0))
    room = sum(min(per_group, count) for count in Counter(groups[index] for index in indices).values())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picks = OncePerGroup(budget, EntropyAcquisition, groups, per_group).select(query)
    assert picks == walk(ranked(query), budget, groups, per_group)
    assert len(caught) == (room < budget)


def test_the_best_of_a_group_is_labeled_even_where_nothing_else_is_left():
    """The last two candidates with room are as many as are still asked for, but of one group."""
    groups = ["a", "a", "a", "a", "b", "b"]
    query = Query(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1, 0.2]), range(6), 3, make_generator(0))
    with pytest.warns(UserWarning, match="too few groups"):
        assert OncePerGroup(3, EntropyAcquisition, groups).select(query) == [0, 5, 1]


@pytest.mark.parametrize("per_group", [1, 2])
def test_a_fit_labels_the_best_of_each_group(per_group):
    _, query = alone(MarginAcquisition(9))
    best = ranked(query)[:3]
    groups = ["best" if index in best else index for index in range(SAMPLES)]  # there is something to leave out
    expected = walk(ranked(query), 9, groups, per_group)
    labeling = fit(OncePerGroup(9, MarginAcquisition, groups, per_group)).pool.history[1]
    assert labeling.indices == expected
    assert set(best) & set(labeling.indices) == set(best[:per_group])
    score = dict(zip(query.indices, query.pool.tolist(), strict=True))
    assert labeling.scores == [score[index] for index in expected]


# ---------------------------------------------------------------- other choices


@pytest.mark.parametrize("per_group", [1, 2])
@pytest.mark.parametrize("name", INNER)
def test_no_group_is_labeled_more_often_than_it_may(name, per_group):
    picks = picks_of(OncePerGroup(9, INNER[name], FEW, per_group))
    assert len(set(picks)) == 9
    assert max(Counter(FEW[index] for index in picks).values()) <= per_group


@pytest.mark.parametrize("name", INNER)
def test_groups_of_one_change_nothing(name):
    assert picks_of(OncePerGroup(9, INNER[name], list(range(SAMPLES)))) == picks_of(INNER[name](9))


def test_what_was_chosen_before_counts_as_labeled():
    _, query = alone(CoreSetAcquisition(9))
    first = query.pick(k_center(query.pool, 9, centers=query.labeled))
    groups = ["far" if index in first[:3] else str(index) for index in range(SAMPLES)]
    accepted = [first[0], *first[3:]]
    rest = [row for row, index in enumerate(query.indices) if index not in first]
    covered = torch.cat([query.labeled, query.pool[[query.indices.index(index) for index in accepted]]])
    rows = k_center(query.pool[rest], 2, centers=covered)
    expected = accepted + [query.indices[rest[row]] for row in rows.tolist()]
    assert picks_of(OncePerGroup(9, CoreSetAcquisition, groups)) == expected


def test_every_query_starts_counting_anew():
    groups = [str(index % 10) for index in range(SAMPLES)]
    data = fit(OncePerGroup(10, MarginAcquisition, groups))
    fit(OncePerGroup(10, MarginAcquisition, groups), data=data)
    for labeling in data.pool.history[1:]:
        assert sorted(groups[index] for index in labeling.indices) == sorted(set(groups))


# ---------------------------------------------------------------- the groups


def test_groups_come_from_a_file(tmp_path):
    path = tmp_path / "groups.txt"
    path.write_text("\n".join(FEW) + "\n")
    wrapper = OncePerGroup(9, MarginAcquisition, str(path))
    assert wrapper.groups == str(path)
    assert picks_of(wrapper) == picks_of(OncePerGroup(9, MarginAcquisition, FEW))


@pytest.mark.parametrize("kind", ["names", "numbers", "array", "tensor", "tuple"])
def test_groups_may_be_whatever_can_be_compared(kind):
    numbers = torch.arange(SAMPLES) % 20
    groups = {
        "names": FEW,
        "numbers": numbers.tolist(),
        "array": numbers.numpy(),
        "tensor": numbers,
        "tuple": tuple(numbers.tolist()),
    }[kind]
    picks = picks_of(OncePerGroup(9, MarginAcquisition, groups))
    assert picks == picks_of(OncePerGroup(9, MarginAcquisition, FEW))


@pytest.mark.parametrize("count", [0, SAMPLES - 1, SAMPLES + 1])
def test_groups_of_another_dataset_are_refused_before_any_training(count):
    class Untrainable(ToyClassifier):
        def training_step(self, batch, batch_idx):
            pytest.fail("it was trained")

    message = rf"^`OncePerGroup\(groups=.*\)`: expected the group of each of 120 samples, got {count}\."
    with pytest.raises(ValueError, match=message):
        fit(OncePerGroup(9, MarginAcquisition, ["a"] * count), model=Untrainable())


def test_a_file_that_is_not_there_is_refused_at_once():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        OncePerGroup(9, MarginAcquisition, "nowhere.txt")


@pytest.mark.parametrize("per_group", [0, -1])
def test_a_bound_without_samples_is_refused(per_group):
    message = rf"^`OncePerGroup\(per_group={re.escape(str(per_group))}\)`: expected at least 1\."
    with pytest.raises(ValueError, match=message):
        OncePerGroup(9, MarginAcquisition, FEW, per_group)


# ---------------------------------------------------------------- too few groups


@pytest.mark.parametrize("name", INNER)
def test_too_few_groups_are_filled_up_with_a_warning(name):
    groups = [index % 4 for index in range(SAMPLES)]
    message = r"`OncePerGroup\(per_group=1\)`: the candidates have too few groups for the query, so 5 more samples are"
    with pytest.warns(UserWarning, match=message):
        picks = picks_of(OncePerGroup(9, INNER[name], groups))
    assert len(set(picks)) == 9
    assert {groups[index] for index in picks[:4]} == {0, 1, 2, 3}


def test_a_query_of_exactly_as_many_as_there_is_room_for_needs_no_warning():
    groups = [index % 4 for index in range(SAMPLES)]
    assert Counter(
        groups[index] for index in picks_of(OncePerGroup(8, CoreSetAcquisition, groups, 2))
    ) == dict.fromkeys(range(4), 2)


def test_a_pool_no_larger_than_the_query_is_labeled_whole():
    data = ActiveLearningDataModule(ToyDataset(), initial_size=SAMPLES - 9, batch_size=32)
    fit(OncePerGroup(9, MarginAcquisition, ["a"] * SAMPLES), data=data)
    assert data.pool.num_unlabeled == 0
