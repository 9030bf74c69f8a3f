import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_al.perturbation import gradient_norms
from lightning_al.perturbation.gradient_norms import layer_gradient_norms, outer_product_norms
from tests.perturbation.jacobian_twin import twin
from tests.perturbation.networks import made, normal, tokens
from tests.perturbation.scored import assert_exact, closed_form, parts_of
from tests.sweep import sampled

PLACES = {1: (7,), 2: (7, 6), 3: (4, 5, 3)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

CONVOLUTION_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "pointwise": {"kernel_size": 1},
    "no bias": {"kernel_size": 3, "bias": False},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 2, "dilation": 2, "padding": 2},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1, "stride": 2},
    "patches": {"kernel_size": 2, "stride": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even": {"kernel_size": 2, "padding": "same", "dilation": 1},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "circular, same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 2, "padding_mode": "replicate", "dilation": 2},
}
TRANSPOSED_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 2, "stride": 2, "groups": 4},
    "padded at the end": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "dilated": {"kernel_size": 2, "dilation": 2, "bias": False},
    "much room": {"kernel_size": 4, "stride": 3, "padding": 2, "output_padding": 2},
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(4, 5), normal(3, 2, 4)),
    "linear, no bias": (lambda: nn.Linear(4, 5, bias=False), normal(3, 2, 4)),
    "linear at a few positions": (lambda: nn.Linear(8, 9), normal(3, 2, 2, 8)),
    "linear at many positions": (lambda: nn.Linear(4, 2), normal(3, 2, 9, 4)),
    "linear at positions in a plane": (lambda: nn.Linear(4, 5), normal(3, 2, 3, 2, 4)),
    "batch norm": (lambda: nn.BatchNorm1d(4), normal(3, 2, 4)),
    "batch norm of a sequence": (lambda: nn.BatchNorm1d(4, eps=0.1), normal(3, 2, 4, 5)),
    "batch norm of images": (lambda: nn.BatchNorm2d(4), normal(3, 2, 4, 5, 3)),
    "batch norm of volumes": (lambda: nn.BatchNorm3d(4), normal(3, 2, 4, 2, 3, 2)),
    "instance norm of a sequence": (lambda: nn.InstanceNorm1d(4, affine=True), normal(3, 2, 4, 5)),
    "instance norm of images": (lambda: nn.InstanceNorm2d(4, affine=True, eps=0.1), normal(3, 2, 4, 5, 3)),
    "instance norm of volumes": (lambda: nn.InstanceNorm3d(4, affine=True), normal(3, 2, 4, 2, 3, 2)),
    "instance norm with statistics": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        normal(3, 2, 4, 5, 3),
    ),
    "group norm": (lambda: nn.GroupNorm(2, 4), normal(3, 2, 4, 5, 3)),
    "group norm of features": (lambda: nn.GroupNorm(2, 4, eps=0.1), normal(3, 2, 4)),
    "layer norm": (lambda: nn.LayerNorm(4), normal(3, 2, 4)),
    "layer norm, no bias": (lambda: nn.LayerNorm(4, bias=False, eps=0.1), normal(3, 2, 5, 4)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((3, 4)), normal(3, 2, 3, 4)),
    "layer norm of two dimensions at positions": (lambda: nn.LayerNorm((3, 4)), normal(3, 2, 5, 3, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), normal(3, 2, 5, 4)),
    "rms norm of two dimensions": (lambda: nn.RMSNorm((3, 4), eps=0.1), normal(3, 2, 5, 3, 4)),
    "embedding": (lambda: nn.Embedding(5, 3), tokens(3, 2, 9, below=5)),
    "embedding with padding": (lambda: nn.Embedding(5, 3, padding_idx=2), tokens(3, 2, 9, below=5)),
    "embedding by frequency": (lambda: nn.Embedding(5, 3, scale_grad_by_freq=True), tokens(3, 2, 9, below=5)),
    "embedding with sparse gradients": (lambda: nn.Embedding(5, 3, sparse=True), tokens(3, 2, 9, below=5)),
    "embedding of one token": (lambda: nn.Embedding(5, 3), tokens(3, 2, below=5)),
    "embedding of a grid": (lambda: nn.Embedding(5, 3), tokens(3, 2, 3, 4, below=5)),
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    **{
        f"{name} convolution in {dimensions}d": (
            partial(CONVOLUTIONS[dimensions], 4, 8, **options),
            normal(3, 2, 4, *PLACES[dimensions]),
        )
        for (name, options), dimensions in itertools.product(CONVOLUTION_OPTIONS.items(), PLACES)
    },
    **{
        f"{name} transposed convolution in {dimensions}d": (
            partial(TRANSPOSED[dimensions], 4, 8, **options),
            normal(3, 2, 4, *PLACES[dimensions]),
        )
        for (name, options), dimensions in itertools.product(TRANSPOSED_OPTIONS.items(), PLACES)
    },
    **OTHERS,
}


class Rows(nn.Module):
    """A layer on (B, rows, ...), of whose rows it knows nothing; then two outputs."""

    def __init__(self, make: Callable[[], nn.Module], inputs: Tensor) -> None:
        super().__init__()
        self.layer = make()
        with torch.no_grad():
            features = self.layer.double()(inputs.flatten(0, 1)).numel() // len(inputs)
        self.head = nn.Linear(features, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.flatten(0, 1)).reshape(len(x), -1))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's own
@pytest.mark.parametrize(
    ("name", "rows"),
    # other dimensions and single rows need no formulas of their own
    sampled(
        itertools.product(LAYERS, (1, 2)),
        lambda case: (
            (case[1] == 2 and not case[0].endswith(("1d", "3d"))) or case[0].startswith(("plain", "depthwise", "rms"))
        ),
    ),
)
def test_every_kind_of_layer_equals_the_jacobian(name, rows):
    make, inputs = LAYERS[name]
    inputs = inputs[:, :rows]
    model = made(partial(Rows, make, inputs)).requires_grad_(False)
    model.layer.requires_grad_(True)
    form = closed_form(model, inputs, output="identity", scope="tensor")
    # by its formula, not by the way out
    assert parts_of(form) == {"LayerPart": sorted(f"layer.{name}" for name, _ in model.layer.named_parameters())}
    with torch.no_grad():
        assert_exact(form.scores(inputs), twin(model, inputs, output="identity", scope="tensor"))


@pytest.mark.parametrize("name", ["linear at a few positions", "dilated convolution in 2d", "embedding with padding"])
def test_a_row_of_norms_belongs_to_one_sample_and_a_column_to_one_direction(name):
    make, inputs = LAYERS[name]
    layer, inputs = made(make), inputs.flatten(0, 1)
    layer.padding_idx = None
    outputs = layer(inputs)
    gradients = [normal(*outputs.shape, seed=seed) for seed in range(3)]
    with torch.no_grad():
        norms = layer_gradient_norms(layer, inputs, gradients, 3)
    for sample, direction in itertools.product(range(3), range(3)):
        own = torch.zeros_like(outputs)
        rows = slice(2 * sample, 2 * sample + 2)
        own[rows] = gradients[direction][rows]
        for key, parameter in layer.named_parameters():
            (expected,) = torch.autograd.grad(outputs, parameter, own, retain_graph=True)
            torch.testing.assert_close(norms[key][sample, direction], expected.square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["depthwise convolution in 2d", "linear at many positions", "rms norm"])
def test_samples_are_taken_in_slices_that_fit_into_the_cache(monkeypatch, name):
    make, inputs = LAYERS[name]
    layer, inputs = made(make), inputs.flatten(0, 1)
    with torch.no_grad():
        gradients = [normal(*layer(inputs).shape, seed=seed) for seed in range(2)]
        whole = layer_gradient_norms(layer, inputs, gradients, 3)
        monkeypatch.setattr(gradient_norms, "SLICE_NUMBERS", 1)
        sliced = layer_gradient_norms(layer, inputs, gradients, 3)
    assert whole["weight"].shape == (3, 2)
    for key, norms in whole.items():
        torch.testing.assert_close(sliced[key], norms, rtol=1e-12, atol=0)


# with two directions, products of T x T are taken while T (8 + 2 * 6) < 2 * 6 * 8, which is T < 4.8
@pytest.mark.parametrize("positions", [1, 2, 4, 5, 30])
def test_sums_of_outer_products_are_the_same_either_way(positions):
    rows, columns = normal(4, positions, 2, 6), normal(4, positions, 8, seed=1)
    explicit = torch.einsum("btdo,bti->bdoi", rows, columns).square().sum((2, 3))
    torch.testing.assert_close(outer_product_norms(rows, columns), explicit, rtol=1e-12, atol=0)
