import functools
import itertools
import math
import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional import spearman_corrcoef

from lightning_al.functional import noise_stability
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream, make_generator
from lightning_al.perturbation import deviations
from lightning_al.perturbation.finite_differences import FiniteDifferences
from lightning_al.perturbation.noise import Noise
from lightning_al.scoring.memory import MemoryLimit
from tests.noise_stability_twin import twin
from tests.snapshot import module_picture, random_picture
from tests.sweep import NOISES, sampled

# the function of the same name hides its module from an ordinary import
implementation = sys.modules["lightning_al.perturbation.score"]

HALF_ULP = 2.0**-24  # of float32, relative
SINGLE = 2 * HALF_ULP  # float64 scores come back as float32


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tokens(*shape: int, below: int = 11, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- models


class MLP(nn.Module):
    def __init__(self, outputs: int = 3, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.body = nn.Linear(5, 8)
        self.activation = activation()
        self.head = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.body(x)))


class ConvNet(nn.Module):
    """Batch normalization with statistics of its own, and enough dropout to be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(4, 3)
        self.train()
        with torch.no_grad():
            for _ in range(5):
                self(2 * torch.randn(16, 2, 6, 6) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=0)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embedding(input_ids).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, bidirectional=True, dropout=0.4, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Tied(nn.Module):
    """A language model's embedding that is also its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.decoder = nn.Linear(6, 11)
        self.decoder.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.decoder(self.embedding(input_ids).mean(1).tanh())


class Partly(MLP):
    """A frozen layer in front, an unused one at the side, an empty parameter, and a buffer that forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(40, 40)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("shift", normal(8, seed=9))
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.body(x)) + self.shift)


class Segmenter(nn.Module):
    """Like torchvision's: a dict whose first entry has a score per class and pixel."""

    def __init__(self, dimensions: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.backbone = conv(2, 4, 3, padding=1)
        self.classifier = conv(4, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x).relu()
        return {"out": self.classifier(features), "features": features}


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0])


class Regressor(MLP):
    def __init__(self) -> None:
        super().__init__(outputs=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(1)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Tensor]  # (samples, seed)
    noisy: list[str] | None = None  # None: every parameter
    options: Mapping[str, Any] = field(default_factory=dict)
    raw: Callable[[Any], Tensor] = lambda outputs: outputs  # to (B, C, *positions)


CASES = {
    "mlp": Case(MLP, lambda n, seed: normal(n, 5, seed=seed)),
    "conv": Case(ConvNet, lambda n, seed: 2 * normal(n, 2, 6, 6, seed=seed) + 1),
    "embedding": Case(Bag, lambda n, seed: tokens(n, 4, seed=seed)),
    "lstm": Case(Recurrent, lambda n, seed: normal(n, 3, 4, seed=seed)),
    "attention": Case(Attention, lambda n, seed: normal(n, 3, 8, seed=seed)),
    "encoder": Case(Encoder, lambda n, seed: normal(n, 3, 8, seed=seed)),
    "tied": Case(Tied, lambda n, seed: tokens(n, 4, seed=seed), ["embedding.weight", "decoder.bias"]),
    "tied, named by its second name": Case(
        Tied,
        lambda n, seed: tokens(n, 4, seed=seed),
        ["embedding.weight", "decoder.bias"],
        {"modules": ["decoder"]},
    ),
    "partly": Case(Partly, lambda n, seed: normal(n, 5, seed=seed), ["head.weight", "head.bias"]),
    "segmentation": Case(Segmenter, lambda n, seed: normal(n, 2, 5, 4, seed=seed), raw=lambda outputs: outputs["out"]),
    "segmentation, l2": Case(
        Segmenter, lambda n, seed: normal(n, 2, 5, 4, seed=seed), None, {"norm": "l2"}, lambda outputs: outputs["out"]
    ),
    "volume": Case(
        lambda: Segmenter(3), lambda n, seed: normal(n, 2, 3, 4, 2, seed=seed), raw=lambda outputs: outputs["out"]
    ),
    "sequence": Case(Tagger, lambda n, seed: normal(n, 3, 4, seed=seed), raw=lambda outputs: outputs.permute(0, 2, 1)),
    "regression": Case(
        Regressor,
        lambda n, seed: normal(n, 5, seed=seed),
        options={"output": "identity"},
        raw=lambda outputs: outputs[:, None],
    ),
    "multi-label": Case(MLP, lambda n, seed: normal(n, 5, seed=seed), options={"output": "sigmoid"}),
    "one binary logit": Case(lambda: MLP(1), lambda n, seed: normal(n, 5, seed=seed), options={"output": "sigmoid"}),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return a model, in training mode as a fit leaves it, and two batches (inputs, targets) of unequal size."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        model = CASES[name].make().to(dtype).train()
    return model, [(CASES[name].inputs(size, seed), torch.zeros(size)) for seed, size in enumerate((4, 3))]


def twin_of(name: str, model: nn.Module, batches: list[tuple[Tensor, Tensor]], **options: Any) -> Tensor:
    case = CASES[name]
    options = {**case.options, **options}
    options.pop("modules", None)
    exact = [inputs.double() if inputs.is_floating_point() else inputs for inputs, _ in batches]
    options.setdefault("noisy", case.noisy)
    return twin(model, exact, call=lambda module, inputs: case.raw(module(inputs)), **options)


def assert_close(actual: Tensor, expected: Tensor, tolerance: Tensor | float) -> None:
    assert actual.shape == expected.shape
    assert ((actual.double() - expected).abs() <= tolerance).all(), (actual, expected, tolerance)


# ---------------------------------------------------------------- the twin

INNER_OPTIONS = list(itertools.product(("squared", "l2"), ("softmax", "sigmoid", "identity"), (None, ["head"]), (1, 3)))


@pytest.mark.parametrize(("distribution", "scope", "relative"), NOISES)
def test_every_option_equals_the_twin_in_double_precision(distribution, scope, relative):
    model, batches = make("mlp", torch.float64)
    seen = []
    for norm, output, modules, passes in INNER_OPTIONS:
        options = {
            "distribution": distribution,
            "scope": scope,
            "relative": relative,
            "norm": norm,
            "output": output,
            "passes": passes,
            "seed": 3,
        }
        scores = noise_stability(model, batches, modules=modules, **options)
        expected = twin_of("mlp", model, batches, noisy=modules and ["head.weight", "head.bias"], **options)
        assert scores.dtype == torch.float32
        assert (scores > 0).all()
        assert_close(scores, expected, SINGLE * expected)
        seen.append(scores)
    # and no option is a synonym of another one
    assert len({tuple(scores.tolist()) for scores in seen}) == len(INNER_OPTIONS)


def rounding_bound(model: MLP, inputs: Tensor, output: str) -> Tensor:
    r"""Bound ||computed deviation - true deviation|| per sample for an MLP in float32.

    With u = 2^-24, a dot product of n products and a bias is off by at most (n + 1) u sum |w||x| to first order, a
    weight and its step by 3 u |w|, and ReLU by nothing, so the logits are off by at most
    ((1 + (n_1 + 4) u)(1 + (n_2 + 4) u) - 1) |W_2|(|W_1||x| + |b_1|) + |b_2|; the 1.1 covers the noise in |W| and
    second order. Softmax and sigmoid shrink that (their Jacobians' norms are at most 1/2 and 1/4) and add a few u of
    their own to outputs of at most 1. Clean and noisy output both err; their difference is off by u of itself.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    size, growth = inputs.double().abs(), 1.0
    for layer in layers:
        size = size @ layer.weight.double().abs().T + layer.bias.double().abs()
        growth *= 1 + (layer.in_features + 4) * HALF_ULP
    stretch, own = {"softmax": (0.5, 11.0), "sigmoid": (0.25, 8 * math.sqrt(3)), "identity": (1.0, 0.0)}[output]
    return 2 * (stretch * 1.1 * (growth - 1) * size.norm(dim=1) + own * HALF_ULP)


@pytest.mark.parametrize(("distribution", "scope", "relative"), NOISES)
def test_every_option_equals_the_twin_in_single_precision(distribution, scope, relative):
    model, batches = make("mlp")
    for norm, output in itertools.product(("squared", "l2"), ("softmax", "sigmoid", "identity")):
        options = {
            "distribution": distribution,
            "scope": scope,
            "relative": relative,
            "norm": norm,
            "output": output,
            "passes": 4,
            "magnitude": 1e-2,
        }
        scores = noise_stability(model, batches, **options)
        expected = twin_of("mlp", model, batches, **options)
        error = torch.cat([rounding_bound(model, inputs, output) for inputs, _ in batches]).detach()
        # | ||d + e||^2 - ||d||^2 | <= ||e|| (2 ||d|| + ||e||), whose mean over k is at most ||e|| (2 sqrt(R) + ||e||)
        bound = error * (2 * expected.sqrt() + error) if norm == "squared" else error
        assert (bound < 0.05 * expected).all()  # or the comparison would say little
        assert_close(scores, expected, bound + 16 * SINGLE * expected)


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_equals_the_twin_in_double_precision(name):
    model, batches = make(name, torch.float64)
    for distribution, scope in itertools.product(("gaussian", "laplace"), ("global", "tensor")):
        options = {"distribution": distribution, "scope": scope, "passes": 2, **CASES[name].options}
        scores = noise_stability(model, batches, **options)
        expected = twin_of(name, model, batches, **options)
        assert (expected > 0).all()
        assert_close(scores, expected, SINGLE * expected)


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_equals_the_twin_in_single_precision(name):
    model, batches = make(name)
    options = dict(CASES[name].options)
    scores = noise_stability(model, batches, **options)
    expected = twin_of(name, model, batches, **options)
    # what float32 does to the clean outputs it also does to the noisy ones; 8 times the largest such error seen
    exact = twin_outputs(name, model.double(), batches)
    error = 8 * (twin_outputs(name, model.float(), batches) - exact).flatten(1).norm(dim=1).max() + 8 * HALF_ULP
    bound = error * (2 * expected.sqrt() + error) if options.get("norm") != "l2" else error
    assert_close(scores, expected, bound + 16 * SINGLE * expected)


def twin_outputs(name: str, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    dtype = next(model.parameters()).dtype
    model.eval()
    with torch.no_grad():
        inputs = [inputs.to(dtype) if inputs.is_floating_point() else inputs for inputs, _ in batches]
        return torch.cat([CASES[name].raw(model(x)) for x in inputs]).double()


def test_attention_takes_its_fast_path_and_gets_the_same_scores():
    class Record(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.__name__)
            return func(*args, **(kwargs or {}))

    for name, operator in (
        ("encoder", "_transformer_encoder_layer_fwd.default"),
        ("attention", "_native_multi_head_attention.default"),
    ):
        model, batches = make(name, torch.float64)
        with Record() as record:
            fast = noise_stability(model, batches)
        assert operator in record.names
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow = noise_stability(model, batches)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        torch.testing.assert_close(fast, slow, rtol=SINGLE, atol=0)


# ---------------------------------------------------------------- known expectations

VARIANCES = {"gaussian": 1.0, "uniform": 1 / 3, "laplace": 2.0}
EXCESS_KURTOSIS = {"gaussian": 0.0, "uniform": -1.2, "laplace": 3.0}


@pytest.mark.parametrize("distribution", VARIANCES)
def test_a_linear_model_has_the_expected_score(distribution):
    r"""E[R] = magnitude^2 * variance * ||J||_F^2, and R is close to it for many passes.

    y = W x + b has the Jacobian J = I_C (x) a with a = (x, 1), so ||J||_F^2 = C ||a||^2, and output c of pass k moves
    by d_kc = m sum_j a_j D_kcj. With Var D = v and excess kurtosis q, d_kc has variance s = m^2 v ||a||^2 and the
    excess kurtosis q rho, rho = sum a_j^4 / ||a||^4 (cumulants of independent terms add up), hence
    E[d^4] = s^2 (3 + q rho) and Var[d^2] = s^2 (2 + q rho); for a Gaussian d^2 / s is chi-square with Var = 2.
    R = 1/K sum_kc d_kc^2 averages over K and adds up C independent terms: E[R] = C s, Var[R] = C s^2 (2 + q rho) / K,
    so that the relative standard deviation is sqrt((2 + q rho) / (K C)). Five of them fail once in a million draws.
    """
    passes, outputs, magnitude = 1000, 4, 0.05
    model = nn.Linear(6, outputs).double()
    inputs = normal(8, 6, dtype=torch.float64)
    scores = noise_stability(
        model,
        [inputs],
        passes=passes,
        magnitude=magnitude,
        relative=False,
        distribution=distribution,
        output="identity",
    )
    extended = torch.cat([inputs, torch.ones(8, 1, dtype=torch.float64)], dim=1)
    jacobian_squared = outputs * extended.square().sum(1)
    expected = magnitude**2 * VARIANCES[distribution] * jacobian_squared
    rho = extended.pow(4).sum(1) / extended.square().sum(1).square()
    deviation = torch.sqrt((2 + EXCESS_KURTOSIS[distribution] * rho) / (passes * outputs))
    assert_close(scores, expected, 5 * deviation * expected)
    # the first pass alone would not do: the mean over the passes is what is right
    assert (deviation < 0.03).all()


# torch's own use of its own TorchScript, at the first forward-mode derivative
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("output", ["softmax", "identity"])
def test_small_noise_gives_the_first_order_term_and_the_error_shrinks_with_it(output):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MLP(activation=nn.Tanh).double()
    inputs = normal(6, 5, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def forward(values: dict[str, Tensor]) -> Tensor:
        raw = torch.func.functional_call(model, values, (inputs,))
        return raw.softmax(1) if output == "softmax" else raw

    def first_order(passes: int) -> Tensor:
        total = torch.zeros(6, dtype=torch.float64)
        for k in range(passes):
            steps = Noise(1.0).draw(
                [p.detach() for p in parameters.values()], make_generator(RandomStream.NOISE, 0, 0, k)
            )
            tangent = torch.func.jvp(forward, (parameters,), (dict(zip(parameters, steps, strict=True)),))[1]
            total += tangent.detach().square().sum(1)
        return total / passes

    def relative_error(magnitude: float) -> float:
        scores = noise_stability(model, [inputs], passes=5, magnitude=magnitude, output=output).double()
        return float((scores / magnitude**2 / first_order(5) - 1).norm())

    def quarter_error(magnitude: float) -> float:
        whole = noise_stability(model, [inputs], passes=5, magnitude=magnitude, output=output).double()
        half = noise_stability(model, [inputs], passes=5, magnitude=magnitude / 2, output=output).double()
        return float((4 * half / whole - 1).norm())

    for error in (relative_error, quarter_error):
        assert 1e-5 < error(4e-3) < 0.1
        assert error(1e-3) / error(4e-3) == pytest.approx(1 / 4, rel=0.1)


def test_relative_noise_ignores_the_scale_of_a_homogeneous_model():
    # ReLU without biases: t * theta gives t^2 * f, and relative noise t^2 times the deviation
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)).double()
    inputs = normal(4, 5, dtype=torch.float64)
    before = noise_stability(model, [inputs], output="identity")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    torch.testing.assert_close(noise_stability(model, [inputs], output="identity"), before * 4**4, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- what gets noise


def test_an_unused_or_frozen_parameter_does_not_change_the_score():
    model, batches = make("mlp")
    before = noise_stability(model, batches)
    model.side = nn.Linear(300, 300)
    model.scale = nn.Parameter(torch.full((1000,), 100.0), requires_grad=False)
    assert torch.equal(noise_stability(model, batches), before)


def test_a_frozen_layer_gets_no_noise():
    model, batches = make("mlp", torch.float64)
    model.body.requires_grad_(False)
    expected = noise_stability(make("mlp", torch.float64)[0], batches, modules=["head"])
    assert torch.equal(noise_stability(model, batches), expected)
    model.body.bias.requires_grad_(True)
    expected = twin_of("mlp", model, batches, noisy=["body.bias", "head.weight", "head.bias"])
    assert_close(noise_stability(model, batches), expected, SINGLE * expected)


@pytest.mark.parametrize(
    ("patterns", "noisy"),
    [
        (["head"], ["head.weight", "head.bias"]),
        (["h*", "bo?y"], ["body.weight", "body.bias", "head.weight", "head.bias"]),
        (["*"], ["body.weight", "body.bias", "head.weight", "head.bias"]),
        (["head", "head"], ["head.weight", "head.bias"]),
    ],
)
def test_modules_confine_the_noise(patterns, noisy):
    model, batches = make("mlp", torch.float64)
    expected = twin_of("mlp", model, batches, noisy=noisy)
    assert_close(noise_stability(model, batches, modules=patterns), expected, SINGLE * expected)


def test_a_confined_relative_noise_is_scaled_to_the_confined_parameters():
    # the norm of everything else must not come in: a huge body would blow up the noise of the head
    model, batches = make("mlp", torch.float64)
    wide = make("mlp", torch.float64)[0]
    wide.extra = nn.Linear(5, 5).double()
    with torch.no_grad():
        wide.extra.weight.mul_(1e6)
    assert torch.equal(
        noise_stability(wide, batches, modules=["head"]), noise_stability(model, batches, modules=["head"])
    )


# ---------------------------------------------------------------- the model is left alone


@pytest.mark.parametrize("name", CASES)
def test_the_model_and_the_global_random_numbers_are_bit_identical_afterwards(name):
    model, batches = make(name)
    for child in model.modules():
        child.training = random.Random(len(vars(child))).random() < 0.5  # flags that differ per submodule
    first = next(iter(model.parameters()))
    first.grad = torch.full_like(first, math.nan)
    inputs = [inputs.clone() for inputs, _ in batches]
    before, generators = module_picture(model), random_picture()
    scores = noise_stability(model, batches, **CASES[name].options)
    assert module_picture(model) == before
    assert random_picture() == generators
    assert all(torch.equal(old, new) for old, (new, _) in zip(inputs, batches, strict=True))
    assert not scores.requires_grad
    assert scores.shape == (7,)


def test_a_failing_forward_leaves_the_model_alone_too():
    class Broken(MLP):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).calls += 1
            if type(self).calls == 4:
                raise RuntimeError("broken on purpose")
            return super().forward(x)

    model, (_, batches) = Broken(), make("mlp")
    before = module_picture(model)
    precision = torch.get_float32_matmul_precision()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        noise_stability(model, batches)
    assert Broken.calls == 4
    assert module_picture(model) == before
    assert torch.get_float32_matmul_precision() == precision
    assert torch.is_grad_enabled()


def test_buffers_get_no_noise_and_running_statistics_are_used():
    model, batches = make("conv", torch.float64)
    score = noise_stability(model, batches)
    # in training mode the batch would normalize itself and the running mean would not matter
    model.features[1].running_mean.add_(3)
    assert not torch.allclose(noise_stability(model, batches), score)
    assert torch.equal(noise_stability(model.eval(), batches), noise_stability(model.train(), batches))


def test_the_order_and_the_company_of_samples_do_not_matter():
    model, batches = make("conv", torch.float64)
    inputs = torch.cat([inputs for inputs, _ in batches])
    together = noise_stability(model, [inputs])
    alone = torch.cat([noise_stability(model, [inputs[row : row + 1]]) for row in range(7)])
    backwards = noise_stability(model, inputs.flip(0).split(2)).flip(0)
    torch.testing.assert_close(alone, together, rtol=SINGLE, atol=0)
    torch.testing.assert_close(backwards, together, rtol=SINGLE, atol=0)


def test_the_seed_decides():
    model, batches = make("mlp", torch.float64)
    scores = noise_stability(model, batches, seed=5)
    assert torch.equal(noise_stability(model, batches, seed=5), scores)
    assert not torch.equal(noise_stability(model, batches, seed=6), scores)
    # the passes of a shorter run are the first ones of a longer one
    one, two = (noise_stability(model, batches, passes=k, seed=5).double() for k in (1, 2))
    second = twin_of("mlp", model, batches, seeds=[(RandomStream.NOISE, 5, 0, 1)])
    torch.testing.assert_close(2 * two - one, second, rtol=1e-5, atol=0)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("name", ["mlp", "conv", "lstm", "encoder", "tied"])
def test_autocast_around_the_call_changes_nothing(name):
    model, batches = make(name)
    expected = noise_stability(model, batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(noise_stability(model, batches), expected)
        assert torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_matmul_precision_changes_nothing_and_is_restored(precision):
    model, batches = make("mlp")
    expected = noise_stability(model, batches)
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(noise_stability(model, batches), expected)
        assert torch.get_float32_matmul_precision() == precision
        with pytest.raises(ValueError, match="no batch"):
            noise_stability(model, [])
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch 2.9 brought `fp32_precision`")
@pytest.mark.parametrize("operators", ["matmul", "conv"])
def test_precision_set_the_new_way_changes_nothing_and_is_restored(operators):
    model, batches = make("conv")
    expected = noise_stability(model, batches)
    switch: Any = getattr(torch.backends.mkldnn, operators)
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        assert torch.equal(noise_stability(model, batches), expected)
        assert switch.fp32_precision == "bf16"
        with pytest.raises(ValueError, match="no batch"):
            noise_stability(model, [])
        assert switch.fp32_precision == "bf16"
    finally:
        switch.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "conv", "lstm", "tied"])
def test_low_precision_weights_are_scored_in_single_precision(name, dtype):
    model, batches = make(name, dtype)
    before = module_picture(model)
    low = [(x.to(dtype) if x.is_floating_point() else x, y) for x, y in batches]
    rounded = [(x.to(dtype).float() if x.is_floating_point() else x, y) for x, y in batches]
    assert next(model.parameters()).dtype == dtype
    scores = noise_stability(model, low)
    assert module_picture(model) == before
    assert torch.equal(scores, noise_stability(model.float(), rounded))


def test_inference_mode_around_the_call_changes_nothing():
    model, batches = make("conv")
    expected = noise_stability(model, batches)
    with torch.inference_mode():
        assert torch.equal(noise_stability(model, batches), expected)


@pytest.mark.parametrize("name", sampled(["mlp", "conv", "encoder"], ["conv"]))
def test_a_compiled_model_gets_the_same_scores(name):
    model, batches = make(name, torch.float64)
    expected = noise_stability(model, batches)
    compiled = torch.compile(model, backend="eager")
    before = module_picture(model)
    scores = noise_stability(compiled, batches)
    torch.testing.assert_close(scores, expected, rtol=SINGLE, atol=0)
    assert module_picture(model) == before


@pytest.mark.parametrize("passes", [10, "inf"])
@pytest.mark.parametrize(("last", "output"), [(nn.Softmax(1), "softmax"), (nn.Sigmoid(), "sigmoid")])
def test_a_softmax_or_sigmoid_at_the_end_is_not_taken_twice(last, output, passes):
    model, batches = make("mlp", torch.float64)
    scores = noise_stability(nn.Sequential(model, last), batches, output=output, passes=passes, directions="all")
    assert_close(
        scores,
        noise_stability(model, batches, output=output, passes=passes, directions="all").double(),
        SINGLE * scores,
    )


# ---------------------------------------------------------------- batches


def test_every_form_of_batches_gives_the_same_scores():
    model, batches = make("mlp")
    expected = noise_stability(model, batches)
    inputs = torch.cat([inputs for inputs, _ in batches])
    forms = {
        "tensors": [x for x, _ in batches],
        "lists": [[x, y] for x, y in batches],
        "dicts": [{"x": x, "label": y} for x, y in batches],
        "dicts with another key": [{"image": x, "target": y} for x, y in batches],
        "nested": [({"x": x}, y) for x, y in batches],
        "a generator": (batch for batch in batches),
        "a loader": DataLoader(TensorDataset(inputs, torch.zeros(7)), batch_size=4),
    }
    for name, form in forms.items():
        assert torch.equal(noise_stability(model, form), expected), name


@pytest.mark.parametrize("chunk_bytes", [1, 100, 2**20])
def test_chunks_do_not_change_the_scores(monkeypatch, chunk_bytes):
    model, _ = make("mlp")
    batches = [normal(3, 5, seed=seed) for seed in range(5)]  # 60 bytes each
    expected = noise_stability(model, batches)
    sizes = []

    def spy(backend: Any, chunk: Any, **options: Any) -> Tensor:
        sizes.append(len(chunk))
        return original(backend, chunk, **options)

    original = implementation.deviation_sizes
    monkeypatch.setattr(implementation, "deviation_sizes", spy)
    monkeypatch.setattr(implementation, "MemoryLimit", functools.partial(MemoryLimit, chunk_bytes))
    assert torch.equal(noise_stability(model, batches), expected)
    assert sizes == {1: [1] * 5, 100: [1] * 5, 2**20: [5]}[chunk_bytes]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", ["mlp", "segmentation"])
def test_deviation_vectors_are_the_deviations_side_by_side(name, normalize):
    model, batches = make(name, torch.float64)
    model.eval()
    predictor, parameters = Predictor(model), list(model.parameters())
    seeds = [(1, k) for k in range(3)]
    chunk = [(inputs.double(), labels) for inputs, labels in batches]
    with torch.no_grad():
        backend = FiniteDifferences(predictor.probabilities, parameters, Noise())
        vectors = deviations.deviation_vectors(backend, chunk, seeds, normalize=normalize)
        expected = []
        clean = torch.cat([predictor.probabilities(batch) for batch in chunk]).flatten(2 if name != "mlp" else 1)
        center = clean.mean(2) if name != "mlp" else clean
        for seed in seeds:
            noised = make(name, torch.float64)[0].eval()
            steps = Noise().draw(parameters, make_generator(*seed))
            for parameter, step in zip(noised.parameters(), steps, strict=True):
                parameter.add_(step)
            moved = torch.cat([Predictor(noised).probabilities(batch) for batch in chunk])
            moved = moved.flatten(2).mean(2) if name != "mlp" else moved
            expected.append((moved - center) / (center.norm(dim=1, keepdim=True) if normalize else 1))
    assert vectors.shape == (7, 9)
    torch.testing.assert_close(vectors, torch.cat(expected, 1), rtol=1e-9, atol=1e-13)
    if name == "mlp" and not normalize:
        scores = twin_of(name, model, batches, seeds=seeds)
        torch.testing.assert_close(vectors.square().sum(1) / 3, scores, rtol=1e-9, atol=0)


@pytest.mark.parametrize("norm", ["squared", "l2"])
@pytest.mark.parametrize("name", ["mlp", "segmentation", "sequence", "regression", "multi-label"])
def test_deviation_sizes_are_those_of_each_pass_side_by_side(name, norm):
    model, batches = make(name, torch.float64)
    output = CASES[name].options.get("output", "softmax")
    predictor, seeds = Predictor(model.eval()), [(1, k) for k in range(4)]
    batches = [(inputs.double(), labels) for inputs, labels in batches]
    with torch.no_grad():
        backend = FiniteDifferences(lambda x: predictor.output(x, output), list(model.parameters()), Noise())
        sizes = deviations.deviation_sizes(backend, batches, seeds, norm)
        alone = [deviations.deviation_sizes(backend, [batch], seeds, norm) for batch in batches]
    assert sizes.shape == (7, 4)
    assert torch.equal(sizes, torch.cat(alone))
    for step, seed in enumerate(seeds):
        # the twin of one pass only
        expected = twin_of(name, model, batches, seeds=[seed], norm=norm)
        torch.testing.assert_close(sizes[:, step], expected, rtol=1e-7, atol=0)
    scores = twin_of(name, model, batches, seeds=seeds, norm=norm)
    torch.testing.assert_close(sizes.mean(1), scores, rtol=1e-7, atol=0)


@pytest.mark.parametrize("passes", [1, 2, 3, 10])
def test_ranking_rows_are_the_score_and_its_two_halves(passes):
    sizes = normal(5, passes, dtype=torch.float64).square()
    score, even, odd = deviations.ranking_rows(sizes).T
    halves = [[row[half::2] or row for row in sizes.tolist()] for half in (0, 1)]  # one pass is both halves
    for column, parts in ((score, sizes.tolist()), (even, halves[0]), (odd, halves[1])):
        assert column.tolist() == pytest.approx([math.fsum(part) / len(part) for part in parts])
    assert (deviations.SCORE, deviations.EVEN, deviations.ODD) == (0, 1, 2)


# ---------------------------------------------------------------- memory


def test_a_lack_of_memory_changes_no_score(monkeypatch):
    model, batches = make("mlp", torch.float64)
    expected = noise_stability(model, batches)
    tried = []

    def short(backend: Any, chunk: Any, **options: Any) -> Tensor:
        tried.append([len(inputs) for inputs, _ in chunk])
        if sum(tried[-1]) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return original(backend, chunk, **options)

    original = implementation.deviation_sizes
    monkeypatch.setattr(implementation, "deviation_sizes", short)
    torch.testing.assert_close(noise_stability(model, batches), expected, rtol=1e-6, atol=0)
    assert tried == [[4, 3], [4], [2], [2], [2], [1]]  # who failed at four does not try three


# ---------------------------------------------------------------- method, compile


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["mlp", "conv", "lstm", "encoder", "tied", "partly", "segmentation", "regression"])
def test_derivatives_are_what_smaller_and_smaller_noise_tends_to(name, caplog):
    model, batches = make(name, torch.float64)
    options = {**CASES[name].options, "passes": 3}
    # symmetric noise of a thousandth: what is left of the second order is a millionth of a millionth
    tiny = [twin_of(name, model, batches, magnitude=size, passes=3) for size in (1e-6, 2e-6)]
    expected = 1e6 * tiny[0]
    assert ((tiny[1] / tiny[0] - 4).abs() < 1e-2).all()
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        found = noise_stability(model, batches, method="jvp", **options)
    assert re.search(r"Noise stability by derivatives: rank agreement (1\.0000|0\.99\d\d) with finite", caplog.text)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_derivatives_in_bfloat16_rank_as_those_in_single_precision_do():
    model, _ = make("mlp")
    batches = [normal(200, 5, seed=seed) for seed in range(2)]
    exact, low = (noise_stability(model, batches, method=method) for method in ("jvp", "jvp_bf16"))
    assert not torch.equal(exact, low)
    assert float(spearman_corrcoef(exact, low)) > 0.999
    assert noise_stability(model, batches).dtype == low.dtype == torch.float32


def test_the_default_is_finite_differences():
    model, batches = make("conv")
    assert torch.equal(noise_stability(model, batches), noise_stability(model, batches, method="finite_difference"))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_noise_too_large_for_a_first_order_term_is_warned_of():
    model, _ = make("mlp")
    batches = [normal(50, 5)]
    message = r"Derivatives along the noise rank a batch otherwise than finite .*takes them all the same, as asked"
    with pytest.warns(UserWarning, match=message):
        noise_stability(model, batches, method="jvp", magnitude=2.0)


@pytest.mark.parametrize("modules", [None, ["head"]])
def test_compiled_passes_give_the_same_scores(monkeypatch, modules):
    model, batches = make("mlp")
    expected = noise_stability(model, batches, passes=3, modules=modules)
    compiled, ran = [], []

    def compile_eagerly(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return lambda *inputs: ran.append(1) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    assert torch.equal(noise_stability(model, batches, passes=3, modules=modules, compile=True), expected)
    assert compiled == [{"mode": None, "dynamic": None}]  # CUDA graphs are for GPUs
    assert len(ran) == 2 * (1 + 3)  # the clean pass and the noisy ones, in full


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, r'`passes=0`: expected at least one pass, or "inf" for the limit.*; the paper uses 10'),
        ({"passes": -2}, r"`passes=-2`"),
        ({"passes": 2.5}, r"`passes=2.5`"),
        ({"passes": True}, r"`passes=True`"),
        ({"passes": "many"}, r"`passes='many'`"),
        ({"passes": -math.inf}, r"`passes=-inf`"),
        ({"directions": 0}, r"`directions=0`: expected a number of backward passes, at least 1, or \"all\"\."),
        ({"directions": True}, r"`directions=True`"),
        ({"directions": "some"}, r"`directions='some'`"),
        ({"directions": 2.0}, r"`directions=2.0`"),
        ({"passes": "inf", "norm": "l2"}, r'`passes="inf"` with `norm=\'l2\'`.*the expected length has none'),
        ({"passes": "inf", "method": "jvp"}, r'`passes="inf"` with `method=\'jvp\'`.*runs no perturbed passes'),
        ({"passes": "inf", "compile": True}, r'`passes="inf"` with .*`compile=True`.*which a compiled model hides'),
        ({"magnitude": 0.0}, r"`Noise\(magnitude=0.0\)`: must be positive; the paper uses 1e-3"),
        ({"magnitude": -1e-3}, r"`Noise\(magnitude=-0.001\)`: must be positive"),
        ({"magnitude": math.nan}, r"`Noise\(magnitude=nan\)`: must be positive"),
        ({"magnitude": math.inf}, r"`Noise\(magnitude=inf\)`: must be positive"),
        ({"distribution": "normal"}, r"distribution='normal'.*expected one of \('gaussian', 'uniform', 'laplace'\)"),
        ({"scope": "layer"}, r"scope='layer'.*expected one of \('global', 'tensor'\)"),
        ({"output": "logits"}, r"`output='logits'`: expected one of \('softmax', 'sigmoid', 'identity'\)"),
        ({"norm": "l1"}, r"`norm='l1'`: expected one of \('squared', 'l2'\)"),
        ({"method": "auto"}, r"`method='auto'`: expected one of \('finite_difference', 'jvp', 'jvp_bf16'\)"),
        ({"method": "vmap"}, r"`method='vmap'`: expected one of \('finite_difference', 'jvp', 'jvp_bf16'\)"),
        ({"modules": ["head", "neck"]}, r"'neck' matches no module of MLP; it has body, activation, head\."),
        ({"modules": []}, r"no parameter to perturb: 0 of its parameters train under modules=\[\]"),
        ({"modules": ["activation"]}, r"0 of its parameters train under modules=\['activation'\]"),
    ],
)
def test_impossible_options_are_refused(options, message):
    model, batches = make("mlp")
    with pytest.raises(ValueError, match=message):
        noise_stability(model, batches, **options)


def test_nothing_to_perturb_is_refused():
    model, batches = make("mlp")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"MLP has no parameter to perturb: 0 of its parameters train.*Unfreeze some"):
        noise_stability(model, batches)
    with pytest.raises(ValueError, match="Identity has no parameter to perturb"):
        noise_stability(nn.Identity(), [normal(3, 2)])


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match=r"`noise_stability\(batches=...\)`: there is no batch to score"):
        noise_stability(MLP(), iter([]))


@pytest.mark.parametrize("name", ["regression", "one binary logit"])
def test_softmax_of_one_output_is_refused(name):
    model, batches = make(name)
    with pytest.raises(ValueError, match=r"one output per sample.*output=\"sigmoid\".*output=\"identity\""):
        noise_stability(model, batches, output="softmax")


def test_global_random_numbers_do_not_matter():
    model, batches = make("mlp")
    expected = noise_stability(model, batches)
    with isolate_rng():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        assert torch.equal(noise_stability(model, batches), expected)


@pytest.mark.parametrize("passes", [3, "inf"])
def test_broken_inputs_are_refused_with_their_rows(passes):
    batches = [torch.ones(3, 2), torch.tensor([[1.0, 2.0], [float("nan"), 0.0]])]
    with pytest.raises(ValueError, match=r"1 of 5 samples have NaN or infinite scores, first \[4\] \(rows\)"):
        noise_stability(torch.nn.Linear(2, 3), batches, passes=passes)
