import itertools
import math
import sys

import numpy as np
import pytest
import torch
from batchbald_redux import batchbald
from hypothesis import given
from hypothesis import strategies as st

from lightning_al.functional import bald, batch_bald, joint_entropy, top_k


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pool(seed, samples=12, draws=6, classes=3, scale=2.0):
    logits = scale * torch.randn(samples, draws, classes, generator=generator(seed), dtype=torch.float64)
    return logits.log_softmax(2)


def information_by_enumeration(log_probs_nkc):
    """I(y_1, ..., y_n; k) in NumPy, over every configuration of classes."""
    probs = log_probs_nkc.double().exp().numpy()
    samples, _, classes = probs.shape
    entropy = 0.0
    for configuration in itertools.product(range(classes), repeat=samples):
        likelihood = np.prod([probs[i, :, c] for i, c in enumerate(configuration)], axis=0).mean()
        entropy -= likelihood * math.log(likelihood) if likelihood > 0 else 0.0
    logs = np.log(probs, where=probs > 0, out=np.zeros_like(probs))
    return entropy + (probs * logs).sum(2).mean(1).sum()


def greedy_by_enumeration(log_probs_nkc, budget):
    picks = []
    while len(picks) < budget:
        values = {
            row: round(information_by_enumeration(log_probs_nkc[[*picks, row]]), 9)
            for row in range(len(log_probs_nkc))
            if row not in picks
        }
        picks.append(max(values, key=lambda row: (values[row], -row)))
    return picks


@pytest.mark.parametrize("seed", range(4))
def test_picks_what_enumeration_picks(seed):
    log_probs = pool(seed)
    assert batch_bald(log_probs, 4, generator=generator()).tolist() == greedy_by_enumeration(log_probs, 4)


@pytest.mark.sweep
def test_picks_what_batchbald_redux_picks(capfd):
    log_probs = pool(0, samples=10, draws=8)
    theirs = batchbald.get_batchbald_batch(log_probs, 4, 10_000, dtype=torch.double)
    ours = batch_bald(log_probs, 4, generator=generator())
    assert ours.tolist() == theirs.indices
    assert theirs.scores[-1] == pytest.approx(information_by_enumeration(log_probs[ours]))


def test_the_joint_entropy_is_that_of_enumeration():
    log_probs = pool(3, samples=4)
    conditional = torch.special.entr(log_probs.exp()).sum(2).mean(1).sum()
    assert float(joint_entropy(log_probs) - conditional) == pytest.approx(information_by_enumeration(log_probs))
    assert float(joint_entropy(log_probs[:1])) == pytest.approx(
        float(torch.special.entr(log_probs[0].exp().mean(0)).sum())
    )


def test_a_pool_of_three_with_a_known_order():
    """Rows 0 and 1 tell the same bit about the weights, row 2 half a bit that they do not, row 3 nothing."""
    same = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    other = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]
    noise = [[0.5, 0.5]] * 4
    log_probs = torch.tensor([same, same, other, noise]).log()
    assert batch_bald(log_probs, 3, generator=generator())[:2].tolist() == [0, 2]
    assert top_k(bald(log_probs.exp().transpose(0, 1)), 2).tolist() == [0, 1]  # which BALD cannot know


def test_one_pick_is_that_of_bald():
    log_probs = pool(5, samples=40)
    first = top_k(bald(log_probs.exp().transpose(0, 1)), 1)
    assert torch.equal(batch_bald(log_probs, 1, generator=generator()), first)


@pytest.mark.parametrize("seed", range(3))
def test_sampled_configurations_come_close_to_all_of_them(seed):
    log_probs = pool(seed, samples=25, draws=16, classes=4)
    exact = batch_bald(log_probs, 6, generator=generator(), samples=4**6)
    sampled = batch_bald(log_probs, 6, generator=generator(seed), samples=400)
    best, found = (
        float(joint_entropy(log_probs[rows]) - torch.special.entr(log_probs[rows].exp()).sum(2).mean(1).sum())
        for rows in (exact, sampled)
    )
    assert sampled.tolist()[:4] == exact.tolist()[:4]  # 4^4 configurations are all there
    assert 0.98 * best < found <= best + 1e-9 < math.log(16)


def test_more_draws_than_samples_are_drawn_from():
    rows = batch_bald(pool(0, draws=50), 8, generator=generator(), samples=10)
    assert len(set(rows.tolist())) == 8


def test_impossible_classes_are_allowed():
    log_probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]]).log()
    for samples in (1, 100):
        assert batch_bald(log_probs, 3, generator=generator(), samples=samples)[0] == 0


def test_tiles_do_not_matter(monkeypatch):
    log_probs = pool(1, samples=30)
    whole = batch_bald(log_probs, 5, generator=generator())
    # the package gives the function for this name
    monkeypatch.setattr(sys.modules["lightning_al.formulas.batch_bald"], "_ELEMENTS", 200)
    assert torch.equal(batch_bald(log_probs, 5, generator=generator()), whole)


@given(
    seed=st.integers(0, 1000), samples=st.integers(1, 10), budget=st.integers(1, 12), bound=st.sampled_from([5, 200])
)
def test_picks_are_distinct_seeded_and_equivariant(seed, samples, budget, bound):
    log_probs = pool(seed, samples=samples)
    rows = batch_bald(log_probs, budget, generator=generator(seed), samples=bound)
    assert len(set(rows.tolist())) == len(rows) == min(samples, budget)
    assert set(rows.tolist()) <= set(range(samples))
    assert torch.equal(rows, batch_bald(log_probs, budget, generator=generator(seed), samples=bound))
    if bound == 200 and budget <= 4:  # all configurations: no randomness
        order = torch.randperm(samples, generator=generator(seed))
        turned = batch_bald(log_probs[order], budget, generator=generator(), samples=bound)
        assert order[turned].tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (torch.zeros(3, 2), r"`batch_bald\(log_probs_nkc\)`: expected a floating tensor of shape \(N, K, C\)"),
        (torch.zeros(3, 2, 1), "at least one draw and two classes"),
        (torch.zeros(3, 2, 2, dtype=torch.long), "floating tensor"),
        (torch.full((3, 2, 2), 0.5), r"got sums of 3.297 to 3.297 in row 0; use log_softmax"),
        (torch.full((3, 2, 2), torch.nan), "row 0"),
    ],
)
def test_refuses_what_are_no_log_probabilities(log_probs, message):
    with pytest.raises(ValueError, match=message):
        batch_bald(log_probs, 1, generator=generator())


def test_refuses_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"`batch_bald\(budget=0\)`"):
        batch_bald(pool(0), 0, generator=generator())
    with pytest.raises(ValueError, match=r"`batch_bald\(samples=0\)`: expected an integer of at least 1"):
        batch_bald(pool(0), 1, generator=generator(), samples=0)
    with pytest.raises(ValueError, match=r"3\^40 configurations, more than 4194304; pass fewer samples"):
        joint_entropy(pool(0, samples=40))
