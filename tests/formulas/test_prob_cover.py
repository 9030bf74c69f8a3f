import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skactiveml.pool import ProbCover

from lightning_al.formulas.clusters import k_means
from lightning_al.functional import prob_cover, purity_radius


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points_of(seed, size=40, dimensions=2):
    return torch.randn(size, dimensions, generator=generator(seed), dtype=torch.float64)


def greedy(points, labeled, radius, budget):
    """The definition in NumPy: picks until nothing is uncovered, ties to the lower row."""
    x, known = points.numpy(), labeled.numpy()
    inside = np.linalg.norm(x[:, None] - x[None], axis=2) <= radius
    covered = (np.linalg.norm(x[:, None] - known[None], axis=2) <= radius).any(1)
    picks = []
    while len(picks) < budget and not covered.all():
        degree = (inside & ~covered).sum(1)
        degree[picks] = -1
        picks.append(int(degree.argmax()))
        covered |= inside[picks[-1]]
    return picks


@pytest.mark.parametrize("radius", [0.2, 0.7, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_picks_what_the_definition_picks(seed, radius):
    points, labeled = points_of(seed), points_of(seed + 100, size=3)
    expected = greedy(points, labeled, radius, 12)
    rows = prob_cover(points, 12, labeled=labeled, radius=radius, generator=generator())
    assert rows.tolist()[: len(expected)] == expected
    assert len(set(rows.tolist())) == 12


# scikit-activeml, which of a single radius says that it is not pure
@pytest.mark.filterwarnings("ignore:The maximum purity was -1")
@pytest.mark.parametrize("seed", range(3))
def test_covers_as_many_as_scikit_activeml_at_every_pick(seed):
    """It breaks ties at random, so the numbers covered are compared, up to the first tie pick by pick."""
    points, labeled = points_of(seed, size=60), points_of(seed + 50, size=2)
    rows = prob_cover(points, 5, labeled=labeled, radius=0.6, generator=generator())
    y = np.full(62, np.nan)
    y[-2:] = 0
    theirs = ProbCover(n_classes=2, deltas=[0.6], random_state=0)
    _, gains = theirs.query(torch.cat([points, labeled]).numpy(), y, batch_size=5, return_utilities=True)
    distances = torch.cdist(points, torch.cat([labeled, points[rows]]))
    covered = [(distances[:, : 2 + n] <= 0.6).any(1).sum().item() for n in range(6)]
    assert covered[1] - covered[0] == np.nanmax(gains[0])
    first = gains[0][:60]
    if (first == np.nanmax(first)).sum() == 1:
        assert rows[0] == np.nanargmax(first)
    assert rows.tolist() == greedy(points, labeled, 0.6, 5)


def test_what_is_near_a_label_is_covered():
    points = torch.tensor([[0.0], [0.1], [0.2], [0.3], [5.0], [5.1], [9.0]])
    rows = prob_cover(points, 2, labeled=torch.tensor([[0.15]]), radius=0.5, generator=generator())
    assert rows.tolist() == [4, 6]


def test_the_rest_is_drawn_once_all_is_covered():
    points = points_of(0, size=30)
    far = [prob_cover(points, 10, labeled=points[:0], radius=100.0, generator=generator(s)).tolist() for s in (0, 0, 1)]
    assert far[0] == far[1] != far[2]
    assert far[0][0] == far[2][0] == 0
    assert len(set(far[0])) == 10


def test_at_radius_zero_duplicates_cover_each_other():
    points = torch.tensor([[1.0, 2.0], [0.3, 0.7], [0.3, 0.7], [0.3, 0.7], [1.0, 2.0]]) * 1000
    rows = prob_cover(points, 2, labeled=points[:0], radius=0.0, generator=generator())
    assert rows.tolist() == [1, 0]


def test_greedy_covers_most_of_what_could_be(monkeypatch):
    points = points_of(4, size=14)
    inside = (torch.cdist(points, points) <= 0.5).numpy()
    best = max(inside[list(rows)].any(0).sum() for rows in itertools.combinations(range(14), 3))
    rows = prob_cover(points, 3, labeled=points[:0], radius=0.5, generator=generator())
    assert inside[rows.tolist()].any(0).sum() >= (1 - 1 / np.e) * best


def test_tiles_do_not_matter(monkeypatch):
    points = points_of(7, size=70)
    whole = prob_cover(points, 9, labeled=points[:2], radius=0.4, generator=generator())
    radius = purity_radius(points, clusters=3, seed=0)
    # the package gives the function for this name
    monkeypatch.setattr(sys.modules["lightning_al.formulas.prob_cover"], "_TILE", 16)
    assert torch.equal(prob_cover(points, 9, labeled=points[:2], radius=0.4, generator=generator()), whole)
    assert purity_radius(points, clusters=3, seed=0) == radius


@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 20),
    budget=st.integers(1, 25),
    labeled=st.integers(0, 4),
    radius=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_picks_are_distinct_and_seeded(seed, size, budget, labeled, radius):
    points = points_of(seed, size=size + labeled)
    options = {"labeled": points[size:], "radius": radius}
    rows = prob_cover(points[:size], budget, generator=generator(seed), **options)
    assert len(set(rows.tolist())) == len(rows) == min(size, budget)
    assert set(rows.tolist()) <= set(range(size))
    assert torch.equal(rows, prob_cover(points[:size], budget, generator=generator(seed), **options))


@pytest.mark.parametrize("purity", [0.5, 0.95, 1.0])
def test_the_purity_is_reached_and_no_larger_radius_reaches_it(purity):
    points = points_of(2, size=80)
    radius = purity_radius(points, clusters=4, seed=1, purity=purity)
    labels = k_means(points, 4, 1)
    distances = torch.cdist(points, points)
    foreign = labels.unsqueeze(1) != labels

    def share_of_pure_balls(r):
        return 1 - ((distances <= r) & foreign).any(1).double().mean().item()

    assert share_of_pure_balls(radius) >= purity > share_of_pure_balls(radius * (1 + 2e-6))


def test_the_grid_of_scikit_activeml_brackets_the_radius():
    points = points_of(2, size=80)
    radius = purity_radius(points, clusters=4, seed=1)
    y = np.full(80, np.nan)
    grid = np.linspace(radius / 2, radius * 1.5, 42).tolist()
    theirs = ProbCover(n_classes=4, deltas=grid, cluster_algo_dict={"random_state": 1, "n_init": 1}, random_state=1)
    theirs.query(points.numpy(), y)
    assert theirs.delta_max_ <= radius < theirs.delta_max_ + grid[1] - grid[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1.0}, r"`prob_cover\(labeled, radius=-1.0\)`: expected a finite radius of at least 0"),
        ({"radius": float("nan")}, "radius=nan"),
        ({"labeled": torch.ones(1, 5)}, r"labeled points of shape \(M, 2\), got \(1, 5\)"),
        ({"budget": True}, r"`prob_cover\(budget=True\)`"),
    ],
)
def test_refuses_what_cannot_be(options, message):
    arguments = {"budget": 1, "labeled": torch.ones(1, 2), "radius": 1.0, "generator": generator(), **options}
    with pytest.raises(ValueError, match=message):
        prob_cover(torch.ones(4, 2), **arguments)


def test_refuses_clusters_that_cannot_be():
    with pytest.raises(ValueError, match=r"`purity_radius\(clusters=1, purity=0.95\)`: expected at least 2 clusters"):
        purity_radius(torch.ones(4, 2), clusters=1, seed=0)
    with pytest.raises(ValueError, match="got points that coincide"):
        purity_radius(torch.ones(4, 2), clusters=2, seed=0)
