from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_al import (
    CoreSetAcquisition,
    NoiseStabilityAcquisition,
    ProbCoverAcquisition,
    Query,
    TypiClustAcquisition,
)
from lightning_al.numerics.seeding import make_generator

NOISE = make_generator(0)


def make_query(indices, labeled=None, width=2):
    """A query whose rows say which sample they are of."""
    rows = torch.tensor([[float(index)] * width for index in indices]).reshape(len(indices), width)
    return Query(rows, indices, 3, NOISE, labeled)


def test_picks_are_gone_and_count_as_labeled_while_others_are_gone_only():
    query = make_query([2, 3, 5, 7, 11], labeled=torch.tensor([[-1.0, -1.0]]))
    left = query.without([7, 3], 2, others=[11])
    assert list(left.indices) == [2, 5]
    assert left.pool.tolist() == [[2, 2], [5, 5]]
    assert left.labeled.tolist() == [[-1, -1], [3, 3], [7, 7]]
    assert left.budget == 2
    assert left.pick(torch.tensor([1, 0])) == [5, 2]


def test_what_it_was_made_from_stays_as_it_was():
    query = make_query([2, 3, 5], labeled=torch.zeros(1, 2))
    before = {field.name: getattr(query, field.name) for field in fields(query)}
    left = query.without([3], 1)
    assert all(getattr(query, name) is value for name, value in before.items())
    assert (query.indices, len(query.pool), len(query.labeled)) == ([2, 3, 5], 3, 1)
    assert left.generator is NOISE, "later draws go on where those before stopped"


def test_a_strategy_that_does_not_ask_for_the_labeled_part_still_gets_none_of_it():
    left = make_query([2, 3, 5]).without([3], 1)
    assert left.labeled is None


@pytest.mark.parametrize(
    "strategy",
    [
        CoreSetAcquisition(3),
        NoiseStabilityAcquisition(3, selection="lcmd"),
        ProbCoverAcquisition(3, radius=1.0),
        TypiClustAcquisition(3),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_strategy_that_selects_by_the_labeled_part_asks_for_it(strategy):
    with pytest.raises(ValueError, match=r"`Query\(labeled=None\)`: this strategy selects by the rows of the labeled"):
        strategy.select(make_query(range(9)))


def test_without_nothing_is_everything():
    query = make_query([2, 3, 5], labeled=torch.zeros(0, 2))
    left = query.without([], 3)
    assert (list(left.indices), left.pool.tolist(), left.labeled.shape) == ([2, 3, 5], query.pool.tolist(), (0, 2))
    assert query.without([2, 3, 5], 0).pool.shape == (0, 2)
    assert not len(query.without([], 1, others=[9, 5, 3, 2]).indices)


@given(
    indices=st.lists(st.integers(0, 30), unique=True, max_size=12).map(sorted),
    picked=st.sets(st.integers(0, 30)),
    refused=st.sets(st.integers(0, 30)),
    shape=st.sampled_from([(), (0,), (3,), (2, 2)]),
)
def test_rows_stay_with_their_indices(indices, picked, refused, shape):
    rows = torch.tensor([float(index) for index in indices]).reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    left = Query(rows, indices, 1, NOISE, rows[:0]).without(list(picked), 1, others=list(refused))
    kept = [index for index in indices if index not in picked | refused]
    assert list(left.indices) == kept
    for found, expected in ((left.pool, kept), (left.labeled, [index for index in indices if index in picked])):
        assert found.shape == (len(expected), *shape)
        assert all((row == index).all() for row, index in zip(found, expected, strict=True))
