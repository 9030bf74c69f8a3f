import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_al.formulas import greedy
from lightning_al.functional import k_center, lcmd


def points_of(seed, size=40, dimensions=3):
    return torch.randn(size, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(points, centers, budget):
    """The definition in NumPy, all distances anew for each pick."""
    x, picks = points.numpy(), []
    while len(picks) < budget:
        known = np.concatenate([centers.numpy(), x[picks]])
        squares = ((x[:, None] - known[None]) ** 2).sum(2)
        owner, nearest = squares.argmin(1), squares.min(1)
        sizes = np.array([nearest[owner == c].sum() for c in range(len(known))])
        picks.append(int(np.where(owner == sizes.argmax(), nearest, -1).argmax()))
    return picks


@pytest.mark.parametrize("seed", range(5))
def test_picks_what_the_definition_picks(seed):
    points, centers = points_of(seed), points_of(seed + 100, size=4)
    assert lcmd(points, 15, centers=centers).tolist() == by_definition(points, centers, 15)


def test_a_crowd_beats_an_outlier():
    crowd = torch.linspace(4.0, 5.0, 20).unsqueeze(1)
    points = torch.cat([crowd, torch.tensor([[-9.0]])])
    centers = torch.tensor([[0.0], [-1.0]])
    assert lcmd(points, 1, centers=centers).tolist() == [19]
    assert k_center(points, 1, centers=centers).tolist() == [20]


def test_does_not_depend_on_tiles_or_on_how_many_centers_there_are_at_a_time(monkeypatch):
    points, centers = points_of(1, size=90), points_of(2, size=30)
    whole = lcmd(points, 20, centers=centers)
    monkeypatch.setattr(greedy, "_CANDIDATES", 7)
    monkeypatch.setattr(greedy, "_BLOCK_ELEMENTS", 50)
    assert torch.equal(lcmd(points, 20, centers=centers), whole)


def test_neither_scale_nor_place_matters():
    points, centers = points_of(3), points_of(4, size=5)
    picks = lcmd(points, 10, centers=centers)
    assert torch.equal(lcmd(1e-4 * points, 10, centers=1e-4 * centers), picks)
    assert torch.equal(lcmd(points + 100, 10, centers=centers + 100), picks)


def test_duplicates_come_last():
    points = torch.tensor([[1.0, 1.0], [1.0, 1.0], [3.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    rows = lcmd(points, 5, centers=torch.zeros(1, 2)).tolist()
    assert rows[:2] == [2, 0]
    assert sorted(rows) == list(range(5))


@given(seed=st.integers(0, 1000), size=st.integers(1, 20), budget=st.integers(1, 25), known=st.integers(1, 5))
def test_picks_are_distinct_and_equivariant(seed, size, budget, known):
    points, centers = points_of(seed, size), points_of(seed + 1, known)
    rows = lcmd(points, budget, centers=centers)
    assert len(set(rows.tolist())) == len(rows) == min(size, budget)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    assert order[lcmd(points[order], budget, centers=centers)].tolist() == rows.tolist()


def test_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"`lcmd\(budget=0\)`"):
        lcmd(torch.ones(2, 2), 0, centers=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"`lcmd\(centers\)`: expected shape \(M, 2\) with M >= 1, got \(0, 2\)"):
        lcmd(torch.ones(2, 2), 1, centers=torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"`lcmd\(points\)`: expected finite values"):
        lcmd(torch.full((2, 2), torch.nan), 1, centers=torch.zeros(1, 2))
