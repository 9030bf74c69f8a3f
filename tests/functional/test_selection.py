import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_al.functional import k_center, kmeans_plus_plus, power, selection, top_k

seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


SELECTORS = {
    "top_k": lambda points, budget, _: top_k(points.norm(dim=1), budget),
    "power": lambda points, budget, seed: power(points.norm(dim=1), budget, generator=generator(seed)),
    "k_center": lambda points, budget, _: k_center(points, budget, centers=points.new_zeros(1, points.shape[1])),
    "kmeans_plus_plus": lambda points, budget, seed: kmeans_plus_plus(points, budget, generator=generator(seed)),
}


def naive_k_center(points: np.ndarray, budget: int, centers: np.ndarray) -> list[int]:
    covered, rows = list(centers), []
    for _ in range(min(budget, len(points))):
        distances = [min(np.linalg.norm(x - c) for c in covered) for x in points]
        rows.append(max((row for row in range(len(points)) if row not in rows), key=lambda row: distances[row]))
        covered.append(points[rows[-1]])
    return rows


def naive_radius(points: np.ndarray, covered: np.ndarray) -> float:
    return max(min(np.linalg.norm(x - c) for c in covered) for x in points)


def assert_frequencies(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Each cell is binomial: 5 standard deviations fail by chance once in a million cells (the seeds are fixed)."""
    trials = counts.sum()
    deviation = np.abs(counts / trials - probabilities)
    assert (deviation <= 5 * np.sqrt(probabilities * (1 - probabilities) / trials)).all(), (counts, probabilities)


# ---------------------------------------------------------------- every selector


@pytest.mark.parametrize("name", SELECTORS)
@settings(max_examples=20, deadline=None)
@given(
    seed=seeds, total=st.integers(0, 9), width=st.integers(1, 4), budget=st.integers(1, 12), repeats=st.integers(1, 3)
)
def test_exact_count_of_distinct_rows(name, seed, total, width, budget, repeats):
    points = normal(seed, total, width, dtype=torch.float32).repeat(repeats, 1)
    rows = SELECTORS[name](points, budget, seed)
    assert (rows.dtype, rows.device.type, rows.shape) == (torch.long, "cpu", (min(budget, total * repeats),))
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(range(total * repeats))


@pytest.mark.parametrize("name", SELECTORS)
def test_seeded_by_the_generator_alone(name):
    points = normal(0, 60, 5)
    before = torch.get_rng_state()
    rows = [SELECTORS[name](points, 10, seed).tolist() for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert rows[0] == rows[1]
    assert (rows[0] == rows[2]) == (name in ("top_k", "k_center"))


@pytest.mark.parametrize("name", SELECTORS)
def test_input_is_left_alone_and_gradients_are_ignored(name):
    points = normal(1, 20, 3)
    copy = points.clone().requires_grad_()
    assert torch.equal(SELECTORS[name](copy, 5, 0), SELECTORS[name](points, 5, 0))
    assert torch.equal(points, copy)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("budget", [0, -1, 2.0, True, "3"])
def test_budget_errors(name, budget):
    message = rf"^`{name}\(budget={re.escape(repr(budget))}\)`: expected an integer of at least 1, got"
    with pytest.raises(ValueError, match=message):
        SELECTORS[name](torch.ones(4, 2), budget, 0)


# ---------------------------------------------------------------- scores


def test_top_k_breaks_ties_by_the_lower_row():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0, 3.0])
    assert top_k(scores, 5).tolist() == [1, 3, 5, 2, 0]
    assert top_k(torch.zeros(1000), 1000).tolist() == list(range(1000))


@settings(max_examples=20, deadline=None)
@given(scores=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=20), budget=st.integers(1, 25))
def test_top_k_equals_twin(scores, budget):
    expected = sorted(range(len(scores)), key=lambda row: -scores[row])[:budget]
    assert top_k(torch.tensor(scores), budget).tolist() == expected


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_power_picks_first_in_proportion_to_a_power_of_the_score(temperature):
    scores, noise = torch.tensor([1.0, 0.0, 2.0, 4.0]), generator(3)
    picks = [int(power(scores, 1, generator=noise, temperature=temperature)[0]) for _ in range(4000)]
    weights = scores.numpy() ** (1 / temperature)
    assert_frequencies(np.bincount(picks, minlength=4), weights / weights.sum())


def test_power_orders_zero_scores_last_and_at_random():
    scores, noise = torch.tensor([0.0, 1e-30, 0.0, 1.0, 0.0]), generator(4)
    rows = np.array([power(scores, 5, generator=noise).tolist() for _ in range(2000)])
    assert set(rows[:, :2].ravel()) == {1, 3}
    assert_frequencies(np.bincount(rows[:, 2], minlength=5)[[0, 2, 4]], np.full(3, 1 / 3))


def test_power_approaches_top_k_and_ignores_the_scale():
    scores = normal(5, 50).exp()
    assert torch.equal(power(scores, 20, generator=generator(), temperature=1e-9), top_k(scores, 20))
    assert torch.equal(power(scores, 20, generator=generator()), power(scores * 1e-12, 20, generator=generator()))


@pytest.mark.parametrize("name", ["top_k", "power"])
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3, 1), "expected shape (N,), got (3, 1); reduce each sample to one number first"),
        (torch.tensor([1.0, float("nan")]), "expected finite scores, got nan in row 1; check the model's output"),
        (torch.tensor([float("inf"), 0.0]), "expected finite scores, got inf in row 0"),
    ],
)
def test_score_errors(name, scores, message):
    options = {} if name == "top_k" else {"generator": generator()}
    with pytest.raises(ValueError, match=rf"^`{name}\(scores\)`: {re.escape(message)}"):
        getattr(selection, name)(scores, 1, **options)


def test_power_errors():
    with pytest.raises(
        ValueError, match=r"^`power\(scores\)`: expected non-negative scores, got a minimum of -0\.5; .*1 \+"
    ):
        power(torch.tensor([-0.5, 0.0]), 1, generator=generator())
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^`power\(temperature={temperature}\)`: .*for no noise use `top_k`"):
            power(torch.ones(2), 1, generator=generator(), temperature=temperature)


# ---------------------------------------------------------------- k-center


@settings(max_examples=25, deadline=None)
@given(
    seed=seeds, total=st.integers(1, 12), width=st.integers(1, 5), known=st.integers(1, 4), budget=st.integers(1, 14)
)
def test_k_center_equals_twin(seed, total, width, known, budget):
    points, centers = normal(seed, total, width), normal(seed + 1, known, width)
    assert k_center(points, budget, centers=centers).tolist() == naive_k_center(points.numpy(), budget, centers.numpy())


@settings(max_examples=15, deadline=None)
@given(seed=seeds, total=st.integers(1, 7), budget=st.integers(1, 3))
def test_k_center_covers_within_twice_the_optimum(seed, total, budget):
    points, centers = normal(seed, total, 2), normal(seed + 1, 2, 2)
    x, known = points.numpy(), centers.numpy()
    radius = naive_radius(x, np.vstack([known, x[k_center(points, budget, centers=centers).numpy()]]))
    subsets = itertools.combinations(range(total), min(budget, total))
    assert radius <= 2 * min(naive_radius(x, np.vstack([known, x[list(subset)]])) for subset in subsets) + 1e-12


@settings(max_examples=20, deadline=None)
@given(seed=seeds, total=st.integers(1, 20))
def test_k_center_permutation(seed, total):
    points, centers = normal(seed, total, 3), normal(seed + 1, 2, 3)
    order = torch.randperm(total, generator=generator(seed))
    assert torch.equal(order[k_center(points[order], 5, centers=centers)], k_center(points, 5, centers=centers))


@pytest.mark.parametrize("center", [0.0, 1e4])
def test_k_center_is_exact_for_float32_points_far_from_the_origin(center):
    points = normal(6, 40, 8, dtype=torch.float32) + 1e4
    centers = torch.full((1, 8), center)
    expected = naive_k_center(points.double().numpy(), 12, centers.double().numpy())
    assert k_center(points, 12, centers=centers).tolist() == expected


def test_k_center_takes_duplicates_last_and_by_the_lower_row():
    identical = torch.full((37, 10), 0.1)
    assert k_center(identical, 40, centers=identical[:1]).tolist() == list(range(37))
    # Two places, five copies each, neither exact in binary.
    points = (normal(7, 2, 64, dtype=torch.float32) + 3).repeat(5, 1)
    assert k_center(points, 10, centers=points[1:2]).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_k_center_does_not_depend_on_blocks(monkeypatch):
    points, centers = normal(8, 30, 4), normal(9, 25, 4)
    expected = k_center(points, 10, centers=centers)
    monkeypatch.setattr(selection, "_BLOCK_ELEMENTS", 70)
    assert torch.equal(k_center(points, 10, centers=centers), expected)
    monkeypatch.setattr(selection, "_BLOCK_ELEMENTS", 1)
    assert torch.equal(k_center(points, 10, centers=centers), expected)


def test_k_center_ignores_autocast_and_upcasts():
    points, centers = normal(10, 200, 32, dtype=torch.bfloat16), normal(11, 20, 32, dtype=torch.bfloat16)
    expected = k_center(points.float(), 50, centers=centers.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(k_center(points, 50, centers=centers.double()), expected)


# ---------------------------------------------------------------- k-means++


@pytest.mark.parametrize("known", [0, 2])
def test_kmeans_plus_plus_draws_in_proportion_to_the_squared_distance(known):
    # The second point is close to the origin: it would hardly be drawn if the origin stayed a center.
    points = torch.tensor([[4.0, 0.0], [0.5, 0.0], [3.0, 3.0], [-1.0, 2.0]])
    centers = torch.tensor([[0.0, 1.0], [5.0, 5.0]])[:known] if known else None
    draws = generator(12)
    pairs = np.array([kmeans_plus_plus(points, 2, generator=draws, centers=centers).tolist() for _ in range(4000)])

    x = points.double().numpy()
    start = ((x[:, None] - (np.zeros((1, 2)) if centers is None else centers.numpy())) ** 2).sum(-1).min(axis=1)
    to_pick = ((x[:, None] - x) ** 2).sum(-1)
    second = to_pick if centers is None else np.minimum(to_pick, start)
    expected = (start / start.sum())[:, None] * second / second.sum(axis=1, keepdims=True)
    assert_frequencies(np.bincount(pairs @ [4, 1], minlength=16), expected.ravel())


def test_kmeans_plus_plus_takes_duplicates_last_and_at_random():
    places = normal(13, 3, 64, dtype=torch.float32) + 3
    rows = np.array([kmeans_plus_plus(places.repeat(3, 1), 9, generator=generator(s)).tolist() for s in range(300)])
    assert (np.sort(rows[:, :3] % 3, axis=1) == [0, 1, 2]).all()
    # By symmetry every copy is as likely as the others to be the fourth pick within its place.
    assert_frequencies(np.bincount(rows[:, 3] // 3, minlength=3), np.full(3, 1 / 3))


def test_kmeans_plus_plus_draws_uniformly_where_all_is_zero():
    draws = generator(14)
    firsts = [int(kmeans_plus_plus(torch.zeros(4, 2), 2, generator=draws)[0]) for _ in range(1000)]
    assert_frequencies(np.bincount(firsts, minlength=4), np.full(4, 1 / 4))


def test_kmeans_plus_plus_never_starts_where_a_center_is():
    points = normal(15, 6, 3)
    for seed in range(50):
        assert int(kmeans_plus_plus(points, 1, generator=generator(seed), centers=points[:5])[0]) == 5


# ---------------------------------------------------------------- errors of points


@pytest.mark.parametrize("name", ["k_center", "kmeans_plus_plus"])
@pytest.mark.parametrize(
    ("points", "centers", "message"),
    [
        (
            torch.ones(3),
            torch.zeros(1, 3),
            "(points)`: expected a floating tensor of shape (N, D) with D >= 1, got torch.",
        ),
        (torch.ones(3, 2, 2), torch.zeros(1, 2), "shape (3, 2, 2); flatten each sample to one vector first"),
        (torch.ones(3, 0), torch.zeros(1, 0), "with D >= 1, got torch.float32 of shape (3, 0)"),
        (torch.ones(3, 2, dtype=torch.long), torch.zeros(1, 2), "expected a floating tensor"),
        (torch.tensor([[1.0], [math.nan]]), torch.zeros(1, 1), "got a squared norm of nan in row 1; check the model's"),
        (
            torch.tensor([[math.inf], [1.0]]),
            torch.zeros(1, 1),
            "(points)`: expected finite values whose squares fit torch.",
        ),
        (
            torch.tensor([[1.0], [1e19]]),
            torch.zeros(1, 1),
            "in row 1; check the model's output for this sample, or scale",
        ),
        (torch.ones(3, 2), torch.zeros(0, 2), "(centers)`: expected shape (M, 2) with M >= 1, got (0, 2)"),
        (
            torch.ones(3, 2),
            torch.zeros(1, 3),
            "got (1, 3); without covered points pass the origin, `torch.zeros(1, 2)`",
        ),
        (torch.ones(3, 2), torch.zeros(2), "(centers)`: expected shape (M, 2) with M >= 1, got (2,)"),
        (torch.ones(3, 1), torch.tensor([[0.0], [math.nan]]), "(centers)`: expected finite values whose squares"),
    ],
)
def test_point_errors(name, points, centers, message):
    options = {} if name == "k_center" else {"generator": generator()}
    with pytest.raises(ValueError, match=rf"^`{name}.*{re.escape(message)}"):
        getattr(selection, name)(points, 1, centers=centers, **options)
