import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from lightning_al import backends
from lightning_al.adapters import Predictor
from lightning_al.backends import AGREEMENT, make_backend, rank_agreement
from lightning_al.functional import noise_stability
from lightning_al.jvp import ForwardDerivatives
from lightning_al.noise import Noise
from lightning_al.perturb import Backend, Deviation, FiniteDifferences, Seed
from lightning_al.seeding import Stream, make_generator
from tests.noise_stability_twin import twin_outputs

# torch's own use of its own TorchScript, at the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

SEEDS: list[Seed] = [(Stream.NOISE, 0, 0, step) for step in range(4)]
LOGGER = "lightning.pytorch.utilities.rank_zero"


class OnGpu(nn.Parameter):
    """A parameter that says it were on a GPU."""

    is_cuda = True


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.body(x)))


def make(function: Callable[[Tensor], Tensor] = torch.tanh, gpu: bool = False) -> tuple[Net, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(function).eval()
    if gpu:
        for layer in (model.body, model.head):
            layer.weight, layer.bias = OnGpu(layer.weight.detach()), OnGpu(layer.bias.detach())
    return model, torch.randn(40, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bfloat16_gpu(monkeypatch):
    monkeypatch.setattr(backends, "has_fast_bfloat16", lambda device: True)


def choose(model: nn.Module, batch: Any, magnitude: float = 1e-3, **options) -> Backend:
    with torch.no_grad():
        return make_backend(Predictor(model), batch, noise=Noise(magnitude), seeds=SEEDS, **options)


def deviate(backend: Backend, chunk: Sequence[Any]) -> list[Deviation]:
    with torch.no_grad():
        return list(backend.deviations(chunk, SEEDS))


def changes(backend: Backend, batch: Any) -> Tensor:
    return torch.stack([deviation.change for deviation in deviate(backend, [batch])])


def expected_changes(model: nn.Module, batch: Tensor, **options) -> Tensor:
    pairs = twin_outputs(model, [batch.double()], seeds=SEEDS, **options)
    return torch.stack([noised - clean for clean, noised in pairs])


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("method", "kind", "error"),
    [
        ("auto", FiniteDifferences, 1e-2),
        ("finite_difference", FiniteDifferences, 1e-2),  # of single precision, which keeps some three digits
        ("jvp", ForwardDerivatives, 5e-3),  # of first order: the noise is 1e-3
        ("jvp_bf16", ForwardDerivatives, 3e-2),  # of two digits
    ],
)
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity"])
def test_every_method_gives_the_deviations_of_the_twin(method, kind, error, output):
    model, batch = make()
    backend = choose(model, batch, method=method, output=output)
    assert type(backend) is kind
    found = changes(backend, batch)
    assert found.dtype == torch.float32
    assert relative_error(found, expected_changes(model, batch, output=output)) < error


def test_bfloat16_is_less_exact_than_single_precision():
    model, batch = make()
    derivative = 1e3 * expected_changes(model, batch, magnitude=1e-6)  # of noise of 1e-3, in double precision
    assert relative_error(changes(choose(model, batch, method="jvp"), batch), derivative) < 1e-5
    assert 1e-4 < relative_error(changes(choose(model, batch, method="jvp_bf16"), batch), derivative) < 3e-2


@pytest.mark.parametrize("method", ["finite_difference", "jvp"])
def test_modules_confine_the_noise_in_every_method(method):
    model, batch = make()
    found = changes(choose(model, batch, method=method, modules=["head"]), batch)
    expected = expected_changes(model, batch, noisy=["head.weight", "head.bias"])
    assert relative_error(found, expected) < 1e-2
    assert relative_error(found, expected_changes(model, batch)) > 0.1


@pytest.mark.parametrize("method", ["auto", "finite_difference", "jvp", "jvp_bf16"])
def test_a_pattern_without_a_module_is_refused(method):
    model, batch = make()
    with pytest.raises(ValueError, match=r"`modules=\['neck'\]`: 'neck' matches no module of Net"):
        choose(model, batch, method=method, modules=["neck"])


# ---------------------------------------------------------------- auto


def test_auto_is_finite_differences_without_a_gpu(caplog):
    model, batch = make()
    with caplog.at_level(logging.INFO, LOGGER):
        assert type(choose(model, batch)) is FiniteDifferences
    assert "derivatives" not in caplog.text


def test_auto_is_bfloat16_derivatives_on_a_gpu_that_has_it(bfloat16_gpu, caplog):
    model, batch = make(gpu=True)
    with caplog.at_level(logging.INFO, LOGGER):
        backend = choose(model, batch)
    assert type(backend) is ForwardDerivatives
    assert "Noise stability by derivatives: rank agreement 0.99" in caplog.text
    same = make()[0]
    assert torch.equal(changes(backend, batch), changes(choose(same, batch, method="jvp_bf16"), batch))


def test_auto_is_finite_differences_on_a_gpu_without_bfloat16(monkeypatch):
    monkeypatch.setattr(backends, "has_fast_bfloat16", lambda device: False)
    model, batch = make(gpu=True)
    assert type(choose(model, batch)) is FiniteDifferences


def test_auto_leaves_double_precision_alone(bfloat16_gpu):
    model, batch = make()
    model.double()
    for layer in (model.body, model.head):
        layer.weight, layer.bias = OnGpu(layer.weight.detach()), OnGpu(layer.bias.detach())
    assert type(choose(model, batch.double())) is FiniteDifferences


def test_auto_takes_finite_differences_where_derivatives_rank_otherwise(bfloat16_gpu):
    model, batch = make(gpu=True)
    with pytest.warns(
        UserWarning, match=r"rank a batch otherwise.*rank agreement -?0\.\d+, expected at least 0\.99"
    ) as w:
        backend = choose(model, batch, magnitude=5.0)
    assert len(w) == 1
    assert str(w[0].message).endswith("Noise stability takes finite differences.")
    assert type(backend) is FiniteDifferences


def test_a_method_that_was_asked_for_is_taken_with_a_warning():
    model, batch = make()
    with pytest.warns(UserWarning, match=r"the noise is too large for a first-order term.*takes them all the same, as"):
        backend = choose(model, batch, magnitude=5.0, method="jvp")
    assert type(backend) is ForwardDerivatives


def test_a_forward_that_cuts_the_gradient_is_noticed(bfloat16_gpu):
    def cut(x: Tensor) -> Tensor:
        return x.detach().tanh()

    with pytest.warns(UserWarning, match=r"or `forward` cuts the gradient\. Noise stability takes finite differences"):
        backend = choose(*make(cut, gpu=True))
    assert type(backend) is FiniteDifferences


# ---------------------------------------------------------------- no derivative


def distances(x: Tensor) -> Tensor:
    return torch.cdist(x, torch.ones(16, x.shape[1]).to(x), compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("method", ["jvp", "jvp_bf16"])
def test_finite_differences_replace_derivatives_that_do_not_exist(method):
    model, batch = make(distances)
    said = r"No derivative along the noise: _cdist_forward has no forward-mode formula\. Noise stability takes finite "
    with pytest.warns(UserWarning, match=said):
        backend = choose(model, batch, method=method)
    assert type(backend) is FiniteDifferences
    expected = noise_stability(model, [batch, batch[:3]], method="finite_difference")
    with pytest.warns(UserWarning, match=r"`method=\"finite_difference\"` says so without this warning"):
        scores = noise_stability(model, [batch, batch[:3]], method=method)
    assert (expected > 0).all()
    assert torch.equal(scores, expected)


def test_auto_falls_back_to_finite_differences_as_well(bfloat16_gpu):
    model, batch = make(distances, gpu=True)
    with pytest.warns(UserWarning, match="_cdist_forward"):
        backend = choose(model, batch)
    assert type(backend) is FiniteDifferences
    assert torch.equal(changes(backend, batch), changes(choose(make(distances)[0], batch), batch))


# ---------------------------------------------------------------- through the function


def test_derivatives_score_in_the_order_of_finite_differences():
    model, batch = make()
    batches = [(batch, torch.zeros(40)), (batch[:7] + 1, torch.zeros(7))]
    exact = noise_stability(model, batches, method="finite_difference")
    for method, error in (("jvp", 1e-2), ("jvp_bf16", 0.05)):
        scores = noise_stability(model, batches, method=method)
        torch.testing.assert_close(scores, exact, rtol=error, atol=0)
        assert spearmanr(scores, exact).statistic >= 0.99


def test_a_softmax_that_the_model_has_already_is_not_taken_twice():
    model, batch = make()
    ending = nn.Sequential(model, nn.Softmax(1))
    expected = changes(choose(model, batch, method="jvp"), batch)
    with pytest.warns(UserWarning, match="Sequential returns probabilities"):
        backend = choose(ending, batch, method="jvp")
    torch.testing.assert_close(changes(backend, batch), expected, rtol=1e-4, atol=1e-8)


# ---------------------------------------------------------------- random models


@pytest.mark.parametrize("method", ["auto", "finite_difference", "jvp", "jvp_bf16"])
def test_a_model_that_is_random_in_eval_mode_is_refused(method):
    model, batch = make(lambda x: nn.functional.dropout(x, 0.5))
    with pytest.raises(ValueError, match=r"Two clean passes .* differ by up to .*draws random numbers in eval mode"):
        choose(model, batch, method=method)


def test_a_model_that_differs_by_rounding_alone_is_not_refused():
    calls = []

    def drift(x: Tensor) -> Tensor:
        calls.append(None)
        return x * (1 + len(calls) * 1e-7)

    model, batch = make(drift)
    assert type(choose(model, batch)) is FiniteDifferences


# ---------------------------------------------------------------- rank_agreement


@pytest.mark.parametrize("size", [2, 3, 10, 1000])
def test_rank_agreement_is_spearmans_correlation(size):
    generator = make_generator(0, size)
    one = torch.rand(size, generator=generator)
    other = one + torch.rand(size, generator=generator)
    assert rank_agreement(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-5)
    assert rank_agreement(one, one.exp()) == pytest.approx(1, abs=1e-5)
    assert rank_agreement(one, -one) == pytest.approx(-1, abs=1e-5)


def test_rank_agreement_gives_equal_values_their_mean_rank():
    one, other = torch.tensor([1.0, 1.0, 2.0, 3.0, 3.0, 3.0]), torch.tensor([2.0, 1.0, 1.0, 5.0, 4.0, 5.0])
    assert rank_agreement(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-5)


def test_a_single_sample_has_no_rank_to_disagree_on(bfloat16_gpu):
    assert rank_agreement(torch.tensor([1.0]), torch.tensor([-2.0])) == 1.0
    model, batch = make(gpu=True)
    assert type(choose(model, batch[:1])) is ForwardDerivatives


def test_the_threshold_is_the_documented_one(monkeypatch, bfloat16_gpu):
    assert AGREEMENT == 0.99
    model, batch = make(gpu=True)
    for agreement, kind in (
        (0.9901, ForwardDerivatives),
        (0.9899, FiniteDifferences),
        (float("nan"), FiniteDifferences),
    ):
        monkeypatch.setattr(backends, "rank_agreement", lambda one, other, agreement=agreement: agreement)
        if kind is ForwardDerivatives:
            assert type(choose(model, batch)) is kind
        else:
            with pytest.warns(UserWarning, match="rank a batch otherwise"):
                assert type(choose(model, batch)) is kind


@pytest.mark.parametrize("error", [AssertionError("type(w) is nn.Parameter"), TypeError("no NumPy"), KeyError("x")])
def test_whatever_only_the_derivative_cannot_do_is_no_end_of_a_cycle(error, monkeypatch):
    model, batch = make()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("lightning_al.jvp.jvp", fail)
    with pytest.warns(UserWarning, match="No derivative along the noise: .*takes finite differences"):
        backend = choose(model, batch, method="jvp")
    assert type(backend) is FiniteDifferences


def test_a_derivative_that_does_not_fit_into_memory_is_replaced(monkeypatch):
    model, batch = make()

    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("lightning_al.jvp.jvp", fail)
    with pytest.warns(UserWarning, match="OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. Noise"):
        backend = choose(model, batch, method="jvp")
    assert type(backend) is FiniteDifferences


def test_finite_differences_of_a_forward_in_low_precision_warn():
    model, batch = make(lambda x: x.bfloat16().float())
    with pytest.warns(UserWarning, match="computes in low precision by itself.*rank rounding errors"):
        choose(model, batch, method="finite_difference")
