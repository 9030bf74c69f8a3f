"""What every strategy promises; strategies are found by walking the package, so a new one cannot slip by."""

import importlib
import inspect
import json
import pkgutil
import re
import sys
from pathlib import Path

import pytest
import yaml

from lightning_al import ActiveLearningCLI, strategies
from lightning_al.acquisition.contract import Acquisition
from lightning_al.testing import check_acquisition
from tests.ddp_picks import picks_of
from tests.python_process import run_python
from tests.strategy_settings import SETTINGS, WRAPPERS
from tests.sweep import sampled

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "strategies"
PRESETS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def find_strategies() -> list[type[Acquisition]]:
    found = []
    for info in pkgutil.iter_modules(strategies.__path__):
        module = importlib.import_module(f"lightning_al.strategies.{info.name}")
        found += [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, Acquisition) and value.__module__ == module.__name__
        ]
    return found


STRATEGIES = find_strategies()
CASES = [(strategy, settings) for strategy in STRATEGIES for settings in SETTINGS.get(strategy, [])]
# the first settings of each strategy, and what measures or selects in another way
FAST = [(strategy, settings[0]) for strategy, settings in SETTINGS.items()] + [
    (strategies.NoiseStabilityAcquisition, {"passes": 3, "selection": "k-center"}),
    (strategies.NoiseStabilityAcquisition, {"passes": "inf"}),
]


def name_of(value):
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_is_final_public_documented_and_has_settings(strategy):
    assert strategy in SETTINGS, f"add {strategy.__name__} to tests/strategy_settings.py"
    assert strategy.__bases__ == (Acquisition,), "strategies are final: combine by wrapping"
    assert strategy.__name__ in strategies.__all__
    name = strategy.__name__.removesuffix("Acquisition")
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    assert strategy.__module__ == f"lightning_al.strategies.{snake}"
    for section in ("Args:", "Cost:", "Example:"):
        assert section in strategy.__doc__


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stores_every_constructor_argument_under_its_name(strategy):
    parameters = inspect.signature(strategy.__init__).parameters
    acquisition = strategy(query_size=3)
    for name, parameter in parameters.items():
        if name not in ("self", "query_size"):
            assert getattr(acquisition, name) == parameter.default
    assert acquisition.query_size == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_has_a_configuration_of_its_own(strategy):
    classes = [yaml.safe_load(path.read_text())["acquisition"]["class_path"] for path in CONFIGS.glob("*.yaml")]
    assert strategy.__name__ in classes


# torch's own, when it first loads the rules of forward-mode differentiation
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize(("strategy", "settings"), sampled(CASES, FAST), ids=name_of)
def test_keeps_the_promises(strategy, settings):
    epochs = 2 if strategy is strategies.CheckpointEnsembleAcquisition else 1
    check_acquisition(lambda: strategy(query_size=7, **settings), max_epochs=epochs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [make for _, make in WRAPPERS], ids=[name for name, _ in WRAPPERS])
def test_wrappers_keep_the_promises(make):
    check_acquisition(lambda: make(7))


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if "seed" in vars(strategy(1))])
def test_another_seed_makes_another_draw(strategy):
    drawn = [picks_of(strategy(query_size=30, seed=seed, **SETTINGS[strategy][0])) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("query_size", [0, -1, 0.0, 1.5, True])
def test_refuses_an_impossible_query_size(strategy, query_size):
    message = rf"`{strategy.__name__}\(query_size={re.escape(repr(query_size))}\)`: expected a number of samples"
    with pytest.raises(ValueError, match=message):
        strategy(query_size=query_size)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", sampled(PRESETS, ("margin_and_core_set", "noise_stability", "query_by_committee")))
def test_two_cycles_on_digits_from_its_configuration(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)  # the configuration names classes of `examples`
    monkeypatch.setattr(sys, "argv", ["lightning-al"])
    options = {
        "cycles": 2,
        "data.candidates": 300,
        "acquisition.query_size": 10,
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.enable_checkpointing": False,
        "trainer.logger": False,
        "trainer.max_epochs": 2,
    }
    path = CONFIGS / f"{name}.yaml"
    arguments = [f"--config={ROOT / 'configs' / 'digits.yaml'}", f"--config={path}"]
    cli = ActiveLearningCLI(args=["fit", *arguments, *(f"--{name}={value}" for name, value in options.items())])
    assert [(record["labeled"], record["queried"]) for record in cli.records] == [(20, 10), (30, 10)]
    pool = cli.datamodule.pool
    assert len(set(pool.labeled)) == 40
    strategy = yaml.safe_load(path.read_text())["acquisition"]["class_path"]
    assert [labeling.strategy for labeling in pool.history] == ["initial", strategy, strategy]


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.sweep), 9], ids=["all", "some"])
def test_two_processes_pick_what_one_picks(tmp_path, every):
    picks = []
    for processes in (1, 2):
        path = tmp_path / f"{processes}.json"
        finished = run_python("-m", "tests.ddp_picks", processes, path, every, ranks=processes)
        assert finished.returncode == 0, finished.stderr
        picks.append(json.loads(path.read_text()))
    assert len(picks[0]) == len((CASES + WRAPPERS)[::every]) + 3
    assert len(picks[0]["one batch"]) == 5
    assert picks[0]["networks that score"] == [1]
    ((whole, expected),), ((shortlisted, found),) = (part.pop("scores of all") for part in picks)
    assert (whole, shortlisted) == (False, True)
    assert len(expected) == 100
    assert found == expected
    assert picks[0] == picks[1]
