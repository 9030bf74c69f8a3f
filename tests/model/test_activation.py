"""Whether outputs are probabilities already: by the last operation, by the values of several samples, or declared."""

import warnings

import pytest
import torch
from torch import nn

from lightning_al.model.predictor import Predictor

LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class EndsIn(nn.Module):
    def __init__(self, last, trains=True):
        super().__init__()
        self.layer = nn.Linear(5, 5).requires_grad_(trains)
        self.last = last

    def forward(self, x):
        return self.last(self.layer(x))


def same(y):
    return y


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize(
    ("last", "kind", "expected"),
    [
        (same, "softmax", lambda y: y.softmax(1)),
        (same, "sigmoid", torch.sigmoid),
        (same, "identity", same),
        (torch.relu, "softmax", lambda y: y.softmax(1)),
        (lambda y: y.log_softmax(1), "softmax", lambda y: y.exp()),
        (lambda y: y.softmax(1), "softmax", same),
        (lambda y: y.softmax(1)[:, :, None, None].clone(), "softmax", same),
        (torch.sigmoid, "sigmoid", same),
        (nn.Sigmoid(), "sigmoid", same),
        (nn.Softmax(1), "identity", same),
    ],
)
def test_the_last_operation_decides(last, kind, expected, size):
    net, x = EndsIn(last), LOGITS[:size]
    assert torch.allclose(Predictor(net).output(x, kind), expected(net(x)), atol=1e-6)


@pytest.mark.parametrize(
    ("last", "trains", "size", "kind", "message"),
    [
        (torch.sigmoid, True, 4, "softmax", r"EndsIn ends in a sigmoid, .*distort: pass `output='sigmoid'`"),
        (nn.Softmax(1), True, 4, "sigmoid", r"EndsIn ends in a softmax, .*distort: pass `output='softmax'`"),
        (nn.LogSoftmax(1), True, 4, "sigmoid", r"EndsIn ends in a softmax, .*distort: pass `output='softmax'`"),
        (nn.Softmax(0), True, 4, "softmax", r"end in a softmax, but do not sum to 1 over the classes.*Set `acquis"),
        # without a graph there are values only
        (torch.sigmoid, False, 4, "softmax", r"whether EndsIn returns logits or probabilities.*between 0 and 1"),
        (torch.sigmoid, False, 4, "sigmoid", r"whether EndsIn returns logits or probabilities.*between 0 and 1"),
        (nn.Softmax(1), False, 1, "softmax", r"outputs of one sample sum to 1, which may be a coincidence"),
    ],
)
def test_what_is_not_certain_is_asked_and_declared(last, trains, size, kind, message):
    net, x = EndsIn(last, trains), LOGITS[:size]
    with pytest.raises(ValueError, match=message):
        Predictor(net).output(x, kind)
    net.acquisition_outputs = "probabilities"
    assert torch.equal(Predictor(net).output(x, kind), net(x))
    net.acquisition_outputs = "logits"
    assert torch.equal(Predictor(net).output(x, kind), net(x).softmax(1) if kind == "softmax" else net(x).sigmoid())
    net.acquisition_outputs = "logit"
    with pytest.raises(ValueError, match=r"`EndsIn.acquisition_outputs = 'logit'`: expected \"logits\" or"):
        Predictor(net).output(x, kind)


def test_values_that_sum_to_one_are_used_as_they_are_with_one_warning():
    net = EndsIn(lambda y: y.exp() / y.exp().sum(1, keepdim=True))
    predictor = Predictor(net)
    with pytest.warns(UserWarning, match=r"EndsIn returns probabilities .*used as they are.*`acquisition_step`"):
        assert torch.equal(predictor.probabilities(LOGITS), net(LOGITS))
    assert torch.equal(predictor.probabilities(LOGITS), net(LOGITS))  # a second warning would be an error here


@pytest.mark.parametrize("batch", [(LOGITS, torch.zeros(4, 5)), {"x": LOGITS, "labels": torch.zeros(4, 5).long()}])
def test_a_target_for_each_output_is_no_choice_of_one_class(batch):
    with pytest.warns(UserWarning, match=r'several labels may hold at once, pass `output="sigmoid"`'):
        Predictor(EndsIn(same)).probabilities(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Predictor(EndsIn(same)).output(batch, "sigmoid")


def test_the_example_decides_for_all_batches():
    predictor = Predictor(nn.Flatten())
    predictor.example = LOGITS
    probabilities = LOGITS.softmax(1)
    assert torch.equal(predictor.probabilities(probabilities), probabilities.softmax(1))
