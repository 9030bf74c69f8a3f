import math
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef

from lightning_al.functional import noise_stability
from lightning_al.perturbation.closed_form import FALLBACK_PASSES, ClosedForm
from tests.perturbation.awkward import Then
from tests.perturbation.jacobian_twin import twin
from tests.perturbation.networks import IDS, NETWORKS, POINTS, SEQUENCES, made, mlp, normal
from tests.perturbation.scored import flags, picture_of
from tests.snapshot import random_picture
from tests.sweep import sampled

SINGLE = 2.0**-23  # float64 scores come back as float32
NAMES = ["mlp", "tied weights", "encoder", "lstm", "positions and a class token", "several rows per sample"]


def batches_of(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in inputs.split(4)]


@pytest.mark.parametrize("passes", ["inf", math.inf])
@pytest.mark.parametrize("name", sampled(NAMES, ["tied weights", "encoder"]))
def test_scores_equal_the_jacobian(name, passes):
    make, inputs = NETWORKS[name]
    model = made(make).train()
    scores = noise_stability(model, batches_of(inputs), passes=passes, directions="all", scope="tensor")
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), twin(model, inputs, scope="tensor"), rtol=SINGLE, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"magnitude": 0.02, "relative": False, "distribution": "laplace"},
        {"output": "sigmoid", "distribution": "uniform", "relative": False},
        {"output": "identity", "scope": "tensor"},
    ],
)
def test_options_of_the_noise_reach_the_closed_form(options):
    model = made(mlp)
    scores = noise_stability(model, batches_of(POINTS), passes="inf", directions="all", **options)
    torch.testing.assert_close(scores.double(), twin(model, POINTS, **options), rtol=SINGLE, atol=0)
    confined = noise_stability(model, batches_of(POINTS), passes="inf", directions="all", modules=["2"], **options)
    expected = twin(model, POINTS, noisy=["2.weight", "2.bias"], **options)
    torch.testing.assert_close(confined.double(), expected, rtol=SINGLE, atol=0)


def test_two_directions_are_the_default_and_the_seed_is_that_of_the_signs():
    model, batches = made(lambda: mlp(10)), batches_of(POINTS)
    scores = noise_stability(model, batches, passes="inf")
    assert torch.equal(noise_stability(model, batches, passes="inf", directions=2), scores)
    assert not torch.equal(noise_stability(model, batches, passes="inf", seed=1), scores)
    assert not torch.equal(noise_stability(model, batches, passes="inf", directions="all"), scores)


def test_many_passes_rank_as_the_closed_form_does():
    model, inputs = made(mlp), normal(60, 5)
    found = noise_stability(model, [inputs], passes="inf")
    assert float(spearman_corrcoef(found, noise_stability(model, [inputs], passes=1000))) > 0.97


@pytest.mark.parametrize("name", ["encoder", "gru", "self-attention"])
def test_module_and_random_numbers_are_left_alone(name):
    make, inputs = NETWORKS[name]
    model = made(make).train()
    before = picture_of(model), random_picture(), flags()
    noise_stability(model, batches_of(inputs), passes="inf")
    assert (picture_of(model), random_picture(), flags()) == before


def test_scores_do_not_depend_on_the_sizes_of_the_batches():
    make, _ = NETWORKS["encoder"]
    model, inputs = made(make), IDS.repeat(3, 1)
    found = [noise_stability(model, list(inputs.split(size)), passes="inf") for size in (27, 8, 5, 1)]
    for scores in found[1:]:
        torch.testing.assert_close(scores, found[0], rtol=1e-6, atol=0)


def test_a_lack_of_memory_changes_no_score(monkeypatch):
    make, _ = NETWORKS["self-attention"]
    model, batches = made(make), [SEQUENCES, SEQUENCES[:5]]
    expected, original, tried = noise_stability(model, batches, passes="inf"), ClosedForm.scores, []

    def short(self: ClosedForm, batch: Any) -> Tensor:
        tried.append(len(batch))
        if len(batch) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return original(self, batch)

    monkeypatch.setattr(ClosedForm, "scores", short)
    torch.testing.assert_close(noise_stability(model, batches, passes="inf"), expected, rtol=1e-6, atol=0)
    assert max(tried) == 9
    assert sum(size for size in tried if size <= 3) == 14


# ---------------------------------------------------------------- what has no closed form


def detached(model: Any, x: Tensor) -> Tensor:
    return model.head(model.body(x).relu().detach())


def without_gradients(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.head(model.body(x).relu())


@pytest.mark.parametrize(
    ("run", "layers", "named"),
    [
        (detached, {}, r"body\.weight, body\.bias: the forward pass cuts off their gradient\."),
        (without_gradients, {}, r"body\.weight, body\.bias, head\.weight, head\.bias: the forward pass cuts off"),
        (
            lambda model, x: model.head(model.norm(model.body(x))),
            {"norm": nn.BatchNorm1d(8, track_running_stats=False)},
            r"body\.weight, body\.bias.*: no gradient of single samples\.",
        ),
    ],
)
def test_what_cannot_be_counted_is_named_once_and_scored_by_passes(run, layers, named):
    model = made(lambda: Then(run, body=nn.Linear(5, 8), head=nn.Linear(8, 3), **layers))
    batches = [POINTS]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = noise_stability(model, batches, passes="inf")
    (warning,) = caught
    assert re.match(rf"No closed form for Then: {named}.*takes 30 passes instead", str(warning.message))
    assert torch.equal(scores, noise_stability(model, batches, passes=FALLBACK_PASSES))


def test_outputs_for_each_position_are_refused():
    model = made(lambda: nn.Conv2d(2, 3, 3))
    with pytest.raises(ValueError, match=r'`passes="inf"`: Conv2d returns outputs of shape \(3, 4, 4\).*`passes=10`'):
        noise_stability(model, [normal(4, 2, 6, 6)], passes="inf")


def test_nothing_to_perturb_is_refused():
    with pytest.raises(ValueError, match="no parameter to perturb"):
        noise_stability(made(mlp).requires_grad_(False), [POINTS], passes="inf")
    with pytest.raises(ValueError, match=r'one output per sample.*output="identity"'):
        noise_stability(made(lambda: mlp(1)), [POINTS], passes="inf")
