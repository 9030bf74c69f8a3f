import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_al.formulas import coverage, greedy
from lightning_al.functional import k_center, kmeans_plus_plus
from tests.formulas.draws import assert_frequencies, few_or_many_trials, generator, normal
from tests.sweep import sampled

seeds = st.integers(0, 2**31)


def naive_k_center(points: np.ndarray, budget: int, centers: np.ndarray) -> list[int]:
    to_points = ((points[:, None] - points) ** 2).sum(-1)
    nearest, rows = ((points[:, None] - centers) ** 2).sum(-1).min(axis=1), []
    for _ in points[:budget]:
        rows.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, to_points[rows[-1]])
        nearest[rows] = -1
    return rows


def naive_radius(points: np.ndarray, covered: np.ndarray) -> float:
    return max(min(np.linalg.norm(x - c) for c in covered) for x in points)


# ---------------------------------------------------------------- k-center


@given(
    seed=seeds, total=st.integers(1, 12), width=st.integers(1, 5), known=st.integers(1, 4), budget=st.integers(1, 14)
)
def test_k_center_equals_twin(seed, total, width, known, budget):
    points, centers = normal(seed, total, width), normal(seed + 1, known, width)
    assert k_center(points, budget, centers=centers).tolist() == naive_k_center(points.numpy(), budget, centers.numpy())


@given(seed=seeds, total=st.integers(1, 7), budget=st.integers(1, 3))
def test_k_center_covers_within_twice_the_optimum(seed, total, budget):
    points, centers = normal(seed, total, 2), normal(seed + 1, 2, 2)
    x, known = points.numpy(), centers.numpy()
    radius = naive_radius(x, np.vstack([known, x[k_center(points, budget, centers=centers).numpy()]]))
    subsets = itertools.combinations(range(total), min(budget, total))
    assert radius <= 2 * min(naive_radius(x, np.vstack([known, x[list(subset)]])) for subset in subsets) + 1e-12


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


def test_k_center_does_not_depend_on_the_tiles(monkeypatch):
    points, centers = normal(8, 30, 4), normal(9, 25, 4)
    expected = k_center(points, 10, centers=centers)
    for elements in (70, 1):
        monkeypatch.setattr(greedy, "_BLOCK_ELEMENTS", elements)
        assert torch.equal(k_center(points, 10, centers=centers), expected)


# Whole numbers whose mean is 0: every distance is exact, so ties are ties.
LATTICE = torch.cartesian_prod(*3 * [torch.arange(-3.0, 4.0)])
POINTS = {
    "random": normal(20, 400, 6),
    "clustered": (10 * normal(21, 8, 3)).repeat(50, 1) + 0.1 * normal(22, 400, 3),
    "duplicated": LATTICE[::3].repeat(4, 1)[torch.randperm(460, generator=generator(23))],
    "lattice": LATTICE,
}


@pytest.mark.parametrize(
    ("name", "candidates"),
    sampled(
        itertools.product(POINTS, (1, 2, 7, 64, 256)),
        [("random", 1), ("clustered", 2), ("duplicated", 7), ("lattice", 64), ("random", 256)],
    ),
)
def test_blocks_of_k_center_pick_what_the_naive_greedy_picks(monkeypatch, name, candidates):
    monkeypatch.setattr(greedy, "_CANDIDATES", candidates)
    points = POINTS[name]
    centers = points.new_zeros(1, points.shape[1])
    rows = k_center(points, len(points), centers=centers)
    assert rows.tolist() == naive_k_center(points.double().numpy(), len(points), centers.double().numpy())


def test_k_center_ignores_autocast_and_upcasts():
    points, centers = normal(10, 200, 32, dtype=torch.bfloat16), normal(11, 20, 32, dtype=torch.bfloat16)
    expected = k_center(points.float(), 50, centers=centers.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(k_center(points, 50, centers=centers.double()), expected)


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_k_center_ignores_the_matmul_precision_and_restores_it(precision):
    points = normal(24, 300, 32, dtype=torch.float32).repeat(2, 1)
    expected = k_center(points, 400, centers=points[:1])
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(k_center(points, 400, centers=points[:1]), expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


# ---------------------------------------------------------------- k-means++


@few_or_many_trials
@pytest.mark.parametrize("known", [0, 2])
def test_kmeans_plus_plus_draws_in_proportion_to_the_squared_distance(known, trials):
    # The second point is close to the origin: it would hardly be drawn if the origin stayed a center.
    points = torch.tensor([[4.0, 0.0], [0.5, 0.0], [3.0, 3.0], [-1.0, 2.0]])
    centers = torch.tensor([[0.0, 1.0], [5.0, 5.0]])[:known] if known else None
    draws = generator(12)
    pairs = np.array([kmeans_plus_plus(points, 2, generator=draws, centers=centers).tolist() for _ in range(trials)])

    x = points.double().numpy()
    start = ((x[:, None] - (np.zeros((1, 2)) if centers is None else centers.numpy())) ** 2).sum(-1).min(axis=1)
    to_pick = ((x[:, None] - x) ** 2).sum(-1)
    second = to_pick if centers is None else np.minimum(to_pick, start)
    expected = (start / start.sum())[:, None] * second / second.sum(axis=1, keepdims=True)
    assert_frequencies(np.bincount(pairs @ [4, 1], minlength=16), expected.ravel())


@few_or_many_trials
@pytest.mark.parametrize("candidates", [1, 3, 256])
def test_rejection_draws_the_second_and_third_pick_from_the_exact_distribution(monkeypatch, candidates, trials):
    monkeypatch.setattr(greedy, "_CANDIDATES", candidates)
    points = torch.tensor([[2.0, 0.0], [2.5, 0.5], [-1.0, 2.0], [-1.5, 2.5], [0.0, -2.0]])
    x, draws = points.double().numpy(), generator(25)
    picks = [tuple(kmeans_plus_plus(points, 3, generator=draws).tolist()) for _ in range(trials)]
    squared = ((x[:, None] - x) ** 2).sum(-1)
    start = (x**2).sum(-1)
    expected = {}
    for i, j, k in itertools.permutations(range(5), 3):
        nearest = squared[i], np.minimum(squared[i], squared[j])
        expected[i, j, k] = start[i] / start.sum() * nearest[0][j] / nearest[0].sum() * nearest[1][k] / nearest[1].sum()
    counts = np.array([picks.count(triple) for triple in expected])
    probabilities = np.array(list(expected.values()))
    assert probabilities.sum() == pytest.approx(1)
    assert_frequencies(counts, probabilities)
    # Over all 60 cells: the statistic has mean 59 and standard deviation sqrt(2 * 59).
    assert ((counts - trials * probabilities) ** 2 / (trials * probabilities)).sum() < 59 + 5 * math.sqrt(2 * 59)


def test_rejection_survives_that_nearly_all_weight_goes_with_the_first_picks(monkeypatch):
    blocks = []
    d2_sampling_block = coverage.d2_sampling_block
    monkeypatch.setattr(
        coverage,
        "d2_sampling_block",
        lambda *args, **options: blocks.append(d2_sampling_block(*args, **options)) or blocks[-1],
    )
    # Five places, 60 near-duplicates each: five picks take all but about a millionth of the weight.
    places = 10 * normal(26, 5, 8)
    points = places.repeat(60, 1) + 1e-3 * normal(27, 300, 8)
    rows = kmeans_plus_plus(points, 300, generator=generator(28)).tolist()
    assert sorted(rows) == list(range(300))
    assert sorted(row % 5 for row in rows[:5]) == [0, 1, 2, 3, 4]
    assert len(blocks) < 40


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


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("name", ["k_center", "kmeans_plus_plus"])
def test_many_picks_take_few_products_and_little_memory(monkeypatch, name):
    class Record(TorchDispatchMode):
        largest = products = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            self.products += function is torch.ops.aten.mm.default
            if isinstance(result, Tensor):
                self.largest = max(self.largest, result.numel())
            return result

    monkeypatch.setattr(greedy, "_BLOCK_ELEMENTS", 2**18)
    points = normal(29, 3000, 16)
    options = {"centers": points[:1]} | ({} if name == "k_center" else {"generator": generator(30)})
    with Record() as record:
        rows = getattr(coverage, name)(points, 900, **options)
    assert len(rows) == 900
    assert 900 // 256 < record.products < 200
    assert record.largest <= 2**18


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
        getattr(coverage, name)(points, 1, centers=centers, **options)
