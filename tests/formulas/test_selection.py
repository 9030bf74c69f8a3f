import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_al.functional import k_center, kmeans_plus_plus, power, top_k
from tests.formulas.draws import generator, normal

seeds = st.integers(0, 2**31)

SELECTORS = {
    "top_k": lambda points, budget, _: top_k(points.norm(dim=1), budget),
    "power": lambda points, budget, seed: power(points.norm(dim=1), budget, generator=generator(seed)),
    "k_center": lambda points, budget, _: k_center(points, budget, centers=points.new_zeros(1, points.shape[1])),
    "kmeans_plus_plus": lambda points, budget, seed: kmeans_plus_plus(points, budget, generator=generator(seed)),
}


@pytest.mark.parametrize("name", SELECTORS)
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
