import sys
from pathlib import Path

import pytest
import yaml

from lightning_al import Acquisition, ActiveLearningCLI, ActiveLearningDataModule, strategies

ROOT = Path(__file__).parent.parent
STRATEGIES = sorted((ROOT / "configs" / "strategies").glob("*.yaml"))
DATA = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if "data" in yaml.safe_load(path.read_text())]
CLASSES = [name for name in strategies.__all__ if issubclass(getattr(strategies, name), Acquisition)]
OTHERS = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if path not in DATA]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Configurations name classes of `examples`, as a user's name classes of the working directory."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lightning-al"])


def acquisition_in(path):
    section = yaml.safe_load(path.read_text())["acquisition"]
    return section["class_path"], section.get("init_args", {})


def test_there_is_something_to_check():
    assert DATA
    assert not OTHERS, "a file without `data:` is no configuration of a dataset"
    assert CLASSES


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("data", DATA, ids=lambda path: path.stem)
def test_every_pair_instantiates(data, strategy, tmp_path):
    options = ["--trainer.logger=false", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    cli = ActiveLearningCLI(args=[f"--config={data}", f"--config={strategy}", *options], run=False)
    (acquisition,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Acquisition))
    name, arguments = acquisition_in(strategy)
    assert type(acquisition).__name__ == name
    assert {argument: getattr(acquisition, argument) for argument in arguments} == arguments
    assert acquisition.query_size == acquisition_in(data)[1]["query_size"]  # the dataset's file says how many
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
