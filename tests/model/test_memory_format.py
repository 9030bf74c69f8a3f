import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_al.functional import noise_stability
from lightning_al.model.memory_format import prefer_channels_last
from lightning_al.model.predictor import Predictor
from tests.noise_stability_twin import twin


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(model: type[nn.Module], *args: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(*args).eval()


class Pooled(nn.Module):
    """Two convolutions of a kind, and a linear layer on their averages; counts its passes."""

    def __init__(self, convolution: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = convolution(3, 6, 3, padding=1), convolution(6, 5, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(5, 4)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.head(self.second(self.norm(self.first(x)).relu()).flatten(2).mean(2))


class Flat(nn.Module):
    """Takes apart its activations in a way that asks for the usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6 * 6 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().view(len(x), -1))


class Mixed(nn.Module):
    """Convolves pictures, then volumes, whose weights have no such order."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep, self.head = nn.Conv2d(3, 6, 3), nn.Conv3d(1, 2, 3), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.flat(x).unsqueeze(1)).flatten(2).mean(2))


KINDS = [nn.Conv2d, nn.ConvTranspose2d]


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.ndim > 3]


# ---------------------------------------------------------------- prefer_channels_last


@pytest.mark.parametrize("convolution", KINDS)
def test_the_weights_of_convolutions_get_their_channels_last_and_outputs_stay_the_same(convolution):
    model = seeded(Pooled, convolution)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    images = normal(4, 3, 8, 7)
    expected = model(images)
    model.passes = 0
    prefer_channels_last(Predictor(model), (images, torch.zeros(4)))
    assert model.passes == 1
    weights = weights_of(model)
    assert len(weights) == 2
    for weight in weights:
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # the very parameters, which the noise is then added to
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", [Flat, Mixed])
def test_a_model_that_asks_for_the_usual_order_keeps_it_to_the_bit(model, dtype):
    model, images = seeded(model).to(dtype), normal(4, 3, 8, 7, dtype=dtype)
    expected = model(images)
    prefer_channels_last(Predictor(model), images)
    assert torch.equal(model(images), expected)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


class Silent(nn.Module):
    """Fails whenever it is run."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        raise KeyError("the model's own")


@pytest.mark.parametrize("layers", [(), (nn.Linear(3, 2),), (nn.Conv1d(3, 2, 3), nn.BatchNorm2d(3))])
def test_a_model_without_convolutions_over_pictures_is_not_even_run(layers):
    model = Silent(*layers)
    prefer_channels_last(Predictor(model), normal(4, 3))
    assert model.passes == 0


def test_a_model_that_fails_is_left_alone_and_its_error_to_others():
    model = Silent(nn.Conv2d(3, 2, 3))
    prefer_channels_last(Predictor(model), normal(4, 3, 8, 8))
    assert model.layers[0].weight.is_contiguous()


def test_a_tied_weight_stays_tied():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model[1].weight = model[0].weight
    prefer_channels_last(Predictor(model), normal(2, 3, 8, 8))
    assert model[1].weight is model[0].weight
    assert not model[0].weight.is_contiguous()


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convolution", KINDS)
def test_scores_are_those_of_the_twin_and_the_users_model_keeps_its_order(convolution, dtype):
    model = seeded(Pooled, convolution).to(dtype)
    before = copy.deepcopy(model.state_dict())
    batches = [normal(count, 3, 8, 7, seed=count, dtype=dtype) for count in (5, 2)]
    scores = noise_stability(model, batches, passes=3, magnitude=0.02)
    expected = twin(model, [batch.double() for batch in batches], passes=3, magnitude=0.02)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(scores.double(), expected, rtol=tolerance, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("model", [Flat, Mixed])
def test_scores_of_a_model_that_asks_for_the_usual_order_are_those_of_the_twin(model):
    model, images = seeded(model).double(), normal(6, 3, 8, 7, dtype=torch.float64)
    scores = noise_stability(model, [images], passes=3)
    torch.testing.assert_close(scores.double(), twin(model, [images], passes=3), rtol=1e-6, atol=0)
