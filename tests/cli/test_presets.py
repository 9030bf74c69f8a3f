"""Bare names of strategies, in a source tree and from an installed wheel in an empty directory."""

import csv
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from lightning_al import ActiveLearningCLI
from lightning_al.cli import presets
from lightning_al.cli.presets import preset_names, resolve_config, resolve_config_options, to_config_argument
from tests.cli.toy import TOY
from tests.runs import picks_in

ROOT = Path(__file__).parents[2]
STRATEGIES = ROOT / "configs" / "strategies"


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Work in an empty directory, without arguments of this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-al"])
    return tmp_path


# ------------------------------------------------------------------ what a word stands for


def test_a_bare_name_is_a_preset_in_any_directory(empty):
    assert preset_names() == sorted(path.stem for path in STRATEGIES.glob("*.yaml"))
    for name in preset_names():
        path = Path(resolve_config(name))
        assert path == STRATEGIES / f"{name}.yaml"
        assert to_config_argument(path) == name


@pytest.mark.parametrize("word", ["margin.yaml", "./margin", "configs/margin", "{cycles: 3}", "cycles: 3", ""])
def test_a_path_and_inline_yaml_stay_as_they_are(empty, word):
    assert resolve_config(word) == word


def test_a_file_of_exactly_that_name_comes_first(empty):
    Path("margin").write_text("acquisition: RandomAcquisition\n")
    Path("entropy").mkdir()
    assert resolve_config("margin") == "margin"
    assert resolve_config("entropy") == str(STRATEGIES / "entropy.yaml")
    assert to_config_argument(Path("margin")) == "margin"
    assert to_config_argument(STRATEGIES / "margin.yaml") == str(STRATEGIES / "margin.yaml")


def test_an_unknown_name_lists_the_presets(empty):
    with pytest.raises(ValueError, match=r"^there is no preset `margn`, .*; the presets are badge, .*\./margn\."):
        resolve_config("margn")


def test_only_words_after_config_are_resolved(empty):
    margin = str(STRATEGIES / "margin.yaml")
    arguments = ["fit", "--config", "margin", "--config=margin", "-c", "margin", "--ckpt", "best", "--model=margin"]
    assert resolve_config_options(arguments) == [
        *("fit", "--config", margin, f"--config={margin}", "-c", margin, "--ckpt", "best", "--model=margin")
    ]
    assert resolve_config_options(["--config"]) == ["--config"]
    with pytest.raises(ValueError, match=r"^--config margn: there is no preset `margn`"):
        resolve_config_options(["--config=margn"])


def test_an_installed_package_has_its_presets_inside(empty, monkeypatch):
    (empty / "package" / "presets").mkdir(parents=True)
    (empty / "package" / "presets" / "mine.yaml").touch()
    monkeypatch.setattr(presets, "files", lambda package: empty / "package")
    assert preset_names() == ["mine"]
    assert resolve_config("mine") == str(empty / "package" / "presets" / "mine.yaml")


# ------------------------------------------------------------------ as arguments of `fit`


@pytest.mark.parametrize(
    ("words", "in_process"),
    [(["--config=toy.yaml", "--config=margin"], True), (["-c", "toy.yaml", "-c", "margin"], False)],
    ids=["args", "sys.argv"],
)
def test_fit_takes_a_preset_over_the_file_before_it(empty, monkeypatch, words, in_process):
    Path("toy.yaml").write_text(TOY)
    arguments = ["fit", *words, "--cycles=1", "--trainer.default_root_dir=run"]
    if not in_process:
        monkeypatch.setattr(sys, "argv", ["lightning-al", *arguments])
    cli = ActiveLearningCLI(args=arguments if in_process else None)
    assert [labeling.strategy for labeling in cli.datamodule.pool.history] == ["initial", "MarginAcquisition"]
    kept = yaml.safe_load(Path("run/config.yaml").read_text())
    assert kept["acquisition"]["init_args"]["query_size"] == 6


def test_fit_refuses_an_unknown_preset(empty, capsys):
    with pytest.raises(SystemExit, match="2"):
        ActiveLearningCLI(args=["fit", "--config=margn"])
    assert "--config margn: there is no preset `margn`" in capsys.readouterr().err
    assert not list(Path().iterdir())


# ------------------------------------------------------------------ the wheel


def build(folder, *options):
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), *options, str(ROOT)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built from the source distribution."""
    return build(tmp_path_factory.mktemp("dist"))


def test_the_wheel_holds_the_presets_built_either_way(wheel, tmp_path):
    contents = zipfile.ZipFile(wheel)
    expected = {f"lightning_al/presets/{path.name}": path.read_bytes() for path in STRATEGIES.iterdir()}
    names = {name for name in contents.namelist() if name.startswith("lightning_al/presets/")}
    assert {name: contents.read(name) for name in names} == expected
    assert zipfile.ZipFile(build(tmp_path, "--wheel")).namelist() == contents.namelist()


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory):
    """The command of an environment with the wheel, in which the packages of this one are found, but not this tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    lines = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(paths["purelib"], "packages.pth").write_text("\n".join(sorted(lines)))
    python = Path(paths["scripts"], "python")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True, timeout=300)
    return Path(paths["scripts"], "lightning-al")


def run(program, folder, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def rows_of(folder):
    with (folder / "cycles.csv").open(newline="") as file:
        return [(row["cycle"], row["labeled"], row["queried"]) for row in csv.DictReader(file)]


@pytest.mark.sweep
def test_an_installed_wheel_runs_presets_in_an_empty_directory(program, tmp_path):
    where = "import lightning_al; print(lightning_al.__file__)"
    assert Path(run(program.with_name("python"), tmp_path, "-c", where).strip()).is_relative_to(program.parents[1])
    (tmp_path / "toy.yaml").write_text(TOY)
    run(program, tmp_path, "fit", "--config", "toy.yaml", "--config", "margin", "--trainer.default_root_dir", "run")
    assert rows_of(tmp_path / "run") == [("0", "10", "6"), ("1", "16", "6")]

    names = ["random", "margin"]
    options = ["--config", "toy.yaml", "--strategies", *names, "--seeds", "1", "--workers", "1", "--folder", "study"]
    output = run(program, tmp_path, "compare", *options)
    assert "# test/accuracy of 2 strategies" in output
    for name in names:
        assert rows_of(tmp_path / "study" / f"{name}-seed-0") == [("0", "10", "6"), ("1", "16", "6")]
        log = (tmp_path / "study" / f"{name}-seed-0.log").read_text()
        assert log.startswith(f"$ lightning-al fit --config toy.yaml --config {name} --seed_everything 0 ")
    assert picks_in(tmp_path / "study" / "margin-seed-0") == picks_in(tmp_path / "run")
    assert picks_in(tmp_path / "study" / "random-seed-0") != picks_in(tmp_path / "run")
