"""What the documents show is run: the blocks of the README and the scripts of `examples/`."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_al import Acquisition, ActiveLearningCLI
from lightning_al.cli import compare
from tests.python_process import run_python

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULT = re.compile(r" *(\d+) labels: (0\.\d{3})")


def run(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


PYTHON = "\n".join(blocks("python")) + "\nprint(scores.shape, scores.min() > 0)\n"
COMMANDS = re.findall(r"^lightning-al (.*)$", "".join(blocks("bash")).replace("\\\n", ""), re.M)


def shorten(code):
    assert code.count("max_epochs=50") == code.count("cycles=5)") + code.count("cycles=5,") == 1
    return code.replace("max_epochs=50", "max_epochs=1").replace("cycles=5", "cycles=2")


def test_the_python_of_the_readme_runs_with_less_training(tmp_path):
    finished = run_python("-c", shorten(PYTHON), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert finished.returncode == 0, finished.stderr
    assert [labels for labels, _ in RESULT.findall(finished.stdout)] == ["20", "40"]
    assert "150 labeled, first picks" in finished.stdout
    assert "torch.Size([450]) tensor(True)" in finished.stdout


@pytest.mark.sweep
def test_the_python_of_the_readme_prints_what_the_readme_shows(tmp_path):
    script = tmp_path / "readme.py"
    script.write_text(PYTHON, encoding="utf-8")
    finished = run(script, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    shown, printed = RESULT.findall(blocks("text")[0]), RESULT.findall(finished.stdout)
    assert [labels for labels, _ in printed] == [labels for labels, _ in shown] == ["20", "40", "60", "80", "100"]
    # other processors round differently, and a cycle builds on the picks of the one before
    for (_, ours), (_, theirs) in zip(printed, shown, strict=True):
        assert float(ours) == pytest.approx(float(theirs), abs=0.15)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_parse(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lightning-al"])
    name, *arguments = shlex.split(command)
    if name == "fit":
        quiet = ["--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path / "run")]
        cli = ActiveLearningCLI(args=[*arguments, *quiet], run=False)
        assert any(isinstance(callback, Acquisition) for callback in cli.trainer.callbacks)
    elif name == "compare":
        assert compare.plan(compare.parse(arguments))
    else:
        assert (name, arguments[1:]) == ("report", [])


@pytest.mark.sweep
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_run(command, tmp_path):
    arguments, short = shlex.split(command), ["--cycles", "1", "--trainer.max_epochs", "2"]
    if arguments[0] == "report":  # of a run as the command above it makes one
        arguments = shlex.split("fit --config configs/digits.yaml --config configs/strategies/margin.yaml")
        made = run(
            "-m", "lightning_al", *arguments, "--trainer.default_root_dir", tmp_path / "run", *short, folder=ROOT
        )
        assert made.returncode == 0, made.stderr
        finished = run("-m", "lightning_al", "report", tmp_path / "run", folder=ROOT)
        assert finished.returncode == 0, finished.stderr
        assert "MarginAcquisition" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        return
    if arguments[0] == "compare":
        arguments += ["--seeds", "1", "--folder", tmp_path, "--", "--trainer.logger", "false"]
        folder = tmp_path / "random-seed-0"
    else:
        arguments += ["--trainer.default_root_dir", tmp_path / "run"]
        folder = tmp_path / "run"
    finished = run("-m", "lightning_al", *arguments, *short, folder=ROOT)
    assert finished.returncode == 0, finished.stderr
    assert (folder / "cycles.csv").read_text().splitlines()[1].startswith("0,20,20,")


def test_the_readme_names_every_strategy_and_every_link_leads_somewhere():
    from lightning_al import strategies

    assert [name for name in strategies.__all__ if f"| `{name}` |" not in README] == []
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_quickstart_runs_with_less_training(tmp_path):
    code = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    finished = run_python("-c", shorten(code).replace("__file__", repr(str(ROOT / "examples" / "x"))), cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert [labels for labels, _ in RESULT.findall(finished.stdout)] == ["20", "40"]


@pytest.mark.sweep
def test_the_quickstart_runs(tmp_path):
    finished = run(ROOT / "examples" / "quickstart.py", folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert [labels for labels, _ in RESULT.findall(finished.stdout)] == ["20", "40", "60", "80", "100"]


@pytest.mark.sweep
def test_the_demo_prints_a_table_and_draws_a_curve(tmp_path):
    arguments = ["--seeds", "1", "--strategies", "random", "--folder", tmp_path]
    finished = run(ROOT / "examples" / "demo.py", *arguments, folder=ROOT)
    assert finished.returncode == 0, finished.stderr
    row = re.search(r"^\| random +\|(.*)\|$", finished.stdout, re.M).group(1)
    accuracies = [float(value) for value in re.findall(r"0\.\d+", row)]
    assert len(accuracies) == 8
    assert accuracies[6] > accuracies[0] + 0.1, "120 more labels must help"
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000
    assert len(list((tmp_path / "random-seed-0").glob("cycle-*/picked/*.png"))) == 7 * 20
