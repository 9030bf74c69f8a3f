import math
import re
from types import SimpleNamespace

import modAL.uncertainty
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from skactiveml.pool import uncertainty_scores
from torch import Tensor

from lightning_al.functional import entropy, least_confidence, margin

MEASURES = [entropy, margin, least_confidence]
seeds = st.integers(0, 2**31)


def make_probs(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Softmax of logits whose scale varies over samples from nearly uniform to nearly one-hot."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-2, 2, size=(shape[0], *[1] * (len(shape) - 1)))
    return torch.tensor(rng.normal(size=shape) * scale).softmax(dim=1).to(dtype)


def twin_entropy(probs: np.ndarray) -> np.ndarray:
    return scipy.stats.entropy(probs, axis=1).reshape(len(probs), -1).mean(axis=1)


def twin_margin(probs: np.ndarray) -> np.ndarray:
    ordered = np.sort(probs, axis=1)
    return -(ordered[:, -1] - ordered[:, -2]).reshape(len(probs), -1).mean(axis=1)


def twin_least_confidence(probs: np.ndarray) -> np.ndarray:
    return (1 - probs.max(axis=1)).reshape(len(probs), -1).mean(axis=1)


TWINS = [(entropy, twin_entropy), (margin, twin_margin), (least_confidence, twin_least_confidence)]


@pytest.mark.parametrize(
    ("measure", "scores", "order"),
    [
        (entropy, [0.693147, 1.182514, 1.088900], [1, 2, 0]),
        (margin, [0.0, -0.4, -0.1], [0, 2, 1]),
        (least_confidence, [0.5, 0.45, 0.6], [2, 0, 1]),
    ],
)
def test_golden(measure, scores, order):
    probs = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.55, 0.15, 0.15, 0.15], [0.4, 0.3, 0.3, 0.0]])
    torch.testing.assert_close(measure(probs), torch.tensor(scores), atol=1e-6, rtol=0)
    assert measure(probs).argsort(descending=True).tolist() == order


@pytest.mark.parametrize("measure", MEASURES)
def test_one_hot_is_the_least_uncertain_and_exact(measure):
    lowest = -1.0 if measure is margin else 0.0
    assert measure(torch.eye(3)).tolist() == [lowest] * 3


@pytest.mark.parametrize("positions", [(), (7,), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize(("measure", "twin"), TWINS)
def test_equals_twin(measure, twin, positions):
    probs = make_probs(0, 6, 5, *positions)
    np.testing.assert_allclose(measure(probs).numpy(), twin(probs.numpy()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("measure", "theirs", "sign"),
    [
        (entropy, modAL.uncertainty.classifier_entropy, 1),
        (margin, modAL.uncertainty.classifier_margin, -1),  # there, too, a small margin is chosen
        (least_confidence, modAL.uncertainty.classifier_uncertainty, 1),
    ],
)
def test_equals_modal(measure, theirs, sign):
    probs = make_probs(3, 200, 7)
    classifier = SimpleNamespace(predict_proba=lambda samples: probs.numpy()[samples])
    np.testing.assert_allclose(measure(probs), sign * theirs(classifier, np.arange(200)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("measure", "method", "offset"),
    [(entropy, "entropy", 0), (margin, "margin_sampling", 1), (least_confidence, "least_confident", 0)],
)
def test_equals_scikit_activeml(measure, method, offset):
    probs = make_probs(4, 200, 7)
    theirs = uncertainty_scores(probs.numpy(), method=method)  # their margin is 1 - (p1 - p2)
    np.testing.assert_allclose(measure(probs) + offset, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("measure", MEASURES)
def test_dense_is_the_mean_of_its_positions(measure):
    probs = make_probs(1, 3, 4, 2, 5)
    expected = torch.stack([measure(probs[..., i, j]) for i in range(2) for j in range(5)]).mean(dim=0)
    torch.testing.assert_close(measure(probs), expected)


@given(seed=seeds, samples=st.integers(1, 12), classes=st.integers(2, 9), positions=st.integers(1, 4))
def test_bounds(seed, samples, classes, positions):
    probs = make_probs(seed, samples, classes, positions)
    bounds = {entropy: (0, math.log(classes)), margin: (-1, 0), least_confidence: (0, 1 - 1 / classes)}
    for measure, (low, high) in bounds.items():
        scores = measure(probs)
        assert scores.shape == (samples,)
        # A handful of float64 roundings at the uniform and one-hot ends.
        assert scores.min() >= low - 1e-14
        assert scores.max() <= high + 1e-14


@given(seed=seeds, samples=st.integers(1, 12), classes=st.integers(2, 9))
def test_permutations(seed, samples, classes):
    probs = make_probs(seed, samples, classes, 3)
    generator = torch.Generator().manual_seed(seed)
    of_samples = torch.randperm(samples, generator=generator)
    of_classes = torch.randperm(classes, generator=generator)
    for measure in MEASURES:
        torch.testing.assert_close(measure(probs[of_samples]), measure(probs)[of_samples])
        torch.testing.assert_close(measure(probs[:, of_classes]), measure(probs))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("dtype", "result"),
    [(torch.float64, torch.float64), *[(t, torch.float32) for t in (torch.float32, torch.float16, torch.bfloat16)]],
)
def test_every_softmax_is_accepted_whatever_its_precision(measure, dtype, result):
    probs = make_probs(2, 2000, 10, dtype=dtype)
    scores = measure(probs)
    assert scores.dtype == result
    # One rounding of each probability moves a score by at most about eps * C.
    torch.testing.assert_close(
        scores.double(), measure(make_probs(2, 2000, 10)), atol=10 * torch.finfo(dtype).eps, rtol=0
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_no_samples(measure):
    assert measure(torch.zeros(0, 3, 2)).shape == (0,)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (torch.tensor([0.5, 0.5]), "expected shape (N, C, ...) with classes in dimension 1"),
        (torch.zeros(2, 3, 0), "at least one position, got (2, 3, 0)"),
        (
            torch.ones(4, 1),
            'one output has no class probabilities; for regression use NoiseStabilityAcquisition(output="',
        ),
        (torch.ones(4, 2, dtype=torch.long), "expected a floating dtype, got torch.int64"),
        (torch.tensor([[0.5, 0.5], [2.0, -1.0]]), "got minimum -1 and sums from 1 to 1 in row 1; apply softmax"),
        (torch.tensor([[0.5, 0.5], [0.5, 0.6]]), "got minimum 0.5 and sums from 1.1 to 1.1 in row 1; apply softmax"),
        (torch.tensor([[0.5, 0.502]]), "within 0.001"),
        (torch.tensor([[[0.5, 0.5], [0.5, 0.0]]]), "sums from 0.5 to 1 in row 0"),
        (torch.tensor([[0.5, 0.5], [float("nan"), 1.0]]), "got NaN or inf in row 1; check the model's output"),
        (torch.tensor([[float("inf"), 0.0]]), "got NaN or inf in row 0"),
        (torch.tensor([[0.5, 0.5]]).log(), "apply softmax over dimension 1 first"),
    ],
)
def test_errors(measure, probs, message):
    with pytest.raises(ValueError, match=rf"^`{measure.__name__}\(probs\)`: .*{re.escape(message)}"):
        measure(probs)
