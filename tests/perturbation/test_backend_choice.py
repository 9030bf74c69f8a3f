import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from lightning_al.functional import noise_stability
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream, make_generator
from lightning_al.perturbation import backend_choice as backends
from lightning_al.perturbation.backend_choice import AGREEMENT, make_backend, rank_agreement
from lightning_al.perturbation.deviations import Backend, Deviation, Seed
from lightning_al.perturbation.finite_differences import FiniteDifferences
from lightning_al.perturbation.forward_mode import ForwardDerivatives
from lightning_al.perturbation.noise import Noise
from tests.noise_stability_twin import twin_outputs

# torch's own use of its own TorchScript, at the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

SEEDS: list[Seed] = [(RandomStream.NOISE, 0, 0, step) for step in range(4)]
LOGGER = "lightning.pytorch.utilities.rank_zero"


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.body(x)))


def make(function: Callable[[Tensor], Tensor] = torch.tanh) -> tuple[Net, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(function).eval()
    return model, torch.randn(40, 5, generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("method", ["finite_difference", "jvp", "jvp_bf16"])
def test_a_pattern_without_a_module_is_refused(method):
    model, batch = make()
    with pytest.raises(ValueError, match=r"`modules=\['neck'\]`: 'neck' matches no module of Net"):
        choose(model, batch, method=method, modules=["neck"])


@pytest.mark.parametrize("method", [{}, {"method": "finite_difference"}])
def test_finite_differences_are_the_default(method, caplog):
    model, batch = make()
    with caplog.at_level(logging.INFO, LOGGER):
        assert type(choose(model, batch, **method)) is FiniteDifferences
    assert "derivatives" not in caplog.text


# ---------------------------------------------------------------- agreement


def test_derivatives_that_rank_as_finite_differences_do_say_so(caplog):
    model, batch = make()
    with caplog.at_level(logging.INFO, LOGGER):
        assert type(choose(model, batch, method="jvp_bf16")) is ForwardDerivatives
    assert "Noise stability by derivatives: rank agreement 0.99" in caplog.text


def test_derivatives_that_rank_otherwise_are_taken_with_a_warning():
    model, batch = make()
    with pytest.warns(
        UserWarning, match=r"rank a batch otherwise.*rank agreement -?0\.\d+, expected at least 0\.99"
    ) as w:
        backend = choose(model, batch, magnitude=5.0, method="jvp")
    assert len(w) == 1
    assert "the noise is too large for a first-order term" in str(w[0].message)
    assert str(w[0].message).endswith("Noise stability takes them all the same, as asked.")
    assert type(backend) is ForwardDerivatives


def test_a_forward_that_cuts_the_gradient_is_noticed():
    def cut(x: Tensor) -> Tensor:
        return x.detach().tanh()

    with pytest.warns(UserWarning, match=r"or `forward` cuts the gradient\. Noise stability takes them all the same"):
        choose(*make(cut), method="jvp")


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
    with pytest.warns(UserWarning, match=r"`method=\"finite_difference\"` does the same without this warning"):
        scores = noise_stability(model, [batch, batch[:3]], method=method)
    assert (expected > 0).all()
    assert torch.equal(scores, expected)


@pytest.mark.filterwarnings("ignore:No derivative along the noise")
def test_finite_differences_in_derivatives_stead_warn_of_low_precision_too():
    model, batch = make(lambda x: distances(x.bfloat16().float()))
    with pytest.warns(UserWarning, match="computes in low precision by itself.*rank rounding errors"):
        choose(model, batch, method="jvp")


def test_a_fused_recurrent_layer_is_named_and_gets_finite_differences():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x)[0][:, -1])

    batch = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        UserWarning, match=r"noise: mkldnn_rnn_layer has no forward-mode formula\. Noise .* takes finite"
    ):
        backend = choose(Recurrent().eval(), batch, method="jvp")
    assert type(backend) is FiniteDifferences


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
    torch.testing.assert_close(changes(choose(ending, batch, method="jvp"), batch), expected, rtol=1e-4, atol=1e-8)


# ---------------------------------------------------------------- random models


@pytest.mark.parametrize("method", ["finite_difference", "jvp", "jvp_bf16"])
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


def test_a_single_sample_has_no_rank_to_disagree_on():
    assert rank_agreement(torch.tensor([1.0]), torch.tensor([-2.0])) == 1.0
    model, batch = make()
    assert type(choose(model, batch[:1], method="jvp")) is ForwardDerivatives


@pytest.mark.parametrize(("agreement", "warns"), [(0.9901, False), (0.9899, True), (float("nan"), True)])
def test_the_threshold_is_the_documented_one(monkeypatch, agreement, warns):
    assert AGREEMENT == 0.99
    model, batch = make()
    monkeypatch.setattr(backends, "rank_agreement", lambda one, other: agreement)
    with pytest.warns(UserWarning, match="rank a batch otherwise") if warns else nullcontext():
        assert type(choose(model, batch, method="jvp")) is ForwardDerivatives


@pytest.mark.parametrize("error", [AssertionError("type(w) is nn.Parameter"), TypeError("no NumPy"), KeyError("x")])
def test_whatever_only_the_derivative_cannot_do_is_no_end_of_a_cycle(error, monkeypatch):
    model, batch = make()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("lightning_al.perturbation.forward_mode.jvp", fail)
    with pytest.warns(UserWarning, match="No derivative along the noise: .*takes finite differences"):
        backend = choose(model, batch, method="jvp")
    assert type(backend) is FiniteDifferences


def test_a_derivative_that_does_not_fit_into_memory_is_replaced(monkeypatch):
    model, batch = make()

    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("lightning_al.perturbation.forward_mode.jvp", fail)
    with pytest.warns(UserWarning, match="OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. Noise"):
        backend = choose(model, batch, method="jvp")
    assert type(backend) is FiniteDifferences


def test_finite_differences_of_a_forward_in_low_precision_warn():
    model, batch = make(lambda x: x.bfloat16().float())
    with pytest.warns(UserWarning, match="computes in low precision by itself.*rank rounding errors"):
        choose(model, batch, method="finite_difference")
