import itertools
import sys
from pathlib import Path

import pytest
import yaml

import lightning_al
from lightning_al import Acquisition, ActiveLearningCLI, ActiveLearningDataModule, strategies, wrappers
from tests.sweep import sampled

ROOT = Path(__file__).parent.parent
STRATEGIES = sorted((ROOT / "configs" / "strategies").glob("*.yaml"))
DATA = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if "data" in yaml.safe_load(path.read_text())]
CLASSES = [name for name in strategies.__all__ if issubclass(getattr(strategies, name), Acquisition)]
HELD = {"acquisition": "inner", "acquisitions": "parts"}  # what a wrapper is given, and where it keeps what it makes
OTHERS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if path not in DATA]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Configurations name classes of `examples`, as a user's name classes of the working directory."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lightning-al"])


def acquisition_in(path):
    return class_and_arguments(yaml.safe_load(path.read_text())["acquisition"])


def class_and_arguments(section):
    return (section, {}) if isinstance(section, str) else (section["class_path"], section.get("init_args", {}))


def check(acquisition, section, query_size):
    """Compare an acquisition, and those that it holds, with a section of YAML."""
    name, arguments = class_and_arguments(section)
    assert type(acquisition).__name__ == name
    assert acquisition.query_size == query_size
    for argument, value in arguments.items():
        if argument not in HELD:
            assert getattr(acquisition, argument) == value
            continue
        held = getattr(acquisition, HELD[argument])
        sections, held = (value, held) if isinstance(value, list) else ([value], [held])
        for inner, section_of_it in zip(held, sections, strict=True):
            check(inner, section_of_it, query_size)


def test_there_is_something_to_check():
    assert DATA
    assert [path.name for path in OTHERS] == ["wandb.yaml"], "a file without `data:` is layered on others"
    assert CLASSES


@pytest.mark.parametrize(
    ("data", "strategy"),
    sampled(itertools.product(DATA, STRATEGIES), lambda pair: DATA[0] in pair or STRATEGIES[0] in pair),
    ids=lambda path: path.stem,
)
def test_every_pair_instantiates(data, strategy, tmp_path):
    options = ["--trainer.logger=false", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    cli = ActiveLearningCLI(args=[f"--config={data}", f"--config={strategy}", *options], run=False)
    (acquisition,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Acquisition))
    # the dataset's file says how many
    check(acquisition, yaml.safe_load(strategy.read_text())["acquisition"], acquisition_in(data)[1]["query_size"])
    assert type(cli.datamodule) is ActiveLearningDataModule
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda path: path.stem)
def test_a_strategy_file_sets_only_the_acquisition(path):
    assert set(yaml.safe_load(path.read_text())) == {"acquisition"}
    assert 3 <= len(path.read_text().splitlines()) <= 8
    assert "query_size" not in acquisition_in(path)[1]


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_a_dataset_file_says_how_to_run_it(path):
    first, second, *_ = path.read_text().splitlines()
    assert first.startswith("# ")
    assert second.startswith(f"# lightning-al fit --config configs/{path.name} --config configs/strategies/")
    assert (ROOT / second.split("--config ")[2]).is_file()


@pytest.mark.parametrize("name", CLASSES)
def test_every_strategy_has_a_file_of_its_name(name):
    module = getattr(strategies, name).__module__.rsplit(".", 1)[1]
    assert acquisition_in(ROOT / "configs" / "strategies" / f"{module}.yaml")[0] == name


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda path: path.stem)
def test_a_file_names_classes_that_the_package_exports(path):
    names = [acquisition_in(path)[0]]
    for argument, value in acquisition_in(path)[1].items():
        if argument in HELD:
            names += [class_and_arguments(section)[0] for section in (value if isinstance(value, list) else [value])]
    assert all(issubclass(getattr(lightning_al, name), Acquisition) for name in names)


def test_every_wrapper_has_a_file_but_the_one_that_needs_groups():
    used = {acquisition_in(path)[0] for path in STRATEGIES} & set(wrappers.__all__)
    assert used == set(wrappers.__all__) - {"OncePerGroup"}
