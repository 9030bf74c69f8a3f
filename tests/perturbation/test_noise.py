import math

import pytest
import torch
from torch import Tensor, nn

from lightning_al.numerics.seeding import make_generator
from lightning_al.perturbation.noise import Noise, noisy_parameters
from tests.sweep import NOISES

DISTRIBUTIONS = ("gaussian", "uniform", "laplace")


def length(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def some_parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = make_generator(0)
    return [scale * torch.randn(shape, generator=generator).to(dtype) for scale, shape in ((9, (4, 3)), (0.1, (50,)))]


# ---------------------------------------------------------------- Noise


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_global_scale_sets_the_length_of_all_steps_together(distribution):
    parameters = some_parameters()
    steps = Noise(0.02, distribution=distribution).draw(parameters, make_generator(1))
    assert [step.shape for step in steps] == [parameter.shape for parameter in parameters]
    assert length(steps) == pytest.approx(0.02 * length(parameters), rel=1e-6)
    # one factor for every element: the small tensor is not spared
    assert length(steps[1:]) > 2 * 0.02 * length(parameters[1:])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_scale_per_tensor_sets_the_length_of_each_step(distribution):
    parameters = some_parameters()
    steps = Noise(0.02, distribution=distribution, scope="tensor").draw(parameters, make_generator(1))
    for parameter, step in zip(parameters, steps, strict=True):
        assert length([step]) == pytest.approx(0.02 * length([parameter]), rel=1e-6)


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize(
    ("distribution", "variance", "kurtosis"), [("gaussian", 1, 3), ("uniform", 1 / 3, 9 / 5), ("laplace", 2, 6)]
)
def test_an_absolute_scale_has_the_moments_of_the_distribution(distribution, variance, kurtosis, scope):
    count = 200_000
    noise = Noise(0.1, relative=False, distribution=distribution, scope=scope)
    (step,) = noise.draw([torch.zeros(count, dtype=torch.float64)], make_generator(2))
    draws = step / 0.1
    # standard errors of the moments: sqrt(v / n) and v sqrt((kurtosis - 1) / n); five of each
    assert abs(float(draws.mean())) < 5 * math.sqrt(variance / count)
    assert abs(float(draws.square().mean()) - variance) < 5 * variance * math.sqrt((kurtosis - 1) / count)
    assert float(draws.pow(4).mean()) / variance**2 == pytest.approx(kurtosis, rel=0.15)
    assert (float(draws.abs().max()) <= 1) == (distribution == "uniform")
    # independent neighbors: the correlation has the standard error 1 / sqrt(n)
    assert abs(float((draws[1:] * draws[:-1]).mean()) / variance) < 5 / math.sqrt(count)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_magnitude_is_a_factor_and_the_generator_decides(distribution, relative):
    parameters = some_parameters(torch.float64)

    def draw(magnitude: float, *entropy: int) -> list[Tensor]:
        return Noise(magnitude, relative, distribution).draw(parameters, make_generator(*entropy))

    for once, thrice in zip(draw(1e-3, 4), draw(3e-3, 4), strict=True):
        torch.testing.assert_close(3 * once, thrice, rtol=1e-12, atol=0)
    assert all(map(torch.equal, draw(1e-3, 4), draw(1e-3, 4)))
    assert not any(map(torch.equal, draw(1e-3, 4), draw(1e-3, 5)))


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_zero_parameter_has_no_length_to_be_relative_to(distribution, scope):
    parameters = [torch.zeros(3), torch.full((4,), 2.0)]
    zero, other = Noise(0.1, distribution=distribution, scope=scope).draw(parameters, make_generator(0))
    assert length([zero, other]) == pytest.approx(0.1 * 4, rel=1e-6)
    assert (length([zero]) == 0) == (scope == "tensor")  # together with others it moves as they do
    assert Noise(0.1, False, distribution, scope).draw([torch.zeros(3)], make_generator(0))[0].all()


def test_a_draw_of_zero_makes_no_step_instead_of_nan():
    # in low precision the two exponentials of a Laplace draw are often equal, and 0 / 0 would spread to every output
    parameters = [torch.ones((), dtype=torch.bfloat16) for _ in range(3_000)]
    steps = torch.stack(Noise(0.5, distribution="laplace", scope="tensor").draw(parameters, make_generator(0)))
    zeros = int((steps == 0).sum())
    assert zeros > 0
    assert int(((steps.abs() - 0.5).abs() < 0.01).sum()) == 3_000 - zeros


def test_steps_have_the_shape_and_the_precision_of_their_parameters():
    parameters = [
        torch.ones(3, dtype=torch.float64),
        torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        nn.Parameter(torch.ones(2)),
    ]
    steps = Noise(0.1).draw(parameters, make_generator(0))
    assert [step.dtype for step in steps] == [torch.float64, torch.float32, torch.float32]
    assert [step.shape for step in steps] == [parameter.shape for parameter in parameters]
    assert not any(step.requires_grad or isinstance(step, nn.Parameter) for step in steps)
    assert all(bool((parameter == 1).all()) for parameter in parameters)


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("shape", "lay_out"),
    [
        ((4, 3, 5, 5), lambda tensor: tensor.contiguous(memory_format=torch.channels_last)),
        ((4, 3, 2, 3, 3), lambda tensor: tensor.contiguous(memory_format=torch.channels_last_3d)),
        ((30, 20), lambda tensor: tensor.t().contiguous().t()),
        ((30, 20), lambda tensor: torch.cat([tensor, tensor], 1)[:, :20]),
    ],
)
def test_noise_is_the_same_however_a_parameter_lies_in_memory(shape, lay_out, distribution, scope):
    plain = torch.randn(shape, generator=make_generator(0))
    other = lay_out(plain)
    assert torch.equal(other, plain)
    assert other.stride() != plain.stride()
    noise = Noise(0.1, distribution=distribution, scope=scope)
    steps = [noise.draw([tensor, torch.ones(7)], make_generator(1)) for tensor in (plain, other)]
    # the norms are summed in another order, in double precision
    for one, two in zip(*steps, strict=True):
        torch.testing.assert_close(one, two, rtol=2 * torch.finfo(torch.float32).eps, atol=0)
    absolute = Noise(0.1, relative=False, distribution=distribution, scope=scope)
    steps = [absolute.draw([tensor, torch.ones(7)], make_generator(1)) for tensor in (plain, other)]
    assert all(map(torch.equal, *steps))


def test_the_global_generator_is_not_used():
    before = torch.get_rng_state()
    for distribution in DISTRIBUTIONS:
        Noise(distribution=distribution).draw(some_parameters(), make_generator(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"magnitude": 0}, r"`Noise\(magnitude=0\)`: must be positive; the paper uses 1e-3"),
        ({"magnitude": -1.0}, r"`Noise\(magnitude=-1.0\)`: must be positive"),
        ({"magnitude": math.nan}, r"`Noise\(magnitude=nan\)`: must be positive"),
        ({"distribution": "cauchy"}, r"`Noise\(distribution='cauchy'\)`: expected one of \('gaussian', 'uniform'"),
        ({"scope": "layer"}, r"`Noise\(scope='layer'\)`: expected one of \('global', 'tensor'\)"),
    ],
)
def test_impossible_noise_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Noise(**options)


@pytest.mark.parametrize("draws", [500, pytest.param(2000, marks=pytest.mark.sweep)])
@pytest.mark.parametrize(("distribution", "scope", "relative"), NOISES)
def test_the_variances_are_those_of_what_is_drawn(distribution, scope, relative, draws):
    parameters = [3 * torch.ones(4, 2), torch.full((15,), 0.2), torch.ones(())]
    noise = Noise(0.1, relative, distribution, scope)
    generator = make_generator(6)
    squares = torch.zeros(3)
    for _ in range(draws):
        squares += torch.stack([step.square().mean() for step in noise.draw(parameters, generator)])
    for place, variance in enumerate(noise.variances(parameters)):
        # squares of one element vary most, with a kurtosis of at most 6: sqrt(5 / draws), of which five
        assert float(squares[place]) / draws == pytest.approx(variance, rel=5 * math.sqrt(5 / draws))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_variances_of_relative_noise_add_up_to_its_length(distribution):
    parameters = some_parameters()
    counts = [parameter.numel() for parameter in parameters]
    for scope in ("global", "tensor"):
        variances = Noise(0.02, distribution=distribution, scope=scope).variances(parameters)
        assert all(type(variance) is float for variance in variances)
        total = math.sqrt(sum(count * variance for count, variance in zip(counts, variances, strict=True)))
        assert total == pytest.approx(0.02 * length(parameters), rel=1e-6)
        assert (variances[0] == variances[1]) == (scope == "global")


# ---------------------------------------------------------------- noisy_parameters


class Zoo(nn.Module):
    """One of everything that hides its parameters in a fused operator."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 4, num_layers=2, bidirectional=True)
        self.gru = nn.GRUCell(8, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.BatchNorm1d(8), nn.GroupNorm(2, 8)])
        self.convolutions = nn.Sequential(nn.Conv1d(8, 8, 1), nn.PReLU(), nn.ConvTranspose1d(8, 8, 1))
        self.bilinear = nn.Bilinear(8, 8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.decoder = nn.Linear(8, 7)
        self.decoder.weight = self.embedding.weight
        self.auxiliary = nn.Linear(8, 3)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.empty = nn.Parameter(torch.empty(0))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder(self.embedding(ids))
        x = self.attention(x, x, x, need_weights=False)[0]
        x = self.lstm(x)[0].mean(1)
        x = self.frozen(self.gru(x))
        for norm in self.norms:
            x = norm(x)
        x = self.convolutions(x.unsqueeze(2)).squeeze(2)
        return self.decoder(self.bilinear(x, x) * self.scale)


def names_of(module: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


@pytest.fixture(params=["train", "eval"])
def zoo(request: pytest.FixtureRequest) -> Zoo:
    return Zoo().train(request.param == "train")


def test_every_used_trainable_parameter_is_found_once_in_order(zoo):
    found = names_of(zoo, noisy_parameters(zoo, lambda: zoo(torch.zeros(3, 2, dtype=torch.long))))
    left_out = ("auxiliary.weight", "auxiliary.bias", "frozen.weight", "frozen.bias", "empty")
    expected = [name for name, _ in zoo.named_parameters() if name not in left_out]
    assert "decoder.weight" not in expected  # it goes by its first name
    assert "lstm.weight_hh_l1_reverse" in expected
    assert "attention.in_proj_weight" in expected
    assert found == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["gru"], ["gru.weight_ih", "gru.weight_hh", "gru.bias_ih", "gru.bias_hh"]),
        (["norms.1", "norms.0"], ["norms.0.weight", "norms.0.bias", "norms.1.weight", "norms.1.bias"]),
        (["*.out_proj"], ["encoder.self_attn.out_proj.weight", "encoder.self_attn.out_proj.bias",
                          "attention.out_proj.weight", "attention.out_proj.bias"]),
        (["out_proj"], ["encoder.self_attn.out_proj.weight", "encoder.self_attn.out_proj.bias",
                        "attention.out_proj.weight", "attention.out_proj.bias"]),
        (["linear[12]"], [f"encoder.linear{n}.{kind}" for n in "12" for kind in ("weight", "bias")]),
        (["self_attn"], [f"encoder.self_attn.{name}" for name in
                         ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]),
        (["decoder"], ["embedding.weight", "decoder.bias"]),  # tied: any of its names may match
        (["embedding"], ["embedding.weight"]),
        (["auxiliary", "bilinear"], ["bilinear.weight", "bilinear.bias"]),
    ],
)  # fmt: skip
def test_patterns_name_modules_and_take_their_subtrees(patterns, expected):
    zoo = Zoo()
    found = noisy_parameters(zoo, lambda: zoo(torch.zeros(3, 2, dtype=torch.long)), patterns)
    assert names_of(zoo, found) == expected


def test_looking_leaves_no_gradient_and_no_mode_behind():
    model = nn.Linear(3, 2)
    outputs = []
    noisy_parameters(model, lambda: outputs.append(model(torch.ones(1, 3))))
    assert not outputs[0].requires_grad
    assert torch.is_grad_enabled()
    assert model(torch.ones(1, 3)).requires_grad


def test_a_pattern_without_a_module_is_refused_with_candidates():
    zoo = Zoo()
    with pytest.raises(ValueError, match=r"`modules=\['gru', 'head'\]`: 'head' matches no module of Zoo; it has embed"):
        noisy_parameters(zoo, lambda: None, ["gru", "head"])
    with pytest.raises(ValueError, match=r"it has .*convolutions, \.\.\.\."):  # twenty at most
        noisy_parameters(zoo, lambda: None, ["nothing"])
    with pytest.raises(ValueError, match=r"'weight' matches no module of Linear; it has \."):
        noisy_parameters(nn.Linear(2, 2), lambda: None, ["weight"])


def test_nothing_used_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"Linear has no parameter to perturb: 2 of its parameters train, and the for"):
        noisy_parameters(model, lambda: None)
    zoo = Zoo()
    with pytest.raises(ValueError, match=r"2 of its parameters train under modules=\['auxiliary'\].*uses none of them"):
        noisy_parameters(zoo, lambda: zoo(torch.zeros(3, 2, dtype=torch.long)), ["auxiliary"])
