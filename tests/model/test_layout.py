"""Which dimension of an output holds the classes: (B, C, T) and (B, T, C) of equal sizes, made by any layer."""

import pytest
import torch
from torch import nn

from lightning_al.model.predictor import Predictor
from tests.model.test_predictor import explained


class Net(nn.Module):
    """Layers, and what `forward` does with their output."""

    def __init__(self, last, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.last = last

    def forward(self, x):
        return self.last(self.layers(x))


class Auxiliary(Net):
    """A second head that is called last, and that the returned tensor does not depend on."""

    def __init__(self):
        super().__init__(torch.clone, nn.Conv1d(4, 6, 1))
        self.auxiliary = nn.Linear(6, 6)

    def forward(self, x):
        logits = super().forward(x)
        self.kept = self.auxiliary(x)
        return logits


class WithoutGradients(Net):
    def forward(self, x):
        with torch.inference_mode():
            return super().forward(x)


def same(y):
    return y


def transposed(y):
    return y.transpose(1, 2)


X = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
CONV, LINEAR = (nn.Conv1d, 4, 6, 3, 1, 1), (nn.Linear, 6, 4)
CASES = [
    (same, [CONV], 1),
    (transposed, [CONV], 2),
    (lambda y: transposed(y).contiguous().log_softmax(-1), [CONV], 2),
    (lambda y: y.softmax(1) * 2, [CONV], 1),
    (lambda y: nn.functional.interpolate(y, 12), [CONV], 1),
    (same, [CONV, (nn.BatchNorm1d, 6)], 1),
    (same, [CONV, (nn.GroupNorm, 2, 6)], 1),
    (same, [LINEAR], 2),
    (torch.relu, [LINEAR], 2),
    (transposed, [LINEAR], 1),
    (lambda y: transposed(y).softmax(1), [LINEAR], 1),
    (same, [LINEAR, (nn.LayerNorm, 4)], 2),
    (lambda y: y @ torch.eye(4), [LINEAR], 2),  # weights that are no layer
    (lambda y: y.view(3, 4, 5), [(nn.Flatten, 0, 1), (nn.Linear, 6, 5)], 2),
    (same, [(nn.Linear, 6, 1)], 2),
    (same, [(nn.Conv1d, 4, 1, 6)], 1),  # one class at one position
    (same, [(nn.Conv1d, 4, 5, 6)], 1),  # five classes at one
    (lambda y: y[:, :1], [LINEAR], 2),
]


@pytest.mark.parametrize(("last", "layers", "class_dim"), CASES)
@pytest.mark.parametrize("kind", [Net, WithoutGradients])
def test_the_layer_that_made_the_output_tells_its_classes(last, layers, class_dim, kind):
    net = kind(last, *(layer(*sizes) for layer, *sizes in layers)).eval()
    expected = net(X).movedim(class_dim, 1)
    assert torch.equal(Predictor(net)(X), expected)


def test_a_head_that_the_output_does_not_depend_on_has_no_say():
    assert torch.equal(Predictor(net := Auxiliary())(X), net(X))


@pytest.mark.parametrize(
    ("last", "layers"),
    [
        (same, [(nn.ReLU,)]),
        (lambda y: y.view(3, 3, 5), [(nn.Flatten,), (nn.Linear, 24, 15)]),  # of all positions at once
        (lambda y: y - y.mean((1, 2), keepdim=True), [LINEAR]),  # mixes the positions
    ],
)
def test_where_no_layer_tells_the_module_declares_it(last, layers):
    net = Net(last, *(layer(*sizes) for layer, *sizes in layers))
    message = r"Cannot tell the classes from the positions in Tensor\(3, .*Net returns.*`acquisition_class_dim = 1` or"
    with pytest.raises(TypeError, match=message):
        Predictor(net)(X)
    for net.acquisition_class_dim in (1, -1):
        assert torch.equal(Predictor(net)(X), net(X).movedim(net.acquisition_class_dim, 1))
    net.acquisition_class_dim = 2.5
    with pytest.raises(ValueError, match=r"`Net.acquisition_class_dim = 2.5`: expected 1 or -1"):
        Predictor(net)(X)


@pytest.mark.parametrize(
    ("net", "class_dim"),
    [(nn.Conv2d(6, 5, 1), 1), (Net(same, nn.ReLU()), 1), (Net(lambda x: x.movedim(1, -1), nn.Conv2d(6, 5, 1)), -1)],
)
def test_images_have_their_classes_second_unless_a_layer_tells_otherwise(net, class_dim):
    images = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Predictor(net)(images), net(images).movedim(class_dim, 1))


def test_the_layout_is_decided_on_the_example_for_all_batches():
    predictor = Predictor(net := Net(same, nn.Conv1d(4, 6, 1)))
    predictor.example = X
    predictor.inspect(X[:1])
    net.layers = nn.Sequential(nn.Linear(6, 4))  # is not watched again
    assert torch.equal(predictor(X), net(X))


# ---------------------------------------------------------------- entries of a tuple


class Returns(nn.Module):
    """A backbone, two heads, and what `forward` returns of them."""

    def __init__(self, choose):
        super().__init__()
        self.backbone, self.head, self.other = nn.Linear(3, 8), nn.Linear(8, 5), nn.Linear(8, 5)
        self.choose = choose

    def forward(self, x):
        hidden = self.backbone(x).relu()
        return self.choose(hidden=hidden, logits=self.head(hidden), other=self.other(hidden), x=x)


ROWS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize(
    "choose",
    [
        lambda logits, hidden, **_: (logits, hidden),
        lambda logits, hidden, **_: (hidden, logits),
        lambda logits, hidden, **_: (logits, hidden.detach()),
        lambda logits, x, **_: [logits, x],
        lambda logits, hidden, **_: (logits, (hidden, hidden)),
        lambda logits, **_: (logits.square().mean(), logits),  # the loss of a batch of one is no output
        lambda logits, **_: (logits.argmax(1), logits),
        lambda logits, hidden, **_: {"out": logits, "pred": logits.argmax(1)},
        lambda logits, other, **_: {"out": other, "logits": logits},
    ],
)
def test_the_entry_that_everything_else_goes_into_is_the_output(choose, size):
    net = Returns(choose)
    assert torch.equal(Predictor(net)(ROWS[:size]), net.head(net.backbone(ROWS[:size]).relu()))


@pytest.mark.parametrize(
    "choose",
    [
        lambda logits, other, **_: (logits, other),  # two heads
        lambda logits, other, **_: {"out": logits, "pred": other},
        lambda logits, **_: (logits.softmax(1), logits),
        lambda logits, hidden, **_: (logits.sum(), hidden),  # a squeezed output of one sample, or a loss
        lambda logits, hidden, **_: (logits.detach(), hidden.detach()),
    ],
)
def test_of_several_possible_entries_none_is_taken(choose):
    with pytest.raises(TypeError, match=explained(r"Cannot tell which entry of (tuple|dict)\(.*holds the predictions")):
        Predictor(Returns(choose))(ROWS)
