"""What all wrappers have in common, and how they combine."""

import logging
import pickle
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from lightning_al import (
    Acquisition,
    ActiveLearningCLI,
    BADGEAcquisition,
    EntropyAcquisition,
    MarginAcquisition,
    Mixture,
    NoiseStabilityAcquisition,
    OncePerGroup,
    RandomAcquisition,
    RandomSubset,
    StochasticBatch,
    UncertaintyHerding,
    wrappers,
)
from lightning_al.strategies.checkpoint_ensemble import CheckpointEnsembleAcquisition
from lightning_al.testing import check_acquisition
from lightning_al.wrappers.wrapper import Wrapper
from tests.runs import picks_in
from tests.strategy_settings import GROUPS, WRAPPERS
from tests.wrappers.fits import alone, fit, picks_of

ONE_INSIDE = {
    "StochasticBatch": StochasticBatch,
    "RandomSubset": partial(RandomSubset, candidates=50),
    "UncertaintyHerding": UncertaintyHerding,
    "OncePerGroup": partial(OncePerGroup, groups=GROUPS),
    "Mixture": lambda query_size, acquisition: Mixture(query_size, [acquisition, acquisition]),
    "Mixture in OncePerGroup": lambda query_size, acquisition: OncePerGroup(
        query_size, partial(Mixture, acquisitions=[acquisition, RandomAcquisition]), GROUPS
    ),
    "RandomSubset in StochasticBatch": lambda query_size, acquisition: StochasticBatch(
        query_size, partial(RandomSubset, acquisition=acquisition, candidates=50)
    ),
}


def held_by(acquisition):
    """Return the acquisitions at the bottom."""
    parts = getattr(acquisition, "parts", None) or [getattr(acquisition, "inner", None)]
    return [acquisition] if parts == [None] else [found for part in parts for found in held_by(part)]


def test_every_wrapper_is_tested_documented_and_public():
    assert {type(make(7)) for _, make in WRAPPERS} == {getattr(wrappers, name) for name in wrappers.__all__}
    for name in wrappers.__all__:
        wrapper = getattr(wrappers, name)
        assert wrapper.__bases__[0] in (Wrapper, Acquisition), "wrappers are final: combine by wrapping"
        assert all(section in wrapper.__doc__ for section in ("Args:", "Raises:", "Cost:", "Example:"))
        assert getattr(sys.modules["lightning_al"], name) is wrapper


# ---------------------------------------------------------------- calls are passed on


CALLS = Counter()


class Noting(Acquisition):
    """Counts what it is told, and stores something for the cycle."""

    needs_labeled = True

    def note(self, name):
        CALLS[name] += 1

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.note("setup")

    def on_fit_start(self, trainer, pl_module):
        self.note("on_fit_start")

    def on_train_epoch_end(self, trainer, pl_module):
        self.note("on_train_epoch_end")

    def teardown(self, trainer, pl_module, stage):
        self.note("teardown")

    def prepare(self, context):
        self.note("prepare")
        self.prepared = context

    def measure(self, predictor, batch):
        return predictor.probabilities(batch).amax(1)


@pytest.fixture
def calls():
    CALLS.clear()
    return CALLS


@pytest.mark.parametrize("name", ONE_INSIDE)
def test_what_a_fit_tells_is_passed_on_exactly_once(name, calls):
    wrapper = ONE_INSIDE[name](7, Noting)
    times = sum(type(held) is Noting for held in held_by(wrapper))
    fit(wrapper, max_epochs=3)
    expected = {"setup": 1, "on_fit_start": 1, "on_train_epoch_end": 3, "prepare": 2, "teardown": 1}
    assert calls == {call: times * count for call, count in expected.items()}


@pytest.mark.parametrize("name", ONE_INSIDE)
def test_nothing_of_a_cycle_outlives_it(name, calls):
    wrapper = ONE_INSIDE[name](7, Noting)
    before = [dict(vars(held)) for held in (wrapper, *held_by(wrapper))]
    fit(wrapper)
    after = [dict(vars(held)) for held in (wrapper, *held_by(wrapper))]
    for old, new in zip(before, after, strict=True):
        # that it was trained; and Lightning gives every callback the `log` of its module
        assert {key: value for key, value in new.items() if key not in ("log", "log_dict")} == {
            **old,
            "_trained": new["_trained"],
        }
    assert calls["prepare"]


@pytest.mark.parametrize("name", ONE_INSIDE)
def test_what_the_others_need_is_asked_for(name, calls):
    covers = name == "UncertaintyHerding"  # which measures both parts itself
    assert ONE_INSIDE[name](7, Noting).needs_labeled
    assert ONE_INSIDE[name](7, MarginAcquisition).needs_labeled == covers
    assert ONE_INSIDE[name](7, MarginAcquisition).needs_forward
    assert ONE_INSIDE[name](7, RandomAcquisition).needs_forward == covers


@pytest.mark.parametrize("name", ONE_INSIDE)
def test_weights_of_earlier_epochs_reach_the_ensemble_inside(name):
    make = partial(ONE_INSIDE[name], 7, CheckpointEnsembleAcquisition)
    check_acquisition(make, max_epochs=2)
    assert all(not held._recent for held in held_by(make()) if hasattr(held, "_recent"))


def test_the_query_size_reaches_the_others_and_is_checked_once():
    wrapper = OncePerGroup(0.1, partial(Mixture, acquisitions=[EntropyAcquisition] * 2), GROUPS)
    assert [held.query_size for held in held_by(wrapper)] == [0.1, 0.1]
    assert len(picks_of(wrapper)) == 12
    with pytest.raises(ValueError, match=r"^`RandomSubset\(query_size=0\)`: expected a number of samples"):
        RandomSubset(0, MarginAcquisition)


def test_figures_of_the_other_acquisition_are_reported(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(OncePerGroup(7, partial(NoiseStabilityAcquisition, passes=4), GROUPS))
    assert re.search(r"OncePerGroup: labeled 7 .*, passes 4, confidence [01]\.?\d*; Pool", caplog.text)


@pytest.mark.parametrize("name", ONE_INSIDE)
def test_only_a_wrapper_that_leaves_the_choice_to_the_other_passes_its_shortlist_on(name):
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0))
    wrapper = ONE_INSIDE[name](7, EntropyAcquisition)
    rows_to_gather = wrapper.rows_to_gather(scores, 7)
    if isinstance(wrapper, RandomSubset):
        assert set(rows_to_gather.tolist()) == set(scores.topk(7).indices.tolist())
    else:
        assert rows_to_gather is None


# ---------------------------------------------------------------- combined


@pytest.mark.usefixtures("unrehearsed")
def test_wrappers_in_wrappers_pick_what_one_after_another_would():
    nested = OncePerGroup(7, partial(StochasticBatch, acquisition=EntropyAcquisition), GROUPS)
    prepared, query = alone(StochasticBatch(7, EntropyAcquisition))
    first = prepared.select(query)
    groups = [GROUPS[index] for index in first]
    kept = [index for row, index in enumerate(first) if GROUPS[index] not in groups[:row]]
    picks = picks_of(nested)
    assert picks[: len(kept)] == kept
    assert len({GROUPS[index] for index in picks}) == 7


@pytest.mark.parametrize("make", [make for _, make in WRAPPERS], ids=[name for name, _ in WRAPPERS])
def test_a_pickled_wrapper_picks_the_same(make):
    assert picks_of(pickle.loads(pickle.dumps(make(7)))) == picks_of(make(7))


@pytest.mark.parametrize("wrong", [MarginAcquisition(7), "MarginAcquisition", None, str, lambda query_size: query_size])
def test_other_things_than_classes_of_acquisitions_are_refused(wrong):
    message = r"^`RandomSubset\(acquisition=.*\)`: expected an acquisition class, or a `functools\.partial` of one"
    with pytest.raises(ValueError, match=message):
        RandomSubset(7, wrong)


# ---------------------------------------------------------------- YAML

TOY = """\
cycles: 2
data:
  datamodule_or_train_dataset: lightning_al.testing.ToyDataset
  initial_size: 20
  batch_size: 32
model: lightning_al.testing.ToyClassifier
acquisition:
  class_path: RandomAcquisition
  init_args: {query_size: 6}
trainer:
  {max_epochs: 1, logger: false, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""
NESTED = """\
acquisition:
  class_path: OncePerGroup
  init_args:
    groups: groups.txt
    acquisition:
      class_path: StochasticBatch
      init_args:
        noise: soft_rank
        temperature: 0.5
        acquisition:
          class_path: RandomSubset
          init_args:
            candidates: 0.4
            acquisition:
              class_path: NoiseStabilityAcquisition
              init_args: {passes: 4, modules: ["net.4"]}
"""
MIXTURE = """\
acquisition:
  class_path: Mixture
  init_args:
    acquisitions:
      - MarginAcquisition
      - class_path: BADGEAcquisition
        init_args: {seed: 3}
      - class_path: lightning_al.wrappers.StochasticBatch
        init_args: {acquisition: EntropyAcquisition, temperature: 0.5}
    shares: [3, 2, 1]
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-al"])
    monkeypatch.chdir(tmp_path)
    for name, text in {"toy": TOY, "nested": NESTED, "mixture": MIXTURE}.items():
        Path(f"{name}.yaml").write_text(text)
    Path("groups.txt").write_text("\n".join(map(str, GROUPS)))
    return ["fit", "--config=toy.yaml", "--trainer.default_root_dir=run"]


def acquisition_of(cli):
    (acquisition,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Acquisition))
    return acquisition


def test_wrappers_nest_in_yaml(toy):
    cli = ActiveLearningCLI(args=[*toy, "--config=nested.yaml"])
    acquisition = acquisition_of(cli)
    subset = acquisition.inner.inner
    assert [type(held) for held in (acquisition, acquisition.inner, subset, subset.inner)] == [
        OncePerGroup,
        StochasticBatch,
        RandomSubset,
        NoiseStabilityAcquisition,
    ]
    assert (acquisition.inner.temperature, subset.candidates, subset.inner.passes) == (0.5, 0.4, 4)
    assert acquisition.query_size == subset.inner.query_size == 6, "the file of the data says how many"
    labelings = cli.datamodule.pool.history
    assert [labeling.strategy for labeling in labelings[1:]] == ["OncePerGroup"] * 2
    assert all(len({GROUPS[index] for index in labeling.indices}) == 6 for labeling in labelings[1:])


def test_yaml_picks_what_python_picks(toy):
    ActiveLearningCLI(args=[*toy, "--config=nested.yaml", "--cycles=1"])
    stability = partial(NoiseStabilityAcquisition, passes=4, modules=["net.4"])
    subset = partial(RandomSubset, acquisition=stability, candidates=0.4)
    batch = partial(StochasticBatch, acquisition=subset, noise="soft_rank", temperature=0.5)
    from_python = acquisition_of(ActiveLearningCLI(args=["--config=toy.yaml", "--config=nested.yaml"], run=False))
    assert picks_of(from_python) == picks_of(OncePerGroup(6, batch, GROUPS))


def test_a_mixture_in_yaml(toy):
    cli = ActiveLearningCLI(args=[*toy, "--config=mixture.yaml", "--acquisition.shares=[1,1,4]"])
    acquisition = acquisition_of(cli)
    assert [type(part) for part in acquisition.parts] == [MarginAcquisition, BADGEAcquisition, StochasticBatch]
    assert (acquisition.parts[1].seed, acquisition.parts[2].temperature, acquisition.budgets(6)) == (3, 0.5, [1, 1, 4])


def test_arguments_of_the_other_acquisition_can_be_given_on_the_command_line(toy):
    arguments = ["--acquisition=RandomSubset", "--acquisition.query_size=5"]
    inner = ["--acquisition.acquisition=NoiseStabilityAcquisition", "--acquisition.acquisition.passes=2"]
    acquisition = acquisition_of(ActiveLearningCLI(args=[*toy, *arguments, *inner]))
    assert (acquisition.query_size, acquisition.inner.query_size, acquisition.inner.passes) == (5, 5, 2)


def test_a_run_with_a_wrapper_is_continued_and_another_one_refused(toy):
    command = [*toy, "--config=nested.yaml"]
    ActiveLearningCLI(args=command)
    kept = yaml.safe_load(Path("run/config.yaml").read_text())["acquisition"]
    assert kept["init_args"]["acquisition"]["class_path"].endswith("StochasticBatch")
    ActiveLearningCLI(args=[*command, "--cycles=3"])
    assert len(picks_in(Path("run"))) == 4
    other = NESTED.replace("passes: 4", "passes: 5")
    Path("nested.yaml").write_text(other)
    with pytest.raises(ValueError, match=r"passes: 4 then, 5 now"):
        ActiveLearningCLI(args=[*command, "--cycles=4"])


def test_wrong_arguments_inside_are_refused(toy, capsys):
    Path("nested.yaml").write_text(NESTED.replace("passes: 4", "passess: 4"))
    with pytest.raises(SystemExit):
        ActiveLearningCLI(args=[*toy, "--config=nested.yaml"])
    assert "passess" in capsys.readouterr().err
