import copy
import re

import pytest
import torch
from torch import nn

from lightning_al.model.clone import clone_module
from lightning_al.model.predictor import Predictor
from lightning_al.model.weight_swap import copy_to_device_of, copy_weights, swapped_weights, weight_passes, weights_of
from lightning_al.testing import ToyClassifier
from tests.snapshot import module_picture, picture

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Everything that has a name of its own: tied and frozen parameters, buffers that are kept and that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(points))) * self.frozen


def other(module: nn.Module, seed: int = 1) -> nn.Module:
    """Return a copy of a module with other weights and statistics."""
    copied = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in weights_of(copied).values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.add_(seed)
    return copied


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def test_inside_the_module_predicts_as_one_that_holds_the_weights(points):
    module = Tied().eval()
    target = other(module)
    clean = module(points)
    with swapped_weights(module, copy_weights(target)):
        assert torch.equal(module(points), target(points))
        assert not torch.equal(module(points), clean)
    assert torch.equal(module(points), clean)


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_every_tensor_is_what_and_where_it_was(fails):
    module = Tied()
    before = module_picture(module)
    weights = copy_weights(other(module))
    kept = {name: picture(tensor) for name, tensor in weights.items()}
    try:
        with swapped_weights(module, weights):
            inside = module_picture(module)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert inside["state"] != before["state"]
    assert module_picture(module) == before
    assert {name: picture(tensor) for name, tensor in weights.items()} == kept


def test_nothing_is_copied_and_no_object_is_exchanged():
    module = Tied()
    tensors = {name: id(tensor) for name, tensor in weights_of(module).items()}
    weights = copy_weights(other(module))
    with swapped_weights(module, weights):
        for name, tensor in weights_of(module).items():
            assert id(tensor) == tensors[name]
            assert tensor.data_ptr() == weights[name].data_ptr()
        assert module.second.weight is module.first.weight


class Versioned(Tied):
    def get_extra_state(self) -> str:
        return "no tensor"


def test_weights_are_parameters_and_what_a_checkpoint_keeps_of_buffers():
    module = Versioned()
    assert set(copy_weights(module)) == {
        "first.weight",
        "second.weight",
        "second.bias",
        "frozen",
        *(f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }
    assert weights_of(module)["first.weight"] is module.first.weight


def test_a_copy_is_independent_and_holds_tied_weights_once():
    module = Tied().bfloat16()
    copies = copy_weights(module)
    kept = copy.deepcopy(copies)
    with torch.no_grad():
        for tensor in weights_of(module).values():
            tensor.add_(1)
    assert all(torch.equal(copies[name], tensor) for name, tensor in kept.items())
    assert copies["first.weight"] is copies["second.weight"]
    assert copies["first.weight"].dtype == torch.bfloat16
    assert not copies["first.weight"].requires_grad


def test_placed_weights_take_over_precision_and_are_independent():
    low = other(Tied()).bfloat16()
    clone = clone_module(low, CPU)
    source = copy_weights(low)
    weights = copy_to_device_of(clone, source)
    assert weights["first.weight"].dtype == torch.float32
    assert weights["norm.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(weights["norm.running_var"], low.norm.running_var.float())
    assert weights["first.weight"].data_ptr() == weights["second.weight"].data_ptr()
    kept = copy.deepcopy(weights)
    clone_before = module_picture(clone)
    for tensor in {id(tensor): tensor for tensor in source.values()}.values():
        tensor.add_(1)
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())
    assert module_picture(clone) == clone_before
    with swapped_weights(clone, weights):
        assert module_picture(clone)["state"] == clone_before["state"]


def test_placed_weights_lie_in_memory_as_the_modules_do():
    convolution = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    weight = copy_to_device_of(convolution, copy_weights(nn.Conv2d(4, 4, 3)))["weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    # an LSTM's weights on a GPU are parts of one piece of memory, and slow down with a warning if they are not
    flat = torch.zeros(6)
    module = nn.Module()
    module.left, module.right = nn.Parameter(flat[:2]), nn.Parameter(flat[2:])
    weights = copy_to_device_of(module, {"left": torch.ones(2), "right": torch.full((4,), 2.0)})
    assert weights["right"].data_ptr() - weights["left"].data_ptr() == 2 * flat.element_size()
    assert weights["left"].tolist() + weights["right"].tolist() == [1, 1, 2, 2, 2, 2]
    assert flat.tolist() == [0] * 6


@pytest.mark.parametrize("use", [swapped_weights, copy_to_device_of])
def test_weights_of_another_architecture_are_refused(use):
    module, weights = nn.Linear(2, 3), {"weight": torch.ones(3, 2), "bias": torch.ones(3)}

    def attempt(**changes):
        changed = {name: tensor for name, tensor in {**weights, **changes}.items() if tensor is not None}
        result = use(module, changed)
        if use is swapped_weights:
            result.__enter__()

    before = module_picture(module)
    with pytest.raises(ValueError, match=r"not those of a Linear: missing \['bias'\], unknown \['other'\]"):
        attempt(bias=None, other=torch.ones(3))
    with pytest.raises(ValueError, match=r"do not fit Linear: 'bias' expected \(.*3,.*got \(.*1,"):
        attempt(bias=torch.ones(1))  # which could be broadcast
    assert module_picture(module) == before


def test_weights_that_were_not_placed_are_refused():
    module = nn.Linear(2, 3)
    weights = {**copy_weights(module), "bias": torch.ones(3, dtype=torch.bfloat16)}
    message = "'bias' expected ((3,), torch.float32, device(type='cpu')), got ((3,), torch.bfloat16, "
    with pytest.raises(ValueError, match=re.escape(message)), swapped_weights(module, weights):
        pass
    elsewhere = {**copy_weights(module), "bias": torch.ones(3, device="meta")}
    with (
        pytest.raises(ValueError, match=r"got \(\(3,\), torch.float32, device\(type='meta'\)\)"),
        swapped_weights(module, elsewhere),
    ):
        pass


def test_passes_are_those_of_the_members_and_the_model_has_its_own_weights_in_between(points):
    model = ToyClassifier().eval()
    copies = [other(model, seed) for seed in (1, 2, 3)]
    predictor, before, batch = Predictor(model), module_picture(model), (points, torch.zeros(5))
    seen = 0
    with torch.no_grad():
        for probs, target in zip(
            weight_passes(predictor, batch, [copy_weights(copied) for copied in copies]), copies, strict=True
        ):
            assert torch.equal(probs, target(points).softmax(1))
            assert module_picture(model) == before
            seen += 1
    assert seen == 3
