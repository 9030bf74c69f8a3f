import json
import logging
import math
import re
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import TensorDataset

from lightning_al import (
    ActiveLearningDataModule,
    BADGEAcquisition,
    BALDAcquisition,
    CheckpointEnsembleAcquisition,
    CoreSetAcquisition,
    EntropyAcquisition,
    MarginAcquisition,
    NoiseStabilityAcquisition,
    QueryByCommitteeAcquisition,
    RandomAcquisition,
    StochasticBatch,
)
from lightning_al.acquisition import contract
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.python_process import run_python
from tests.runs import make_data, make_trainer, weights_of
from tests.snapshot import module_picture, random_picture
from tests.strategy_settings import SETTINGS, WRAPPERS

MAKERS = {strategy.__name__: partial(strategy, **settings[0]) for strategy, settings in SETTINGS.items()} | dict(
    WRAPPERS
)


class Untrainable(ToyClassifier):
    """Fails in the first step of training."""

    def __init__(self, net=None, forward=None, samples=False):
        super().__init__()
        self.net = self.net if net is None else net
        self.change = forward or (lambda outputs: outputs)
        self.samples = samples

    def forward(self, points):
        return self.change(self.net(points))

    def training_step(self, batch, batch_idx):
        raise InterruptedError("it trained")


def fit(acquisition, *callbacks, model=None, data=None, **options):
    data = make_data(batch_size=32, pool_batch_size=16) if data is None else data
    make_trainer(acquisition, *callbacks, **{"max_epochs": 1, **options}).fit(model or ToyClassifier(), data)
    return data


def unscorable_module():
    net = nn.Sequential(nn.Linear(3, 4))
    net[0].reset_parameters = None
    return Untrainable(net)


@pytest.mark.parametrize(
    ("acquisition", "model", "message"),
    [
        (BALDAcquisition, partial(Untrainable, nn.Linear(3, 4)), "it has no module that drops"),
        (partial(CoreSetAcquisition, features="nett"), Untrainable, r"features='nett'.*Did you mean one of"),
        (
            BADGEAcquisition,
            partial(Untrainable, forward=lambda y: y[..., None, None]),
            "needs one row of outputs per sample",
        ),
        (MarginAcquisition, partial(Untrainable, nn.Linear(7, 4)), "mat1 and mat2 shapes cannot be multiplied"),
        (MarginAcquisition, partial(Untrainable, forward=lambda y: {"a": y, "b": y}), "Expected predictions, got"),
        (MarginAcquisition, partial(Untrainable, nn.Linear(3, 1)), "has one output per sample"),
        (
            partial(NoiseStabilityAcquisition, passes="inf"),
            partial(Untrainable, forward=lambda y: y[..., None]),
            "is for one row of outputs per",
        ),
        (partial(StochasticBatch, acquisition=CoreSetAcquisition), Untrainable, "has no score per sample"),
        (partial(StochasticBatch, acquisition=MarginAcquisition), Untrainable, r"takes logarithms of scores, got -"),
        (QueryByCommitteeAcquisition, unscorable_module, "no module of Untrainable has a `reset_parameters`"),
    ],
    ids=[
        "no dropout",
        "misspelt features",
        "several positions",
        "forward that does not fit",
        "output that is not understood",
        "one output",
        "dense in closed form",
        "no scores",
        "negative scores",
        "members that cannot start",
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_first_step(acquisition, model, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        fit(acquisition(5), model=model())


class Witness(Callback):
    """Takes pictures of the model and of the random numbers before and after the acquisition's hook."""

    def __init__(self, pictures):
        self.pictures = pictures

    def on_fit_start(self, trainer, pl_module):
        self.pictures.append((module_picture(pl_module), random_picture(), trainer.state.stage, trainer.training))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_a_rehearsal_leaves_everything_as_it_was(name, monkeypatch):
    pictures, acquisition = [], MAKERS[name](5)
    before = dict(vars(acquisition))
    monkeypatch.setattr(Untrainable, "training_step", lambda *arguments: before.update(trained=True))
    trainer = make_trainer(Witness(pictures), acquisition, Witness(pictures), max_steps=0, max_epochs=2)
    with pytest.warns(UserWarning, match="labels nothing: this fit trained no batch"):
        trainer.fit(Untrainable(), make_data())
    assert pictures[0] == pictures[1]
    assert "trained" not in before


def test_training_is_the_same_with_and_without_a_rehearsal(monkeypatch):
    """Also where the loader has a generator of its own."""
    weights = []
    for rehearse in (contract.rehearse, lambda *arguments: None):
        monkeypatch.setattr(contract, "rehearse", rehearse)
        torch.manual_seed(0)
        data = make_data(batch_size=4)
        plain, generator = data.datamodule.train_dataloader, torch.Generator().manual_seed(3)

        def train_dataloader(plain=plain, generator=generator):
            loader = plain()
            loader.generator = loader.sampler.generator = generator
            return loader

        monkeypatch.setattr(data.datamodule, "train_dataloader", train_dataloader)
        model = ToyClassifier()
        fit(BALDAcquisition(5, passes=3), model=model, data=data, max_epochs=2)
        weights.append(weights_of(model))
    for rehearsed, plain in zip(*weights, strict=True):
        assert torch.equal(rehearsed, plain)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "acquisition",
    [EntropyAcquisition, CoreSetAcquisition, NoiseStabilityAcquisition, CheckpointEnsembleAcquisition],
)
def test_equal_or_broken_outputs_of_an_untrained_model_are_no_failure(acquisition, value):
    class Late(ToyClassifier):
        def forward(self, points):
            outputs = super().forward(points)
            return outputs if self.training or self.trainer.global_step else outputs * 0 + value

    assert fit(acquisition(5), model=Late(), max_epochs=2).pool.cycle == 1


@pytest.mark.parametrize("acquisition", [EntropyAcquisition, partial(NoiseStabilityAcquisition, passes=2)])
def test_inputs_with_nan_are_refused_by_their_index(acquisition):
    data = ToyDataset()
    data.points[21] = math.nan
    data = ActiveLearningDataModule(TensorDataset(data.points, data.targets), initial_size=range(20), batch_size=16)
    with pytest.raises(ValueError, match=r"\[21\] \(dataset indices\).*Look at their inputs"):
        fit(acquisition(5), model=Untrainable(), data=data)


@pytest.mark.parametrize("acquisition", [MarginAcquisition, CoreSetAcquisition])
def test_a_model_that_is_random_in_eval_mode_is_reported(acquisition):
    class Sampling(ToyClassifier):
        def forward(self, points):
            return super().forward(points + 0.1 * torch.randn_like(points))

    with pytest.warns(UserWarning, match=r"two passes of Sampling in eval mode .* differ by up to .*acquisition_step"):
        fit(acquisition(5), model=Sampling())


def test_the_first_cycle_states_the_seconds(caplog):
    caplog.set_level(logging.INFO)
    data = fit(EntropyAcquisition(5))
    fit(EntropyAcquisition(5), data=data)
    lines = [line for line in caplog.messages if "before training" in line]
    assert len(lines) == 1
    assert lines[0].startswith("EntropyAcquisition: scored 8 candidates before training, in 0.")


@pytest.mark.parametrize(
    ("acquisition", "prepare"),
    [
        (RandomAcquisition, lambda data: None),
        (EntropyAcquisition, lambda data: data.pool.label(data.pool.unlabeled[3:], strategy="all but three")),
        (EntropyAcquisition, lambda data: data.begin_cycle(data.pool.label([100], strategy="earlier") or 0)),
    ],
    ids=["without a forward", "nothing to choose", "queried before"],
)
def test_no_query_needs_no_rehearsal(acquisition, prepare, monkeypatch):
    data = make_data(initial_size=range(10))
    data.setup("fit")
    prepare(data)
    monkeypatch.setattr("lightning_al.acquisition.rehearsal.scoring_clone", None)  # which it would call
    fit(acquisition(5), data=data)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "RandomAcquisition"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_diverged_training_is_the_same_error_for_every_strategy(name):
    class Diverged(ToyClassifier):
        def on_train_epoch_end(self):
            self.net[1].running_mean.fill_(math.nan)

    data = make_data()
    data.setup("fit")
    data.pool.label([100], strategy="earlier")
    message = r": the training of cycle 1 diverged, so nothing is labeled: 1 of 9 .*'net.1.running_mean'.*--retrain"
    with pytest.raises(ValueError, match=message):
        fit(MAKERS[name](5), model=Diverged(), data=data, max_epochs=2)
    assert data.pool.cycle == 1


def test_a_failure_on_one_process_ends_both(tmp_path):
    finished = run_python("-m", "tests.ddp_failures", tmp_path, ranks=2)
    assert finished.returncode == 0, finished.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert list(first) == list(second)
    for name, error in second.items():
        if name.startswith("NaN"):
            assert re.search(r"\[\d+\W.*\(dataset indices\)", first[name]), first[name]
        else:
            assert error == f"ValueError: {name.split()[-1]} failed"
            assert first[name] == f"RuntimeError: Process 1 failed. {error}"
