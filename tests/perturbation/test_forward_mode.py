import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
import torchvision
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call

from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import make_generator
from lightning_al.perturbation import forward_mode as implementation
from lightning_al.perturbation.deviations import Deviation, Seed
from lightning_al.perturbation.finite_differences import FiniteDifferences, perturbed
from lightning_al.perturbation.forward_mode import ForwardDerivatives, describe_failure
from lightning_al.perturbation.noise import Noise, noisy_parameters
from lightning_al.testing import ToyDataset
from tests.noise_stability_twin import twin, twin_outputs
from tests.snapshot import module_picture, random_picture
from tests.sweep import sampled

# torch's own use of its own TorchScript, at the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

SEEDS: list[Seed] = [(3, 0), (3, 1), (3, 2)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- models


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def convolutions() -> nn.Module:
    """Batch normalization with statistics of its own, and an activation in place."""
    norm = nn.BatchNorm2d(4)
    norm(2 * torch.randn(50, 4, 3, 3) + 1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))


def resnet() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder = kind(4, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Functional(nn.Module):
    """Attention by the function alone, as in most models written today."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.project(x).unflatten(2, (2, 12)).transpose(1, 2).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


class Tied(nn.Module):
    """A language model's embedding that is also its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(11, 6), nn.Linear(6, 11)
        self.decoder.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.decoder(self.embedding(input_ids).mean(1).tanh())


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.classifier = nn.Conv2d(2, 4, 3, padding=1), nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.classifier(nn.functional.max_pool2d(self.backbone(x).relu(), 2))}


class Shift(nn.Module):
    """Applies a function behind a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    output: Output = "softmax"


CASES = {
    "mlp": Case(mlp, lambda: normal(4, 5)),
    "multi-label": Case(mlp, lambda: normal(4, 5), "sigmoid"),
    "raw outputs": Case(mlp, lambda: normal(4, 5), "identity"),
    "convolutions": Case(convolutions, lambda: normal(4, 2, 6, 6)),
    "resnet": Case(resnet, lambda: normal(2, 3, 16, 16)),
    "attention": Case(Attention, lambda: normal(4, 5, 8)),
    "encoder": Case(Encoder, lambda: normal(4, 5, 8)),
    "functional attention": Case(Functional, lambda: normal(4, 5, 8)),
    "lstm": Case(lambda: Recurrent(nn.LSTM), lambda: normal(4, 3, 4)),
    "gru": Case(lambda: Recurrent(nn.GRU), lambda: normal(4, 3, 4)),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(11, 6, padding_idx=0), nn.Flatten(), nn.LayerNorm(24), nn.Linear(24, 3)),
        lambda: tokens(4, 4),
    ),
    "tied": Case(Tied, lambda: tokens(4, 4)),
    "segmentation": Case(Segmenter, lambda: normal(3, 2, 6, 4)),
}
# without lstm, whose fused operator has no derivative in single precision
SINGLE = ["mlp", "convolutions", "encoder", "functional attention", "gru", "tied", "segmentation"]


@dataclass
class Setting:
    predictor: Predictor
    batch: Tensor
    parameters: list[nn.Parameter]
    output: Output

    def forward(self, batch: Tensor) -> Tensor:
        return self.predictor.output(batch, self.output)

    def derivatives(self, magnitude: float = 1e-3, **options) -> ForwardDerivatives:
        return ForwardDerivatives(self.predictor, self.output, self.parameters, Noise(magnitude), **options)

    def steps(self, seed: Seed, magnitude: float = 1e-3) -> list[Tensor]:
        return Noise(magnitude).draw(self.parameters, make_generator(*seed))


def setting(
    model: nn.Module | str, batch: Tensor | None = None, output: Output = "softmax", dtype: torch.dtype = torch.float64
) -> Setting:
    if isinstance(model, str):
        case = CASES[model]
        batch, output = case.batch(), case.output
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = case.make()
    model = model.to(dtype).eval()
    batch = batch.to(dtype) if batch.is_floating_point() else batch
    predictor = Predictor(model)
    parameters = noisy_parameters(model, lambda: predictor.output(batch, output))
    return Setting(predictor, batch, parameters, output)


def derive(backend: ForwardDerivatives, chunk: Sequence[Tensor], seeds: Sequence[Seed] = SEEDS) -> list[Deviation]:
    with torch.no_grad():
        return list(backend.deviations(chunk, seeds))


def by_step(found: Sequence[Deviation]) -> list[Tensor]:
    return [deviation.change for deviation in sorted(found, key=lambda deviation: deviation.step)]


# ---------------------------------------------------------------- the derivative


def central_difference(case: Setting, steps: list[Tensor]) -> Tensor:
    """Differentiate numerically, with the four-point formula, whose error is of fourth order in the step size."""

    def at(size: float) -> Tensor:
        with torch.no_grad(), perturbed(case.parameters, [size * step for step in steps]):
            return case.forward(case.batch)

    size = 2e-3  # too little to push a unit of a ReLU over its kink
    return (8 * (at(size) - at(-size)) - (at(2 * size) - at(-2 * size))) / (12 * size)


@pytest.mark.parametrize("name", CASES)
def test_deviations_are_the_derivative_along_the_noise(name):
    case = setting(name)
    found = derive(case.derivatives(), [case.batch])
    assert [(deviation.position, deviation.step) for deviation in found] == [(0, 0), (0, 1), (0, 2)]
    for seed, deviation in zip(SEEDS, found, strict=True):
        expected = central_difference(case, case.steps(seed))
        assert deviation.change.dtype == torch.float64
        assert deviation.change.shape == expected.shape
        # outputs of size 1 are off by some 1e-16 each, and their differences are divided by the step size
        torch.testing.assert_close(deviation.change, expected, rtol=1e-7, atol=1e-12)
        assert deviation.change.abs().max() > 1e-5
        with torch.no_grad():
            torch.testing.assert_close(deviation.clean, case.forward(case.batch), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "name", sampled(["mlp", "convolutions", "resnet", "lstm", "gru", "tied", "segmentation"], ["convolutions", "lstm"])
)
def test_deviations_are_those_of_reverse_mode_differentiated_twice(name):
    case = setting(name)
    names = {id(parameter): name for name, parameter in case.predictor.module.named_parameters()}
    values = tuple(parameter.detach().clone() for parameter in case.parameters)

    def forward(*weights: Tensor) -> Tensor:
        state = {names[id(parameter)]: weight for parameter, weight in zip(case.parameters, weights, strict=True)}
        out = functional_call(case.predictor.module, state, (case.batch,))
        return (out["out"] if isinstance(out, dict) else out).softmax(1)

    for seed, change in zip(SEEDS, by_step(derive(case.derivatives(), [case.batch])), strict=True):
        expected = torch.autograd.functional.jvp(forward, values, tuple(case.steps(seed)))[1]
        torch.testing.assert_close(change, expected, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("name", sampled(["mlp", "encoder", "lstm", "tied", "segmentation"], ["encoder", "tied"]))
def test_the_error_to_finite_differences_shrinks_in_proportion_to_the_noise(name):
    case = setting(name)

    def relative_error(magnitude: float) -> float:
        changes = by_step(derive(case.derivatives(magnitude), [case.batch]))
        pairs = twin_outputs(
            case.predictor.module,
            [case.batch],
            seeds=SEEDS,
            magnitude=magnitude,
            noisy=[name for name, _ in case.predictor.module.named_parameters()],
            call=lambda model, batch: out["out"] if isinstance(out := model(batch), dict) else out,
        )
        differences = [noised - clean for clean, noised in pairs]
        errors = [change - difference for change, difference in zip(changes, differences, strict=True)]
        return float(torch.stack(errors).norm() / torch.stack(differences).norm())

    assert 1e-6 < relative_error(1e-4) < 0.01
    assert relative_error(1e-4) / relative_error(4e-4) == pytest.approx(1 / 4, rel=0.05)


def test_a_derivative_is_linear_in_the_noise():
    case = setting("mlp")
    once, thrice = (by_step(derive(case.derivatives(size), [case.batch])) for size in (1e-3, 3e-3))
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * one, three, rtol=1e-12, atol=0)


def test_only_the_noisy_parameters_move():
    case = setting("mlp")
    case.parameters = list(case.predictor.module[2].parameters())
    found = by_step(derive(case.derivatives(), [case.batch]))
    for seed, change in zip(SEEDS, found, strict=True):
        torch.testing.assert_close(change, central_difference(case, case.steps(seed)), rtol=1e-7, atol=1e-12)


def test_several_batches_share_their_directions():
    case = setting("convolutions")
    chunk = [case.batch, case.batch[:1], case.batch[1:3]]
    found = {(one.position, one.step): one for one in derive(case.derivatives(), chunk)}
    assert len(found) == 9
    for position, rows in enumerate([slice(None), slice(1), slice(1, 3)]):
        for step in range(3):
            one, whole = found[position, step], found[0, step]
            torch.testing.assert_close(one.change, whole.change[rows], rtol=1e-10, atol=1e-15)
            torch.testing.assert_close(one.clean, whole.clean[rows], rtol=1e-12, atol=0)


# ---------------------------------------------------------------- together


@pytest.mark.parametrize(
    ("name", "dtype"),
    sampled(itertools.product(SINGLE, (torch.float64, torch.float32)), lambda case: case[1] == torch.float64),
)
def test_all_passes_together_give_what_each_gives_alone(name, dtype):
    case = setting(name, dtype=dtype)
    together = by_step(derive(case.derivatives(), [case.batch]))
    alone = [derive(case.derivatives(), [case.batch], [seed])[0].change for seed in SEEDS]
    scale = max(float(change.abs().max()) for change in alone)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=64 * torch.finfo(dtype).eps * scale)


@pytest.mark.parametrize("name", SINGLE)
def test_single_precision_is_close_to_double_precision(name):
    case, exact = setting(name, dtype=torch.float32), setting(name)
    found = torch.stack(by_step(derive(case.derivatives(), [case.batch])))
    pairs = [central_difference(exact, [step.double() for step in case.steps(seed)]) for seed in SEEDS]
    assert found.dtype == torch.float32
    assert (found - torch.stack(pairs)).norm() < 1e-5 * found.norm()


def test_all_passes_run_as_one_and_the_clean_pass_only_once(monkeypatch):
    case = setting("mlp")
    calls = []
    monkeypatch.setattr(case.predictor.module, "forward", count_calls(case.predictor.module.forward, calls))
    derive(case.derivatives(), [case.batch])
    assert calls == [4]


def count_calls(forward: Callable[[Tensor], Tensor], calls: list[int]) -> Callable[[Tensor], Tensor]:
    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return forward(x)

    return counted


# ---------------------------------------------------------------- low precision


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    """A classifier that has learned something, and points that it has not seen."""
    seen, unseen = ToyDataset(400, classes=4, seed=0), ToyDataset(300, classes=4, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.GELU())
        model.append(nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(seen.points), seen.targets).backward()
        optimizer.step()
    model.eval().zero_grad()
    assert (model(unseen.points).argmax(1) == unseen.targets).float().mean() > 0.75
    return model, unseen.points


def scores(found: Sequence[Deviation]) -> Tensor:
    return torch.stack([deviation.change.double().square().sum(1) for deviation in found]).mean(0)


def test_bfloat16_ranks_as_double_precision_does(trained):
    model, points = trained
    seeds: list[Seed] = [(5, step) for step in range(10)]
    exact = twin(model, [points.double()], seeds=seeds)
    case = setting(model, points, dtype=torch.float32)
    backend = case.derivatives(dtype=torch.bfloat16)
    found = derive(backend, [case.batch], seeds)
    assert found[0].change.dtype == torch.float32  # only the passes are in low precision
    assert spearmanr(scores(found), exact).statistic >= 0.99
    assert spearmanr(scores(derive(case.derivatives(), [case.batch], seeds)), exact).statistic >= 0.9999
    # while a difference of two outputs in bfloat16 is mostly rounding
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        differences = list(FiniteDifferences(case.forward, case.parameters, Noise()).deviations([case.batch], seeds))
    assert spearmanr(scores(differences), exact).statistic < 0.95


def test_low_precision_casts_buffers_and_inputs_but_no_token(trained):
    kinds = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)
            self.register_buffer("scale", torch.ones(6))
            self.head.bias.requires_grad_(False)

        def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            ids, x = batch
            kinds.append((ids.dtype, x.dtype, self.scale.dtype, self.embedding.weight.dtype, self.head.bias.dtype))
            return self.head(self.embedding(ids) * self.scale + x)

    model = Spy()
    predictor, batch = Predictor(model), (torch.tensor([1, 2]), torch.ones(2, 6))
    parameters = noisy_parameters(model, lambda: predictor(batch))
    backend = ForwardDerivatives(predictor, "softmax", parameters, Noise(), dtype=torch.bfloat16)
    kinds.clear()
    derive(backend, [batch])
    assert set(kinds) == {(torch.int64, *[torch.bfloat16] * 4)}
    assert model.embedding.weight.dtype == model.scale.dtype == batch[1].dtype == torch.float32


# ---------------------------------------------------------------- what is left alone


def flags() -> tuple[bool, ...]:
    backends = torch.backends
    fused = [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()]
    return backends.mha.get_fastpath_enabled(), backends.cudnn.enabled, backends.mkldnn.enabled, *fused


@pytest.fixture
def restored_fastpath():
    before = torch.backends.mha.get_fastpath_enabled()
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_switches_of_attention_are_off_inside_only(restored_fastpath, on, fails):
    case = setting("encoder", dtype=torch.float32)
    torch.backends.mha.set_fastpath_enabled(on)
    before, inside = flags(), []
    backend = case.derivatives()
    case.predictor.module.head.register_forward_hook(lambda module, inputs, output: inside.append(flags()))
    if fails:
        case.predictor.module.head.register_forward_hook(lambda module, inputs, output: 1 / 0)
    with torch.no_grad(), pytest.raises(ZeroDivisionError) if fails else nullcontext():
        for _ in backend.deviations([case.batch], SEEDS):
            assert flags() == before  # between two deviations as well
    assert flags() == before
    assert set(inside) == {(False, *before[1:3], False, True)}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", SINGLE)
def test_the_model_the_batch_and_the_random_numbers_are_bit_identical_afterwards(name, dtype):
    case = setting(name, dtype=torch.float32)
    first = case.parameters[0]
    first.grad = torch.full_like(first, torch.nan)
    batch = case.batch.clone()
    before, generators = module_picture(case.predictor.module), random_picture()
    found = derive(case.derivatives(dtype=dtype), [case.batch])
    assert module_picture(case.predictor.module) == before
    assert random_picture() == generators
    assert torch.equal(case.batch, batch)
    assert not any(one.change.requires_grad or one.clean.requires_grad for one in found)
    assert all(torch.isfinite(one.change).all() for one in found)


# ---------------------------------------------------------------- no derivative


class Doubled(torch.autograd.Function):
    """Knows its gradient, but no derivative in forward mode."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient


def distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x.flip(0))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (distances, r"_cdist_forward has no forward-mode formula"),
        (Doubled.apply, r"RuntimeError: You tried to vmap over Doubled"),
        (OldStyle.apply, r"RuntimeError: .*autograd\.Function.*must override the setup_context staticmethod"),
    ],
    ids=["operator of torch", "custom function", "custom function of the old style"],
)
def test_an_operator_without_a_derivative_is_named(function, message):
    case = setting(Shift(function), normal(4, 5))
    before = module_picture(case.predictor.module)
    with pytest.raises((RuntimeError, NotImplementedError)) as caught:
        derive(case.derivatives(), [case.batch])
    said = describe_failure(caught.value)
    assert re.match(message, said)
    assert "\n" not in said
    assert module_picture(case.predictor.module) == before


@pytest.mark.parametrize(
    ("make", "batch", "dtype", "operator"),
    [
        (
            lambda: nn.Sequential(nn.EmbeddingBag(11, 6), nn.Linear(6, 3)),
            lambda: tokens(4, 4),
            torch.float64,
            "_embedding_bag",
        ),
        # in single precision the layer is one fused operator
        (lambda: Recurrent(nn.LSTM), lambda: normal(4, 3, 4), torch.float32, "mkldnn_rnn_layer"),
    ],
    ids=["embedding bag", "fused recurrence"],
)
def test_a_layer_without_a_derivative_is_named(make, batch, dtype, operator):
    case = setting(make(), batch(), dtype=dtype)
    with pytest.raises(NotImplementedError) as caught:
        derive(case.derivatives(), [case.batch])
    assert describe_failure(caught.value) == f"{operator} has no forward-mode formula"


def test_an_error_of_another_kind_says_what_it_says():
    assert describe_failure(KeyError("the model's own")) == 'KeyError: "the model\'s own"'
    assert describe_failure(RuntimeError("First line.\nSecond line.")) == "RuntimeError: First line"


# ---------------------------------------------------------------- out of memory


class Memory:
    """Runs out of memory for more passes at a time than fit."""

    def __init__(self, fit: int) -> None:
        self.fit = fit
        self.tried: list[int] = []

    def vmap(self, function: Callable, **options) -> Callable:
        run = torch.func.vmap(function, **options)

        def limited(directions: dict[str, Tensor]):
            self.tried.append(len(next(iter(directions.values()))))
            if self.tried[-1] > self.fit:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return run(directions)

        return limited


@pytest.mark.parametrize(
    ("fit", "tried"),
    [
        (10, [10, 10]),
        (7, [10, 5, 5, 5, 5]),
        (3, [10, 5, 2, 2, 2, 2, 2] + [2] * 5),
        (1, [10, 5, 2, *[1] * 20]),
    ],
)
def test_out_of_memory_halves_the_group_and_changes_nothing(monkeypatch, fit, tried):
    case = setting("convolutions")
    chunk, seeds = [case.batch, case.batch[:2]], [(4, step) for step in range(10)]
    expected = derive(case.derivatives(), chunk, seeds)
    memory = Memory(fit)
    monkeypatch.setattr(implementation, "vmap", memory.vmap)
    backend = case.derivatives()
    found = derive(backend, chunk, seeds)
    assert memory.tried == tried
    assert [(one.position, one.step) for one in found] == [(one.position, one.step) for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.change, other.change, rtol=1e-10, atol=1e-16)
        torch.testing.assert_close(one.clean, other.clean, rtol=1e-12, atol=0)
    memory.tried.clear()
    again = {(one.position, one.step): one.change for one in derive(backend, chunk, seeds)}
    assert len(again) == len(expected)
    for one in expected:
        torch.testing.assert_close(again[one.position, one.step], one.change, rtol=1e-10, atol=1e-16)
    assert set(memory.tried) == {tried[-1]}  # the size that fits is remembered


def test_out_of_memory_for_a_single_pass_is_the_callers_to_handle(monkeypatch):
    case = setting("mlp")

    def fail(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(implementation, "jvp", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate"):
        derive(case.derivatives(), [case.batch])
