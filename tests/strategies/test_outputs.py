"""Strategies that read probabilities: of one binary logit, of several labels, and of what they cannot score."""

import inspect

import pytest
import torch
from torch import Tensor, nn

from lightning_al import strategies
from lightning_al.acquisition.query import QueryContext
from lightning_al.model.predictor import Predictor
from lightning_al.model.weight_swap import copy_weights

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
MEMBERS = range(3)


class Net(nn.Module):
    """Three logits with dropout before them, of which `forward` returns some, or classes made of one."""

    def __init__(self, read=lambda logits: logits) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(4 * self.net(x))


def column(label):
    return lambda logits: logits[:, label : label + 1]


def two_classes(label):
    return lambda logits: torch.stack([torch.zeros(len(logits)), logits[:, label]], 1)


def measured(name, read, **options):
    torch.manual_seed(0)
    model = Net(read).eval()
    acquisition = getattr(strategies, name)(1, **options)
    with torch.no_grad():
        context = QueryContext(Predictor(model), X, 0, 0, len(X), 1, range(len(X)), lambda indices: [X], list)
        if name in ("CheckpointEnsembleAcquisition", "QueryByCommitteeAcquisition"):
            acquisition._members = acquisition._committee = [copy_weights(Net()) for _ in MEMBERS]
        else:
            acquisition.prepare(context)
        return acquisition.measure(context.predictor, X)


# strategies whose scores are averaged over labels, and those that need a single choice
AVERAGED = [
    ("EntropyAcquisition", {}),
    ("MarginAcquisition", {}),
    ("LeastConfidenceAcquisition", {}),
    ("VariationRatioAcquisition", {"passes": 4}),
    ("MCDropoutAcquisition", {"passes": 4}),
    ("MCDropoutAcquisition", {"passes": 4, "uncertainty": "expected_entropy"}),
    ("BALDAcquisition", {"passes": 4}),
    ("CheckpointEnsembleAcquisition", {}),
    ("QueryByCommitteeAcquisition", {}),
    ("QueryByCommitteeAcquisition", {"disagreement": "consensus_entropy"}),
    ("QueryByCommitteeAcquisition", {"disagreement": "kl_divergence"}),
]
SINGLE = [("BatchBALDAcquisition", {"passes": 4}), ("BAITAcquisition", {"features": "net.1"})]
ALL = [*AVERAGED, *SINGLE, ("BADGEAcquisition", {"features": "net.1"})]


@pytest.mark.parametrize(("name", "options"), AVERAGED + SINGLE)
def test_a_binary_logit_is_scored_as_two_classes(name, options):
    found = measured(name, column(1), output="sigmoid", **options)
    torch.testing.assert_close(found, measured(name, two_classes(1), **options), rtol=1e-4, atol=1e-5)
    assert found.flatten(1).unique(dim=0).shape[0] > 1 if found.ndim > 1 else len(found.unique()) > 1


@pytest.mark.parametrize(("name", "options"), AVERAGED)
def test_several_labels_are_scored_by_their_mean(name, options):
    labels = [measured(name, column(label), output="sigmoid", **options) for label in range(3)]
    found = measured(name, lambda logits: logits, output="sigmoid", **options)
    torch.testing.assert_close(found, torch.stack(labels).mean(0), rtol=1e-4, atol=1e-5)


def test_badge_takes_the_gradients_of_all_labels():
    rows = measured("BADGEAcquisition", lambda logits: logits, output="sigmoid", features="net.1")
    torch.manual_seed(0)
    logits = Net().eval()(X).detach().requires_grad_()
    label = (logits > 0).float()
    nn.functional.binary_cross_entropy_with_logits(logits, label, reduction="sum").backward()
    torch.testing.assert_close(rows[:, :3], logits.grad)


@pytest.mark.parametrize(("name", "options"), ALL)
def test_one_logit_is_refused_as_a_choice_of_classes_with_an_argument_that_there_is(name, options):
    with pytest.raises(ValueError, match=r'one output per sample.*For a binary logit pass `output="sigmoid"`'):
        measured(name, column(0), **options)
    assert "output" in inspect.signature(getattr(strategies, name)).parameters


@pytest.mark.parametrize("name", sorted({name for name, _ in ALL}))
def test_other_outputs_are_refused(name):
    with pytest.raises(ValueError, match=rf"`{name}\(output='logits'.*\)`: expected"):
        getattr(strategies, name)(1, output="logits")


def test_what_has_no_meaning_for_labels_is_refused():
    with pytest.raises(ValueError, match=r"`MCDropoutAcquisition\(uncertainty=\"variance\", output='sigmoid'\)`"):
        strategies.MCDropoutAcquisition(1, uncertainty="variance", output="sigmoid")
    for name, remedy in (("BatchBALDAcquisition", "BALDAcquisition"), ("BAITAcquisition", "BADGEAcquisition")):
        options = dict(SINGLE)[name]
        with pytest.raises(ValueError, match=rf"{name}\(output=.sigmoid.\)` needs one .*`{remedy}\(output=.sigmoid"):
            measured(name, lambda logits: logits, output="sigmoid", **options)
