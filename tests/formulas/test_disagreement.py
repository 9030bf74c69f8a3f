import gc
import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modAL import disagreement as modal
from scipy.special import entr, rel_entr
from skactiveml import pool as skactiveml
from torch import Tensor

from lightning_al.formulas.disagreement import (
    bald,
    expected_entropy,
    predictive_entropy,
    predictive_variance,
    variation_ratio,
    vote_entropy,
)
from lightning_al.functional import entropy

with warnings.catch_warnings():
    # Baal configures its logs through a module that structlog deprecates.
    warnings.filterwarnings("ignore", "`structlog.threadlocal` is deprecated", DeprecationWarning)
    from baal.active import heuristics as baal

OF_ONE = [expected_entropy, predictive_entropy]
OF_TWO = [bald, variation_ratio, vote_entropy]
OF_PROBS = OF_ONE + OF_TWO
MEASURES = [*OF_PROBS, predictive_variance]
POSITIONS = [(), (7,), (4, 3), (2, 3, 2)]
seeds = st.integers(0, 2**31)


def make_passes(seed: int, passes: int, samples: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Softmax of logits whose scale, and how far it differs between passes, varies over the samples."""
    rng = np.random.default_rng(seed)
    scale, spread = 10 ** rng.uniform(-1, 1.5, size=(2, samples, *[1] * len(shape)))
    logits = rng.normal(size=(samples, *shape)) + spread * rng.normal(size=(passes, samples, *shape))
    return torch.tensor(logits * scale).softmax(dim=2).to(dtype)


def per_sample(scores: np.ndarray) -> np.ndarray:
    return scores.reshape(len(scores), -1).mean(axis=1)


def shares(probs: np.ndarray) -> np.ndarray:
    winners = probs.argmax(axis=2)
    return np.stack([(winners == label).mean(axis=0) for label in range(probs.shape[2])], axis=1)


# SciPy's `entropy` would divide by the sums of the probabilities. BALD as the mean divergence from the consensus, since
# a difference of entropies loses digits.
TWINS = {
    expected_entropy: lambda probs: per_sample(entr(probs).sum(axis=2).mean(axis=0)),
    predictive_entropy: lambda probs: per_sample(entr(probs.mean(axis=0)).sum(axis=1)),
    bald: lambda probs: per_sample(rel_entr(probs, probs.mean(axis=0)).sum(axis=2).mean(axis=0)),
    variation_ratio: lambda probs: per_sample(1 - shares(probs).max(axis=1)),
    vote_entropy: lambda probs: per_sample(entr(shares(probs)).sum(axis=1)),
    predictive_variance: lambda outputs: per_sample(outputs.var(axis=0).sum(axis=1)),
}


class Members:
    """What modAL asks of a committee, with given predictions of shape (K, N, C)."""

    def __init__(self, probs: np.ndarray) -> None:
        self.probs = probs
        self.classes_ = np.arange(probs.shape[2])

    def __len__(self) -> int:
        return len(self.probs)

    def __iter__(self):
        return iter(self.probs)

    def vote(self, _):
        return self.probs.argmax(axis=2).T

    def vote_proba(self, _):
        return self.probs.transpose(1, 0, 2)

    def predict_proba(self, _):
        return self.probs.mean(axis=0)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("measure", "scores", "order"),
    [
        (expected_entropy, [1.088900, 0.0, 0.639032], [0, 2, 1]),
        (predictive_entropy, [1.088900, 0.562335, 1.069370], [0, 2, 1]),
        (bald, [0.0, 0.562335, 0.430338], [1, 2, 0]),
        (variation_ratio, [0.0, 0.25, 0.5], [2, 1, 0]),
        (vote_entropy, [0.0, 0.562335, 1.039721], [2, 1, 0]),
    ],
)
def test_golden(measure, scores, order):
    unsure = [[0.4, 0.3, 0.3]] * 4
    one_dissenter = [[1.0, 0.0, 0.0]] * 3 + [[0.0, 1.0, 0.0]]
    two_dissenters = [[0.8, 0.1, 0.1]] * 2 + [[0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    passes = torch.tensor([unsure, one_dissenter, two_dissenters]).transpose(0, 1)
    torch.testing.assert_close(measure(passes), torch.tensor(scores), atol=1e-6, rtol=0)
    assert measure(passes).argsort(descending=True).tolist() == order


def test_golden_variance_divides_by_the_number_of_passes_and_sums_over_outputs():
    far_but_sure, one_output, both_outputs = [[9.0, -9.0]] * 2, [[0.0, 5.0], [2.0, 5.0]], [[0.0, 0.0], [4.0, 2.0]]
    passes = torch.tensor([far_but_sure, one_output, both_outputs]).transpose(0, 1)
    assert predictive_variance(passes).tolist() == [0.0, 1.0, 5.0]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("passes", [2, 5])
@pytest.mark.parametrize("measure", MEASURES)
def test_equals_twin(measure, passes, positions):
    values = make_passes(0, passes, 20, 5, *positions)
    np.testing.assert_allclose(measure(values).numpy(), TWINS[measure](values.numpy()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("measure", MEASURES)
def test_dense_is_the_mean_of_its_positions(measure):
    passes = make_passes(1, 4, 6, 3, 2, 5)
    expected = torch.stack([measure(passes[..., i, j]) for i in range(2) for j in range(5)]).mean(dim=0)
    torch.testing.assert_close(measure(passes), expected)


def test_votes_tell_how_a_minority_is_split_only_by_their_entropy():
    together, split = [0, 0, 1, 1], [0, 0, 1, 2]
    passes = torch.eye(3)[torch.tensor([together, split])].transpose(0, 1)
    assert variation_ratio(passes).tolist() == [0.5, 0.5]
    assert vote_entropy(passes).tolist() == pytest.approx([math.log(2), 1.5 * math.log(2)])


@pytest.mark.parametrize("positions", [(), (3,)])
def test_a_tie_within_a_pass_votes_for_the_lowest_class(positions):
    tie, first, last = ([0.4, 0.2, 0.4], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    passes = torch.tensor([[tie, tie], [first, last]]).view(2, 2, 3, *[1] * len(positions))
    passes = passes.expand(2, 2, 3, *positions)
    assert variation_ratio(passes).tolist() == [0.0, 0.5]
    assert vote_entropy(passes).tolist() == pytest.approx([0.0, math.log(2)])


# ---------------------------------------------------------------- other libraries


def test_equals_modal():
    passes = make_passes(2, 6, 50, 4)
    committee = Members(passes.numpy())
    for ours, theirs in [(vote_entropy, modal.vote_entropy), (predictive_entropy, modal.consensus_entropy)]:
        np.testing.assert_allclose(ours(passes).numpy(), theirs(committee, np.zeros((50, 1))), rtol=1e-12, atol=1e-14)
    largest = modal.KL_max_disagreement(committee, np.zeros((50, 1)))
    mean = bald(passes).numpy()
    assert (mean <= largest + 1e-14).all()
    assert (mean >= largest / 6 - 1e-14).all()


def test_equals_skactiveml():
    one_hot = torch.eye(4).double()[torch.randint(4, (6, 10), generator=torch.Generator().manual_seed(0))]
    passes = torch.cat([make_passes(3, 6, 50, 4), one_hot], dim=1)
    probs = passes.numpy()
    votes = probs.argmax(axis=2).T
    # A tiny floor: by default they raise every probability to at least 1e-7.
    divergence = skactiveml.average_kl_divergence(probs.copy(), eps=1e-300)
    np.testing.assert_allclose(bald(passes).numpy(), divergence, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(vote_entropy(passes).numpy(), skactiveml.vote_entropy(votes, np.arange(4)), atol=1e-14)
    np.testing.assert_allclose(variation_ratio(passes).numpy(), skactiveml.variation_ratios(votes), atol=1e-14)


@pytest.mark.parametrize("positions", [(), (4, 3)])
@pytest.mark.parametrize(
    ("ours", "theirs", "factor"),
    [
        (bald, baal.BALD(reduction="mean"), 1),
        (predictive_entropy, baal.Entropy(reduction="mean"), 1),
        (predictive_variance, baal.Variance(reduction="mean"), 5),  # a mean over 5 outputs where ours is a sum
    ],
)
def test_equals_baal(ours, theirs, factor, positions):
    passes = make_passes(5, 6, 20, 5, *positions)
    order, scores = theirs.get_ranks(passes.movedim(0, -1).numpy())
    np.testing.assert_allclose(ours(passes).numpy(), factor * scores, rtol=1e-10, atol=1e-14)
    assert ours(passes).argsort(descending=True).tolist() == order.tolist()


# ---------------------------------------------------------------- properties


@given(seed=seeds, passes=st.integers(2, 6), classes=st.integers(2, 7), positions=st.integers(1, 3))
def test_bounds_and_the_two_parts_of_the_uncertainty(seed, passes, classes, positions):
    values = make_passes(seed, passes, 8, classes, positions)
    scores = {measure: measure(values) for measure in MEASURES}
    few = min(classes, passes)
    limits = {
        expected_entropy: math.log(classes),
        predictive_entropy: math.log(classes),
        bald: math.log(few),
        variation_ratio: 1 - 1 / few,
        vote_entropy: math.log(few),
        predictive_variance: 1 - 1 / few,  # that of one-hot outputs
    }
    for measure, limit in limits.items():
        assert scores[measure].shape == (8,)
        assert scores[measure].min() >= 0
        assert scores[measure].max() <= limit + 1e-14
    assert (scores[bald] <= scores[predictive_entropy]).all()
    parts = scores[expected_entropy] + scores[bald]
    torch.testing.assert_close(scores[predictive_entropy], parts, rtol=0, atol=1e-14)


@given(seed=seeds, passes=st.integers(2, 6), samples=st.integers(1, 9), classes=st.integers(2, 7))
def test_permutations(seed, passes, samples, classes):
    values = make_passes(seed, passes, samples, classes, 3)
    generator = torch.Generator().manual_seed(seed)
    of_passes, of_samples, of_classes = (
        torch.randperm(length, generator=generator) for length in (passes, samples, classes)
    )
    for measure in MEASURES:
        scores = measure(values)
        torch.testing.assert_close(measure(values[of_passes]), scores, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(measure(values[:, of_samples]), scores[of_samples], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(measure(values[:, :, of_classes]), scores, rtol=1e-12, atol=1e-14)


@given(seed=seeds, passes=st.integers(2, 9), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_identical_passes_do_not_disagree_at_all(seed, passes, dtype):
    values = make_passes(seed, 1, 6, 5, 7, dtype=dtype)
    for measure in [*OF_TWO, predictive_variance]:
        assert measure(values.expand(passes, -1, -1, -1)).tolist() == [0.0] * 6
    for measure in OF_ONE:
        torch.testing.assert_close(measure(values.expand(passes, -1, -1, -1)), entropy(values[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_counts_of_votes_tie_whichever_classes_they_went_to(dtype):
    votes = torch.tensor([0] * 5 + [1] * 3 + [2] * 2 + [3])
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([torch.randperm(9, generator=generator)[votes] for _ in range(200)], dim=1)
    passes = torch.eye(9, dtype=dtype)[samples]
    assert len(vote_entropy(passes).unique()) == 1
    assert len(variation_ratio(passes).unique()) == 1


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("dtype", "result"),
    [(torch.float64, torch.float64), *[(t, torch.float32) for t in (torch.float32, torch.float16, torch.bfloat16)]],
)
def test_every_softmax_is_accepted_whatever_its_precision(measure, dtype, result):
    passes = make_passes(5, 4, 500, 10, dtype=dtype)
    scores = measure(passes)
    assert scores.dtype == result
    expected = torch.tensor(TWINS[measure](passes.double().numpy()))
    torch.testing.assert_close(scores.double(), expected, rtol=torch.finfo(result).eps, atol=1e-14)
    if measure not in (variation_ratio, vote_entropy):
        exact = measure(make_passes(5, 4, 500, 10))
        torch.testing.assert_close(scores.double(), exact, atol=10 * torch.finfo(dtype).eps, rtol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_widest_pass_decides_on_the_dtype(measure):
    narrow, wide = make_passes(6, 2, 5, 3, dtype=torch.float32)
    for passes in ([narrow, wide.double()], [narrow.double(), wide]):
        assert measure(passes).dtype == torch.float64
    assert measure([narrow.half(), wide.bfloat16()]).dtype == torch.float32


def test_small_disagreement_keeps_its_digits():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]], dtype=torch.float64)
    shift = torch.tensor([[1e-4, -1e-4, 0.0], [3e-5, 0.0, -3e-5]], dtype=torch.float64)
    passes = torch.stack([probs + shift, probs - shift]).float()
    expected = TWINS[bald](passes.double().numpy())
    assert expected.max() < 1e-7
    np.testing.assert_allclose(bald(passes).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e8])
def test_variance_is_not_lost_beside_a_large_mean(offset):
    noise = torch.randn(7, 20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    passes = offset + noise
    np.testing.assert_allclose(
        predictive_variance(passes).numpy(), TWINS[predictive_variance](noise.numpy()), rtol=1e-6
    )


# ---------------------------------------------------------------- streaming


@pytest.mark.parametrize("measure", MEASURES)
def test_any_iterable_is_read_once(measure):
    passes = make_passes(7, 5, 6, 4, 3)
    produced = []

    def generate():
        for values in passes:
            produced.append(values)
            yield values

    scores = measure(passes)
    once = generate()
    for other in (list(passes), tuple(passes), once):
        assert torch.equal(measure(other), scores)
    assert len(produced) == 5
    with pytest.raises(ValueError, match=r"got 0; a generator can be read only once"):
        measure(once)


def count_large(numel: int) -> int:
    return sum(type(candidate) is Tensor and candidate.numel() >= numel for candidate in gc.get_objects())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measure", MEASURES)
def test_holds_one_running_sum_and_no_earlier_pass(measure, dtype):
    held = []

    def generate():
        for seed in range(4):
            held.append(count_large(2 * 3 * 31))
            yield make_passes(seed, 1, 2, 3, 31, dtype=dtype).squeeze(0)

    gc.freeze()  # so that only what is made from here on is searched
    try:
        measure(generate())
    finally:
        gc.unfreeze()
    running = 0 if measure is expected_entropy else 1
    assert held == [0, running, running, running]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measure", MEASURES)
def test_passes_may_share_a_buffer_and_are_not_written_to(measure, dtype):
    passes = make_passes(8, 5, 6, 4, 3, dtype=dtype)
    before, buffer = passes.clone(), torch.empty_like(passes[0])
    scores = measure(passes)
    assert torch.equal(passes, before)
    assert torch.equal(measure(buffer.copy_(values) for values in passes), scores)


@pytest.mark.parametrize("measure", MEASURES)
def test_passes_come_with_gradients_or_from_inference_mode(measure):
    passes = make_passes(9, 3, 6, 4)
    scores = measure(passes.clone().requires_grad_())
    assert not scores.requires_grad
    with torch.inference_mode():
        frozen = passes.clone()
    assert torch.equal(scores, measure(passes))
    assert torch.equal(scores, measure(frozen))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("positions", [(), (2,)])
def test_no_samples(measure, positions):
    assert measure(torch.zeros(3, 0, 4, *positions)).shape == (0,)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("measure", MEASURES)
def test_too_few_passes(measure):
    least = 1 if measure in OF_ONE else 2
    empty = f"`{measure.__name__}(passes)`: expected at least {least} of them, got 0; a generator can be read only once"
    with pytest.raises(ValueError, match=f"^{re.escape(empty)}$"):
        measure([])
    one = make_passes(10, 1, 6, 4)
    if measure in OF_ONE:
        torch.testing.assert_close(measure(one), entropy(one[0]))
        return
    single = f"`{measure.__name__}(passes)`: expected at least 2 of them, got 1; a single one has nothing to disagree"
    with pytest.raises(ValueError, match=f"^{re.escape(single)}"):
        measure(one)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("shape", [(3, 4, 2), (6, 5, 2), (6, 4, 3), (6, 4)])
def test_passes_of_different_shapes(measure, shape):
    passes = [torch.full((6, 4, 2), 0.25)] * 2 + [torch.full(shape, 1 / shape[1])]
    message = (
        f"`{measure.__name__}(passes[2])`: expected the shape of the first pass, (6, 4, 2), got {shape}; predict the "
        "same samples in every pass"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measure(passes)


GOOD = torch.tensor([[0.5, 0.5], [1.0, 0.0]])


@pytest.mark.parametrize("measure", OF_PROBS)
@pytest.mark.parametrize(
    ("passes", "index", "message"),
    [
        (GOOD, 0, "expected shape (N, C, ...) with classes in dimension 1"),  # one pass instead of several
        ([torch.ones(4, 1)] * 2, 0, "expected at least 2 classes in dimension 1, got shape (4, 1)"),
        ([GOOD, GOOD.long()], 1, "expected a floating dtype, got torch.int64; pass the softmax"),
        (
            [GOOD, GOOD, torch.tensor([[0.5, 0.5], [1.5, -0.5]])],
            2,
            "got minimum -0.5 and sums from 1 to 1 in row 1; apply",
        ),
        ([GOOD, GOOD * torch.tensor([1.0, math.nan])], 1, "got NaN or inf in row 0; check the model's output"),
    ],
)
def test_what_is_no_probability(measure, passes, index, message):
    with pytest.raises(ValueError, match=rf"^`{measure.__name__}\(passes\[{index}\]\)`: .*{re.escape(message)}"):
        measure(passes)


@pytest.mark.parametrize(
    ("passes", "index", "message"),
    [
        (GOOD, 0, "expected a floating tensor of shape (N, C, ...) with at least one output"),
        ([torch.ones(4, 0)] * 2, 0, "got torch.float32 of shape (4, 0); give a single output its dimension"),
        ([torch.ones(4, 2, 0)] * 2, 0, "position, got torch.float32 of shape (4, 2, 0)"),
        ([GOOD, GOOD.long()], 1, "got torch.int64 of shape (2, 2)"),
        (
            [GOOD, GOOD * torch.tensor([[1.0], [math.nan]])],
            1,
            "expected finite outputs, got NaN or inf in row 1; check",
        ),
        ([GOOD * torch.tensor([math.inf, 1.0])] * 2, 0, "got NaN or inf in row 0"),
    ],
)
def test_what_is_no_output(passes, index, message):
    with pytest.raises(ValueError, match=rf"^`predictive_variance\(passes\[{index}\]\)`: .*{re.escape(message)}"):
        predictive_variance(passes)


def test_outputs_need_not_be_probabilities():
    passes = torch.tensor([[[-3.0]], [[5.0]]])
    assert predictive_variance(passes).tolist() == [16.0]
