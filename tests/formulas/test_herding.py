import itertools
import re

import numpy as np
import pytest
import torch
from skactiveml.pool import MaxHerding

from lightning_al.formulas.herding import herding, labeled_width, neighbor_width
from lightning_al.numerics.seeding import make_generator


def problem(seed, count=60, labeled=6, size=5, copies=0):
    generator = make_generator(seed)
    points = torch.randn(count + labeled, size, generator=generator)
    points = torch.nn.functional.normalize(torch.cat([points[:count], points[:copies], points[count:]]))
    return points[: count + copies], points[count + copies :], torch.rand(count + copies, generator=generator)


def kernel(first, second, width):
    return np.exp(-((first[:, None] - second[None]) ** 2).sum(-1) / width**2)


def coverage(points, labeled, weights, width, rows):
    centers = np.vstack([labeled, points[rows]])
    return (weights * kernel(points, centers, width).max(1, initial=0)).sum()


def brute_force(points, labeled, weights, budget, width):
    """Return the greedy picks of a loop over all points, in double precision, and their gains."""
    points, labeled, weights = (tensor.double().numpy() for tensor in (points, labeled, weights))
    rows, gains = [], []
    for _ in range(budget):
        before = coverage(points, labeled, weights, width, rows)
        free = [row for row in range(len(points)) if row not in rows]
        values = [coverage(points, labeled, weights, width, [*rows, row]) - before for row in free]
        rows.append(free[int(np.argmax(values))])
        gains.append(max(values))
    return rows, gains


@pytest.mark.parametrize("width", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("labeled", [0, 6])
def test_picks_are_those_of_a_loop_over_all_points_and_gains_fall(labeled, width):
    points, centers, weights = problem(labeled, labeled=labeled)
    rows, gains = brute_force(points, centers, weights, 9, width)
    assert herding(points, 9, labeled=centers, width=width, weights=weights).tolist() == rows
    assert herding(points, 9, labeled=centers, width=width, weights=1e6 * weights).tolist() == rows
    assert (np.diff(gains) <= 1e-9).all()


def test_blocks_of_outdated_gains_change_no_pick():
    points, labeled, weights = problem(3, count=300)
    rows, _ = brute_force(points, labeled, weights, 4, 0.5)
    assert herding(points, 4, labeled=labeled, width=0.5, weights=weights).tolist() == rows


def test_without_weights_it_is_that_of_scikit_activeml():
    points, labeled, _ = problem(0)
    samples = torch.cat([points, labeled]).double().numpy()
    labels = np.r_[np.full(60, np.nan), np.zeros(6)]
    expected = MaxHerding(random_state=0, metric_dict={"gamma": 1 / 0.7**2}).query(X=samples, y=labels, batch_size=8)
    assert herding(points, 8, labeled=labeled, width=0.7).tolist() == list(expected)


@pytest.mark.parametrize("seed", range(3))
def test_greedy_picks_cover_at_least_what_submodularity_promises(seed):
    points, labeled, weights = problem(seed, count=12, labeled=0)
    arrays = [tensor.double().numpy() for tensor in (points, labeled, weights)]
    best = max(coverage(*arrays, 0.6, list(rows)) for rows in itertools.combinations(range(12), 3))
    rows = herding(points, 3, labeled=labeled, width=0.6, weights=weights).tolist()
    assert coverage(*arrays, 0.6, rows) >= (1 - 1 / np.e) * best


def test_a_narrow_kernel_picks_the_largest_weights():
    points, labeled, weights = problem(1)
    rows = herding(points, 7, labeled=labeled, width=1e-4, weights=weights)
    assert rows.tolist() == weights.topk(7).indices.tolist()


def test_copies_come_last_and_every_row_once():
    points, labeled, _ = problem(2, count=20, copies=20)
    rows = herding(points, 99, labeled=labeled, width=0.3).tolist()
    assert sorted(rows) == list(range(40))
    assert len({row % 20 for row in rows[:20]}) == 20


def test_widths_are_distances_of_neighbors_and_of_labels():
    points, labeled, _ = problem(4, count=500)
    distances = torch.cdist(points.double(), points.double()).sort(dim=1).values
    assert neighbor_width(points) == pytest.approx(float(distances[:, 10].median()), rel=1e-4)
    pairs = torch.pdist(labeled.double())
    assert labeled_width(torch.cat([labeled, labeled])) == pytest.approx(float(pairs.min()), rel=1e-4)
    same = torch.ones(30, 2)
    assert neighbor_width(same) == labeled_width(same) == labeled_width(same[:0]) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0.0}, "`herding(labeled, width=0.0)`: expected a positive finite width"),
        ({"width": float("nan")}, "`herding(labeled, width=nan)`: expected a positive finite width"),
        ({"labeled": torch.ones(2, 4)}, "(M, 5), got (2, 4)"),
        ({"weights": torch.ones(3)}, "expected 60 non-negative weights, one per point, got 3"),
        ({"weights": torch.full((60,), -1.0)}, "expected 60 non-negative weights"),
        ({"budget": 0}, "`herding(budget=0)`: expected an integer of at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    points, labeled, weights = problem(0)
    arguments = {"budget": 3, "labeled": labeled, "width": 1.0, "weights": weights, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        herding(points, **arguments)
