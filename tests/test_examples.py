"""The scripts of `examples/` in processes of their own, as a newcomer starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.wandb_files import read_wandb

ROOT = Path(__file__).parent.parent


def start(script, *arguments, folder):
    own = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    finished = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_wandb_cycles_leave_a_run_that_can_be_uploaded_and_continued(tmp_path):
    printed = start("wandb_cycles.py", "--cycles", 2, "--epochs", 2, folder=tmp_path)
    assert re.findall(r"^ *(\d+) labels: 0\.\d{3}$", printed, re.M) == ["20", "40"]
    folder = Path(re.search(r"wandb sync (\S+)", printed)[1])
    (file,) = (tmp_path / folder).glob("run-*.wandb")
    run = read_wandb(file)
    assert run.ended
    assert [point["al/labeled"] for point in run.points if "al/test/accuracy" in point] == [20, 40]
    again = start("wandb_cycles.py", "--cycles", 3, "--epochs", 2, folder=tmp_path)
    assert re.findall(r"^ *(\d+) labels: 0\.\d{3}$", again, re.M) == ["20", "40", "60"]
    runs = {path.stem for path in (tmp_path / "runs" / "wandb_cycles" / "wandb").glob("offline-run-*/run-*.wandb")}
    assert runs == {f"run-{run.run_id}"}
