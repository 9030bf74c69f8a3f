import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_al.formulas import ranking
from lightning_al.formulas.ranking import boltzmann, power, soft_rank, top_k
from tests.formulas.draws import assert_frequencies, few_or_many_trials, generator, normal

NOISY = {"power": power, "boltzmann": boltzmann, "soft_rank": soft_rank}


def test_top_k_breaks_ties_by_the_lower_row():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0, 3.0])
    assert top_k(scores, 5).tolist() == [1, 3, 5, 2, 0]
    assert top_k(torch.zeros(1000), 1000).tolist() == list(range(1000))


@given(scores=st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=20), budget=st.integers(1, 25))
def test_top_k_equals_twin(scores, budget):
    expected = sorted(range(len(scores)), key=lambda row: -scores[row])[:budget]
    assert top_k(torch.tensor(scores), budget).tolist() == expected


few = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=20)


@given(rows=few, budget=st.integers(1, 25))
def test_second_scores_decide_among_equals(rows, budget):
    scores, ties = torch.tensor(rows, dtype=torch.float32).T
    expected = sorted(range(len(rows)), key=lambda row: (-rows[row][0], -rows[row][1]))[:budget]
    assert top_k(scores, budget, ties=ties).tolist() == expected


def test_second_scores_of_another_size_never_outweigh_the_first():
    scores, ties = torch.tensor([0.5, 0.5 + 1e-7, 0.5]), torch.tensor([-1e30, -1e30, 1e30], dtype=torch.float64)
    assert top_k(scores, 3, ties=ties).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("ties", "message"),
    [
        (torch.zeros(3, 1), "expected shape (N,), got (3, 1)"),
        (torch.tensor([1.0, float("nan"), 0.0]), "expected finite scores, got nan in row 1"),
        (torch.zeros(2), "expected one per score"),
        (torch.zeros(4), "expected one per score"),
    ],
)
def test_errors_of_second_scores_name_them(ties, message):
    with pytest.raises(ValueError, match=rf"^`top_k\(ties\)`: {re.escape(message)}"):
        top_k(torch.zeros(3), 2, ties=ties)


@few_or_many_trials
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_power_picks_first_in_proportion_to_a_power_of_the_score(temperature, trials):
    scores, noise = torch.tensor([1.0, 0.0, 2.0, 4.0]), generator(3)
    picks = [int(power(scores, 1, generator=noise, temperature=temperature)[0]) for _ in range(trials)]
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


def assert_drawn_without_replacement(pick, weights, trials):
    """Compare the first two picks with draws in proportion to the weights: the second is one of what the first left."""
    chances = weights / weights.sum()
    expected = np.outer(chances, chances) / (1 - chances[:, None])
    np.fill_diagonal(expected, 0)
    assert expected.sum() == pytest.approx(1)
    noise, size = generator(6), len(weights)
    pairs = np.array([pick(noise).tolist() for _ in range(trials)])
    assert_frequencies(np.bincount(pairs @ [size, 1], minlength=size**2), expected.ravel())


@few_or_many_trials
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_boltzmann_draws_by_the_softmax_of_the_scores(temperature, trials):
    scores = torch.tensor([-1.0, 0.5, 0.0, -2.0])
    assert_drawn_without_replacement(
        lambda noise: boltzmann(scores, 2, generator=noise, temperature=temperature),
        np.exp(scores.numpy() / temperature),
        trials,
    )


@few_or_many_trials
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_soft_rank_draws_by_a_power_of_the_rank(temperature, trials):
    # of the two equal scores the lower row has the better rank
    scores = torch.tensor([-3.0, 7.0, -3.0, -2.9])
    assert_drawn_without_replacement(
        lambda noise: soft_rank(scores, 2, generator=noise, temperature=temperature),
        np.array([3, 1, 4, 2]) ** (-1 / temperature),
        trials,
    )


@few_or_many_trials
def test_power_draws_by_a_power_of_the_score(trials):
    scores = torch.tensor([0.3, 0.1, 2.0, 1.0])
    assert_drawn_without_replacement(
        lambda noise: power(scores, 2, generator=noise, temperature=0.7), scores.numpy() ** (1 / 0.7), trials
    )


@pytest.mark.parametrize("name", ["boltzmann", "soft_rank"])
def test_tiny_noise_leaves_the_order_of_the_scores(name):
    scores = normal(7, 50) - 3
    pick = NOISY[name]
    assert torch.equal(pick(scores, 20, generator=generator(), temperature=1e-9), top_k(scores, 20))


@given(seed=st.integers(0, 2**31), total=st.integers(1, 30), temperature=st.floats(0.1, 10))
def test_each_noise_ignores_what_it_says_it_ignores(seed, total, temperature):
    # multiples of 1/64, so that no shift, scale or square makes ties
    scores = (64 * normal(seed, total)).round() / 64
    ranks = 1 + (scores > scores[:, None]).sum(1) + ((scores == scores[:, None]).tril(-1)).sum(1)

    def drawn(pick, values):
        return pick(values, total, generator=generator(seed), temperature=temperature).tolist()

    assert drawn(boltzmann, scores) == drawn(boltzmann, scores - 8) == drawn(power, (scores - 8).exp())
    assert drawn(soft_rank, scores) == drawn(soft_rank, scores.exp() - 100) == drawn(power, 1 / ranks.double())


@given(seed=st.integers(0, 2**31), total=st.integers(0, 9), budget=st.integers(1, 12), repeats=st.integers(1, 3))
@pytest.mark.parametrize("name", NOISY)
def test_exact_count_of_distinct_rows(name, seed, total, budget, repeats):
    scores = normal(seed, total, dtype=torch.float32).abs().repeat(repeats)
    rows = NOISY[name](scores, budget, generator=generator(seed))
    assert (rows.dtype, rows.device.type, rows.shape) == (torch.long, "cpu", (min(budget, total * repeats),))
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(range(total * repeats))


@pytest.mark.parametrize("name", NOISY)
def test_seeded_by_the_generator_alone(name):
    scores = normal(8, 60).abs().requires_grad_()
    before, copy = torch.get_rng_state(), scores.detach().clone()
    rows = [NOISY[name](scores, 10, generator=generator(seed)).tolist() for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(scores, copy)
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("name", ["top_k", *NOISY])
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3, 1), "expected shape (N,), got (3, 1); reduce each sample to one number first"),
        (torch.tensor([1.0, float("nan")]), "expected finite scores, got nan in row 1; check the model's output"),
        (torch.tensor([float("inf"), 0.0]), "expected finite scores, got inf in row 0"),
        (torch.zeros(0, 2), "expected shape (N,), got (0, 2)"),
        (torch.tensor(1.0), "expected shape (N,), got ()"),
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


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_errors(name, temperature):
    with pytest.raises(ValueError, match=rf"^`{name}\(temperature={temperature}\)`: .*for no noise use `top_k`"):
        NOISY[name](torch.ones(2), 1, generator=generator(), temperature=temperature)


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("budget", [0, -1, 2.0, True, "3"])
def test_budget_errors(name, budget):
    message = rf"^`{name}\(budget={re.escape(repr(budget))}\)`: expected an integer of at least 1, got"
    with pytest.raises(ValueError, match=message):
        NOISY[name](torch.ones(4), budget, generator=generator())
