import itertools
import math
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_al.formulas import greedy
from lightning_al.formulas.badge import badge, hypothetical_residuals
from lightning_al.functional import kmeans_plus_plus
from tests.formulas.draws import assert_frequencies, few_or_many_trials, generator, normal

with warnings.catch_warnings():  # scikit-activeml's imports, on which nobody here has an influence
    warnings.simplefilter("ignore")
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.pool import Badge

seeds = st.integers(0, 2**31)
implementation = sys.modules["lightning_al.formulas.badge"]  # the function hides its module


def factors(seed: int, total: int, classes: int = 3, width: int = 4, dtype: torch.dtype = torch.float64):
    """Residuals of probabilities, some of them sure, and features of any sign."""
    residuals = hypothetical_residuals((3 * normal(seed, total, classes)).softmax(1))
    return residuals.to(dtype), normal(seed + 1, total, width, dtype=dtype)


def gradients(residuals: Tensor, features: Tensor) -> Tensor:
    """All N x C x D gradients, one row per sample."""
    return torch.einsum("nc,nd->ncd", residuals.double(), features.double()).flatten(1)


def squared_distances(points: np.ndarray) -> np.ndarray:
    return ((points[:, None] - points) ** 2).sum(-1)


# ---------------------------------------------------------------- against all gradients


@given(
    seed=seeds,
    total=st.integers(1, 25),
    classes=st.integers(2, 5),
    width=st.integers(1, 6),
    repeats=st.integers(1, 2),
    budget=st.integers(1, 60),
)
def test_equals_kmeans_plus_plus_over_the_gradients(seed, total, classes, width, repeats, budget):
    residuals, features = (part.repeat(repeats, 1) for part in factors(seed, total, classes, width))
    expected = kmeans_plus_plus(gradients(residuals, features), budget, generator=generator(seed))
    assert torch.equal(badge(residuals, features, budget, generator=generator(seed)), expected)


@given(seed=seeds, total=st.integers(1, 12), budget=st.integers(1, 14))
def test_draws_the_rows_that_the_random_numbers_name(seed, total, budget):
    residuals, features = factors(seed, total)
    numbers, rows = generator(seed), []
    points = gradients(residuals, features).numpy()
    weights, distances = (points**2).sum(1), squared_distances(points)
    for _ in points[:budget]:
        # one candidate per block is always accepted; its second number is drawn for nothing
        number = float(torch.rand(2, 1, dtype=torch.float64, generator=numbers)[0])
        rows.append(int(np.searchsorted(weights.cumsum(), number * weights.sum(), side="right")))
        # the first weights are no distances: the origin must not stay on as a center
        weights = np.minimum(weights if len(rows) > 1 else math.inf, distances[rows[-1]])
        weights[rows] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "_CANDIDATES", 1)
        assert badge(residuals, features, budget, generator=generator(seed)).tolist() == rows


@few_or_many_trials
@pytest.mark.parametrize("candidates", [2, 256])
def test_first_three_picks_have_the_exact_distribution(monkeypatch, candidates, trials):
    monkeypatch.setattr(greedy, "_CANDIDATES", candidates)
    # The last gradient is close to the origin: it would hardly ever be drawn if the origin stayed a center.
    probs = torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6], [0.35, 0.4, 0.25], [0.0, 0.05, 0.95]])
    features = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [1.5, -0.5], [-0.5, -1.5], [0.3, 0.2]])
    residuals, draws = hypothetical_residuals(probs), generator(25)
    picks = [tuple(badge(residuals, features, 3, generator=draws).tolist()) for _ in range(trials)]
    points = gradients(residuals, features).numpy()
    squared, start = squared_distances(points), (points**2).sum(1)
    expected = {}
    for i, j, k in itertools.permutations(range(5), 3):
        nearest = squared[i], np.minimum(squared[i], squared[j])
        expected[i, j, k] = start[i] / start.sum() * nearest[0][j] / nearest[0].sum() * nearest[1][k] / nearest[1].sum()
    counts, probabilities = np.array([picks.count(triple) for triple in expected]), np.array(list(expected.values()))
    assert probabilities.sum() == pytest.approx(1)
    assert_frequencies(counts, probabilities)
    # Over all 60 cells: the statistic has mean 59 and standard deviation sqrt(2 * 59).
    assert ((counts - trials * probabilities) ** 2 / (trials * probabilities)).sum() < 59 + 5 * math.sqrt(2 * 59)


# ---------------------------------------------------------------- against scikit-activeml


class Given(SkactivemlClassifier):
    """A classifier that gives probabilities and embeddings out by the number of the sample."""

    def __init__(self, probs=None, embeddings=None, classes=None, missing_label=np.nan, random_state=None):
        super().__init__(classes=classes, missing_label=missing_label, random_state=random_state)
        self.probs = probs
        self.embeddings = embeddings

    def fit(self, X, y, sample_weight=None):  # noqa: N803  # scikit-learn's name
        return self

    def predict_proba(self, X):  # noqa: N803
        rows = X[:, 0].astype(int)
        return self.probs[rows], self.embeddings[rows]


def test_draws_from_the_distribution_of_scikit_activeml_but_for_its_first_pick_and_its_ghost(monkeypatch):
    total, budget = 30, 8
    probs, features = (2 * normal(2, total, 4)).softmax(1), normal(3, total, 5)
    residuals = hypothetical_residuals(probs)
    picks, utilities = Badge(random_state=0).query(
        np.arange(total)[:, None],
        np.full(total, np.nan),
        Given(probs.numpy(), features.numpy(), classes=list(range(4))),
        fit_clf=False,
        batch_size=budget,
        return_utilities=True,
    )
    weights = []

    def follow(points, nearest, count, *, generator):
        weights.append(nearest.clamp(min=0).clone())
        return torch.tensor([picks[len(weights) - 1]])

    monkeypatch.setattr(implementation, "d2_sampling_block", follow)
    assert badge(residuals, features, budget, generator=generator()).tolist() == list(picks)
    lengths = weights[0]
    np.testing.assert_allclose(utilities[0], lengths / lengths.sum())
    # scikit-activeml takes the longest gradient first, as the authors' code does; here, as in their Algorithm 1's
    # k-means++, it is drawn.
    assert picks[0] == int(lengths.argmax())
    for step in range(1, budget):
        # It also keeps the origin as a center for all picks, which the paper does not.
        kept = torch.minimum(weights[step], lengths)
        np.testing.assert_allclose(np.nan_to_num(utilities[step]), kept / kept.sum(), atol=1e-14)
    assert not torch.equal(kept, weights[-1])


# ---------------------------------------------------------------- duplicates and zeros


def test_duplicates_come_last_and_at_random():
    residuals, features = factors(4, 3, classes=10, width=64, dtype=torch.float32)
    repeated = residuals.repeat(3, 1), features.abs().repeat(3, 1) + 3
    rows = np.array([badge(*repeated, 9, generator=generator(seed)).tolist() for seed in range(300)])
    assert (np.sort(rows, axis=1) == np.arange(9)).all()
    assert (np.sort(rows[:, :3] % 3, axis=1) == [0, 1, 2]).all()
    # By symmetry every copy is as likely as the others to be the fourth pick within its place.
    assert_frequencies(np.bincount(rows[:, 3] // 3, minlength=3), np.full(3, 1 / 3))


@pytest.mark.parametrize("width", [16, 2048])
def test_gradients_that_are_equal_by_their_factors_are_duplicates_in_float32(width):
    # The same outer product from factors that are scaled against each other, by a power of two and by a sign.
    residuals, features = factors(5, 4, classes=50, width=width, dtype=torch.float32)
    twins = torch.cat([residuals, -4 * residuals]), torch.cat([features, features / -4])
    for seed in range(20):
        rows = badge(*twins, 8, generator=generator(seed)) % 4
        assert rows[:4].sort().values.tolist() == [0, 1, 2, 3]


def test_sure_samples_are_picked_once_all_others_are():
    residuals, features = factors(6, 12)
    residuals[[1, 4, 7]] = hypothetical_residuals(torch.eye(3, dtype=torch.float64))
    for seed in range(50):
        assert int(badge(residuals, features, 1, generator=generator(seed))) not in (1, 4, 7)
        # all three lie at the origin, so at most one of them is far from all picks
        rows = badge(residuals, features, 12, generator=generator(seed)).tolist()
        assert len({1, 4, 7} & set(rows[:10])) == 1


def test_draws_uniformly_where_all_is_sure():
    draws = generator(7)
    firsts = [int(badge(torch.zeros(4, 3), torch.ones(4, 2), 2, generator=draws)[0]) for _ in range(400)]
    assert_frequencies(np.bincount(firsts, minlength=4), np.full(4, 1 / 4))


# ---------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_neither_gradients_nor_a_distance_matrix_are_formed():
    total, classes, width = 20_000, 100, 768
    features = normal(8, 100, width, dtype=torch.float32).repeat(total // 100, 1)
    residuals = hypothetical_residuals(normal(9, total, classes, dtype=torch.float32).softmax(1))
    with Largest() as largest:
        rows = badge(residuals, features, 300, generator=generator())
    assert len(set(rows.tolist())) == 300
    assert largest.elements == total * width  # squares of the features; the gradients would be 100 times as many


def test_many_picks_take_little_memory(monkeypatch):
    monkeypatch.setattr(greedy, "_BLOCK_ELEMENTS", 2**16)
    residuals, features = factors(10, 3000, classes=10, width=16)
    with Largest() as largest:
        rows = badge(residuals, features, 900, generator=generator())
    assert len(set(rows.tolist())) == 900
    assert largest.elements <= 2**16  # distances of a block of 256 candidates to each other are as many


# ---------------------------------------------------------------- properties


@given(seed=seeds, total=st.integers(0, 9), budget=st.integers(1, 30), repeats=st.integers(1, 3))
def test_exact_count_of_distinct_rows(seed, total, budget, repeats):
    residuals, features = (part.repeat(repeats, 1) for part in factors(seed, total, dtype=torch.float32))
    rows = badge(residuals, features, budget, generator=generator(seed))
    assert (rows.dtype, rows.device.type, rows.shape) == (torch.long, "cpu", (min(budget, total * repeats),))
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(range(total * repeats))


@given(seed=seeds, budget=st.integers(1, 20))
def test_only_inner_products_count(seed, budget):
    residuals, features = factors(seed, 20)
    expected = badge(residuals, features, budget, generator=generator(seed))
    turn = torch.linalg.qr(normal(seed + 2, 4, 4)).Q
    for same in (
        (features, residuals),
        (residuals[:, [2, 0, 1]], features @ turn),
        (8 * residuals, features / 2),
        (torch.cat([residuals, 0 * residuals], dim=1), features),
    ):
        assert torch.equal(badge(*same, budget, generator=generator(seed)), expected)


def test_seeded_by_the_generator_alone():
    parts = factors(11, 60)
    before = torch.get_rng_state()
    rows = [badge(*parts, 10, generator=generator(seed)).tolist() for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert rows[0] == rows[1] != rows[2]


def test_input_is_left_alone_and_gradients_are_ignored():
    parts = factors(12, 20)
    copies = [part.clone().requires_grad_() for part in parts]
    assert torch.equal(badge(*copies, 5, generator=generator()), badge(*parts, 5, generator=generator()))
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))


def test_upcasts_and_ignores_autocast():
    residuals, features = factors(13, 200, classes=5, width=32, dtype=torch.bfloat16)
    expected = badge(residuals.float(), features.float(), 50, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for same in ((residuals, features), (residuals.float(), features.double()), (residuals.float(), features)):
            assert torch.equal(badge(*same, 50, generator=generator()), expected)


# ---------------------------------------------------------------- residuals


@given(seed=seeds, total=st.integers(1, 10), classes=st.integers(2, 6))
def test_residuals_are_the_gradients_of_the_cross_entropy(seed, total, classes):
    logits = (4 * normal(seed, total, classes)).requires_grad_()
    torch.nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    residuals = hypothetical_residuals(logits.detach().softmax(1))
    torch.testing.assert_close(residuals, logits.grad)


def test_outer_products_are_the_gradients_of_the_last_layer():
    features, layer = normal(14, 6, 4), torch.nn.Linear(4, 3, bias=False, dtype=torch.float64)
    rows = []
    for sample in features:
        logits = layer(sample)
        loss = torch.nn.functional.cross_entropy(logits, logits.argmax())
        rows.append(torch.autograd.grad(loss, layer.weight)[0].flatten())
    residuals = hypothetical_residuals(layer(features).detach().softmax(1))
    torch.testing.assert_close(gradients(residuals, features), torch.stack(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_residuals_take_the_lower_class_at_a_tie(dtype):
    probs = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.125, 0.375, 0.125, 0.375], [0, 0, 0, 1]], dtype=dtype)
    expected = [[-0.75, 0.25, 0.25, 0.25], [0.125, -0.625, 0.125, 0.375], [0, 0, 0, 0]]
    residuals = hypothetical_residuals(probs)
    assert residuals.tolist() == expected
    assert residuals.dtype == dtype


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("budget", [0, -1, 2.0, True, "3"])
def test_budget_errors(budget):
    message = rf"^`badge\(budget={re.escape(repr(budget))}\)`: expected an integer of at least 1, got"
    with pytest.raises(ValueError, match=message):
        badge(torch.ones(4, 2), torch.ones(4, 2), budget, generator=generator())


@pytest.mark.parametrize(
    ("residuals", "features", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), "(residuals, features)`: expected one row of each per sample, got 3 and"),
        (torch.ones(3), torch.ones(3, 2), "(residuals)`: expected a floating tensor of shape (N, D) with D >= 1, got"),
        (torch.ones(3, 2), torch.ones(3, 2, 2), "(features)`: expected a floating tensor of shape (N, D)"),
        (torch.ones(3, 2), torch.ones(3, 0), "(features)`: expected a floating tensor"),
        (torch.ones(3, 2, dtype=torch.long), torch.ones(3, 2), "(residuals)`: expected a floating tensor"),
        (torch.tensor([[math.nan], [1.0]]), torch.ones(2, 1), "(residuals)`: expected finite values whose squares fit"),
        (torch.ones(2, 1), torch.tensor([[1.0], [1e19]]), "(features)`: expected finite values whose squares fit"),
        # double features that overflow in the residuals' float32, and factors that fit while their products do not
        (torch.ones(2, 1), torch.tensor([[1.0], [1e25]]).double(), "(features)`: expected finite values whose"),
        (torch.full((2, 1), 1e12), torch.full((2, 1), 1e12), "expected finite values whose"),
    ],
)
def test_factor_errors(residuals, features, message):
    with pytest.raises(ValueError, match=rf"^`badge.*{re.escape(message)}"):
        badge(residuals, features, 2, generator=generator())
