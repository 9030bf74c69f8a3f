import pytest
import torch
from lightning.pytorch import Callback

from lightning_al import EntropyAcquisition, RandomAcquisition, run_cycles
from lightning_al.cycles.reset import ResetPolicy
from lightning_al.numerics.seeding import RandomStream, derive_seed
from lightning_al.testing import ToyClassifier
from tests.runs import make_data, make_trainer, picks_in, same_weights, weights_of


class Ends(Callback):
    """Notes the weights before and after each fit."""

    def __init__(self, before: list, after: list):
        self.before = before
        self.after = after

    def on_fit_start(self, trainer, pl_module):
        self.before.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})

    def on_fit_end(self, trainer, pl_module):
        self.after.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})


def run(folder, cycles=2, acquisition=RandomAcquisition, **options):
    """Return the state before and after each cycle's fit."""
    before, after = [], []

    def make(cycle):
        return make_trainer(acquisition(6), Ends(before, after)), ToyClassifier()

    run_cycles(make, make_data(), cycles=cycles, run_dir=folder, **options)
    return before, after


def fresh(cycle):
    torch.manual_seed(derive_seed(RandomStream.TRAINING, 0, cycle) % 2**32)
    return ToyClassifier().state_dict()


def equal(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_scratch_starts_from_fresh_weights_and_keeps_none(tmp_path):
    before, _ = run(tmp_path)
    assert [equal(start, fresh(cycle)) for cycle, start in enumerate(before)] == [True, True]
    assert not list(tmp_path.rglob("weights.ckpt"))


def test_warm_goes_on_from_the_cycle_before(tmp_path):
    before, after = run(tmp_path, reset="warm")
    assert equal(before[0], fresh(0))
    assert equal(before[1], after[0])
    assert not equal(after[0], before[0])
    assert before[1]["net.1.running_mean"].abs().sum() > 0  # statistics come along


def test_pretrained_starts_each_cycle_from_the_checkpoint(tmp_path):
    torch.manual_seed(5)
    donor = ToyClassifier()
    checkpoint = tmp_path / "donor.ckpt"
    torch.save({"state_dict": donor.state_dict()}, checkpoint)
    before, _ = run(tmp_path / "run", reset="pretrained", pretrained=checkpoint)
    assert [equal(start, donor.state_dict()) for start in before] == [True, True]


def test_pretrained_takes_a_plain_state_dict(tmp_path):
    donor = ToyClassifier()
    torch.save(donor.state_dict(), tmp_path / "donor.pt")
    model = ToyClassifier()
    ResetPolicy("pretrained", tmp_path / "donor.pt").apply(model, None)
    assert same_weights(weights_of(model), weights_of(donor))


@pytest.mark.parametrize(("shrink", "perturb"), [(0.5, 0.1), (0.3, 1.0), (1.0, 0.0)])
def test_shrink_perturb_mixes_old_and_fresh_parameters(tmp_path, shrink, perturb):
    before, after = run(tmp_path, reset="shrink_perturb", shrink=shrink, perturb=perturb)
    assert equal(before[0], fresh(0))
    parameters = [name for name, _ in ToyClassifier().named_parameters()]
    start = fresh(1)
    for name in parameters:
        expected = shrink * after[0][name] + perturb * start[name]
        torch.testing.assert_close(before[1][name], expected, rtol=0, atol=1e-7)
    assert torch.equal(before[1]["net.1.running_mean"], after[0]["net.1.running_mean"])


def test_a_warm_run_continues_in_a_later_call_like_one_that_never_stopped(tmp_path):
    _, straight = run(tmp_path / "straight", acquisition=EntropyAcquisition, reset="warm")
    run(tmp_path / "resumed", cycles=1, acquisition=EntropyAcquisition, reset="warm")
    _, resumed = run(tmp_path / "resumed", acquisition=EntropyAcquisition, reset="warm")
    assert len(resumed) == 1
    assert equal(resumed[0], straight[1])
    assert picks_in(tmp_path / "resumed") == picks_in(tmp_path / "straight")


def test_the_first_cycle_has_no_weights_to_go_on_from():
    model = ToyClassifier()
    start = weights_of(model)
    ResetPolicy("warm").apply(model, None)
    ResetPolicy("shrink_perturb").apply(model, None)
    assert same_weights(weights_of(model), start)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"state_dict": ToyClassifier(classes=3).state_dict()}, tmp_path / "other.ckpt")
    with pytest.raises(RuntimeError, match=r"size mismatch for net\.4\.weight"):
        ResetPolicy("pretrained", tmp_path / "other.ckpt").apply(ToyClassifier(), None)


def test_only_warm_starts_keep_weights():
    assert [ResetPolicy(reset).needs_previous for reset in ("scratch", "warm", "shrink_perturb")] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reset": "cold"}, r"`run_cycles\(reset='cold'\)`: expected one of \('scratch', 'warm', 'pretrained', 'shr"),
        ({"reset": "pretrained"}, r"`run_cycles\(reset='pretrained', pretrained=None\)`: a checkpoint is needed for"),
        ({"pretrained": "x.ckpt"}, r"`run_cycles\(reset='scratch', pretrained='x.ckpt'\)`: a checkpoint is needed for"),
        (
            {"reset": "pretrained", "pretrained": "no/such.ckpt"},
            r"`run_cycles\(pretrained='no/such.ckpt'\)`: there is no such file",
        ),
        ({"shrink": 1.5}, r"`run_cycles\(shrink=1.5, perturb=0.1\)`: expected two factors in \[0, 1\]"),
        ({"perturb": -0.1}, r"`run_cycles\(shrink=0.5, perturb=-0.1\)`: expected two factors in \[0, 1\]"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResetPolicy(**arguments)
