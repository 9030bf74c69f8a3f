import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_al.functional import power, ranking, top_k
from tests.functional.draws import assert_frequencies, generator, normal


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
        getattr(ranking, name)(scores, 1, **options)


def test_power_errors():
    with pytest.raises(
        ValueError, match=r"^`power\(scores\)`: expected non-negative scores, got a minimum of -0\.5; .*1 \+"
    ):
        power(torch.tensor([-0.5, 0.0]), 1, generator=generator())
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^`power\(temperature={temperature}\)`: .*for no noise use `top_k`"):
            power(torch.ones(2), 1, generator=generator(), temperature=temperature)
