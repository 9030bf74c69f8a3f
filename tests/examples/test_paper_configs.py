"""The paper's experiments are parsed, and trained for two steps on files in the data's own format."""

import math
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from lightning_al import Acquisition, ActiveLearningCLI
from lightning_al.cli import compare
from tests.paper_files import WRITERS
from tests.sweep import sampled

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs" / "paper"
EXPERIMENTS = sorted(PAPER.glob("*.yaml"))
GRIDS = sorted((PAPER / "grids").glob("*.yaml"))
PAGE = (PAPER / "README.md").read_text()
COMMANDS = re.findall(r"^lightning-al compare (.+)$", PAGE.replace("\\\n", " "), re.M)
STRATEGIES = sorted((PAPER / "strategies").glob("*.yaml"))

# what makes two steps short on a CPU; all else is the experiment's
NETWORK, DATA = "--model.init_args.network.init_args", "--data.datamodule_or_train_dataset.init_args"
SHORT = ["--cycles=1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_test_batches=1"]
SLOW = "--model.init_args.optimizer.init_args.lr=1e-4"  # so that two steps do not make all outputs equal
SMALLER = {
    "cityscapes": [f"{DATA}.crop=32"],
    "cryo_et": [f"{DATA}.classes=2", f"{DATA}.train_size=12", f"{DATA}.test_size=4", f"{NETWORK}.width=4"],
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Configurations name classes of `examples`, as a user's name classes of the working directory."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lightning-al"])


def second_line(path):
    return path.read_text().splitlines()[1].removeprefix("# lightning-al ")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_parses_with_the_command_that_it_states(path, tmp_path):
    name, *words = second_line(path).split()
    assert (name, words[1]) == ("fit", str(path.relative_to(ROOT)))
    cli = ActiveLearningCLI(args=[*words, "--trainer.accelerator=cpu"], run=False)
    (acquisition,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Acquisition))
    strategy = yaml.safe_load(Path(words[3]).read_text())["acquisition"]
    content = yaml.safe_load(path.read_text())
    assert acquisition.query_size == content["acquisition"]["init_args"]["query_size"]
    assert all(getattr(acquisition, argument) == value for argument, value in strategy["init_args"].items())
    assert cli.trainer.max_epochs == content["trainer"]["max_epochs"]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_a_grid_parses_with_the_command_that_it_states(path):
    name, *words = second_line(path).split()
    assert name == "compare"
    runs = compare.plan(compare.parse([*words, "--seeds", "1"]))
    assert [run.strategy.replace("-", " ", 1) for run in runs] == list(yaml.safe_load(path.read_text()))
    for run in runs[:2]:
        cli = ActiveLearningCLI(args=[*run.command[1:], "--trainer.accelerator=cpu"], run=False)
        (acquisition,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Acquisition))
        assert acquisition.relative is (run.strategy == "relative")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_comparisons_of_the_page_parse(command):
    assert compare.plan(compare.parse(shlex.split(command, comments=True)))


def test_the_page_names_every_experiment():
    assert all(f"`{path.name}`" in PAGE for path in EXPERIMENTS)


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda path: path.stem)
def test_a_strategy_sets_only_the_acquisition(path):
    assert set(yaml.safe_load(path.read_text())) == {"acquisition"}


@pytest.mark.parametrize(
    "path",
    sampled(EXPERIMENTS, lambda path: path.stem in ("ames", "cryo_et")),
    ids=lambda path: path.stem,
)
def test_two_steps_on_files_in_the_format_of_the_data(path, tmp_path, monkeypatch):
    for module in ("cifar", "svhn"):  # the files of the test lack the published checksums
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda file, md5: Path(file).is_file())
    data = yaml.safe_load(path.read_text())["data"]["datamodule_or_train_dataset"]["init_args"]
    options = [f"{DATA}.{name}={value}" for name, value in (("download", "false"), ("num_workers", 0)) if name in data]
    options += [f"{DATA}.folder={tmp_path}"] if "folder" in data else []
    if writer := WRITERS.get(data.get("dataset", path.stem)):
        writer(tmp_path)
    words = [
        *second_line(path).split(),
        *options,
        *SMALLER.get(path.stem, []),
        *SHORT,
        SLOW,
        f"{DATA}.batch_size=2",
        "--data.initial_size=4",
        "--data.pool_batch_size=4",
        "--acquisition.query_size=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]
    cli = ActiveLearningCLI(args=words)
    (record,) = cli.records
    assert (record["labeled"], record["queried"]) == (4, 2)
    assert cli.datamodule.pool.num_labeled == 6
    assert cli.trainer.global_step == 2
    (metric,) = (value for name, value in record.items() if name.startswith("test/"))
    assert math.isfinite(metric)
