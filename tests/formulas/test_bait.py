import itertools
import re

import numpy as np
import pytest
import torch

from lightning_al.formulas.bait import bait
from lightning_al.numerics.seeding import make_generator


def problem(seed, count=40, labeled=8, size=6, copies=0):
    generator = make_generator(seed)
    points = torch.randn(count + labeled, size, generator=generator, dtype=torch.float64)
    probs = 0.5 + 0.5 * torch.rand(count + labeled, generator=generator, dtype=torch.float64)
    weights = probs * (1 - probs)
    points, weights = torch.cat([points[:copies], points]), torch.cat([weights[:copies], weights])
    count += copies
    return {
        "points": points[:count],
        "labeled": points[count:],
        "weights": weights[:count],
        "labeled_weights": weights[count:],
    }


class Explicit:
    """The criterion with an explicit inverse for every set of picks."""

    def __init__(self, points, labeled, weights, labeled_weights, budget, ridge=1.0):
        moments = [np.einsum("n,ni,nj->nij", w, x, x) for x, w in ((points, weights), (labeled, labeled_weights))]
        self.fisher = np.concatenate(moments).mean(0)
        total = len(labeled) + budget
        self.start = ridge * np.eye(points.shape[1]) + moments[1].sum(0) / total
        self.added = moments[0] * budget / total
        self.budget = budget

    def __call__(self, rows):
        return np.trace(np.linalg.inv(self.start + self.added[list(rows)].sum(0)) @ self.fisher)

    def picks(self):
        rows = []
        while len(rows) < min(2 * self.budget, len(self.added)):
            free = [row for row in range(len(self.added)) if row not in rows]
            rows.append(min(free, key=lambda row: self([*rows, row])))
        while len(rows) > self.budget:
            rows.remove(min(rows, key=lambda row: self([other for other in rows if other != row])))
        return rows


def explicit(arguments, budget, **options):
    return Explicit(*(tensor.numpy() for tensor in arguments.values()), budget, **options)


@pytest.mark.parametrize(
    ("seed", "change"),
    [
        (0, {}),
        (1, {"labeled": 0}),
        (2, {"copies": 10}),
        (3, {"count": 8}),  # twice the budget is more than there are
        (4, {"count": 60, "size": 20}),
    ],
)
def test_picks_are_those_with_explicit_inverses(seed, change):
    arguments = problem(seed, **change)
    assert bait(**arguments, budget=5).tolist() == explicit(arguments, 5).picks()
    assert bait(**arguments, budget=5, ridge=0.1).tolist() == explicit(arguments, 5, ridge=0.1).picks()


def test_without_weights_it_is_that_of_a_linear_regression():
    arguments = problem(5)
    ones = {**arguments, "weights": torch.ones(40), "labeled_weights": torch.ones(8)}
    picks = bait(arguments["points"], 5, labeled=arguments["labeled"]).tolist()
    assert picks == bait(**ones, budget=5).tolist() == explicit(ones, 5).picks() != bait(**arguments, budget=5).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_picks_are_nearly_the_best_set_and_better_than_random_ones(seed):
    arguments = problem(seed, count=12)
    criterion = explicit(arguments, 3)
    value = criterion(bait(**arguments, budget=3).tolist())
    every = [criterion(rows) for rows in itertools.combinations(range(12), 3)]
    assert min(every) <= value + 1e-12
    assert value <= min(every) + 0.05 * (np.median(every) - min(every))


def test_many_updates_leave_the_criterion_exact():
    generator = make_generator(6)
    points = 30 * torch.randn(2000, 32, generator=generator).relu()
    rows = bait(points[:1900], 60, labeled=points[1900:])
    criterion = explicit({"p": points[:1900], "l": points[1900:], "w": torch.ones(1900), "v": torch.ones(100)}, 60)
    others = [criterion(torch.randperm(1900, generator=generator)[:60].tolist()) for _ in range(20)]
    assert len(set(rows.tolist())) == 60
    assert criterion(rows.tolist()) < min(others)
    # no exchange of one pick improves on it by much: the rank-one updates did not drift
    swapped = [criterion([*rows.tolist()[1:], row]) for row in range(0, 1900, 10)]
    assert criterion(rows.tolist()) < min(swapped) * 1.01


def test_all_points_are_picked_where_there_are_no_more():
    arguments = problem(7, count=4)
    assert sorted(bait(**arguments, budget=9).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ridge": 0.0}, "`bait(labeled, ridge=0.0)`: expected a positive finite ridge"),
        ({"labeled": torch.ones(2, 4)}, "(M, 6), got (2, 4)"),
        ({"weights": torch.ones(3)}, "`bait(weights)`: expected 40 non-negative weights, one per point, got 3"),
        ({"labeled_weights": torch.full((8,), -1.0)}, "`bait(labeled_weights)`: expected 8 non-negative weights"),
        ({"budget": 0}, "`bait(budget=0)`: expected an integer of at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bait(**{**problem(0), "budget": 3, **change})
