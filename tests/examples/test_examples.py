"""The scripts of `examples/` in processes of their own, as a newcomer starts them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.wandb_files import read_wandb

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "active_learning.ipynb"


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


def test_a_strategy_of_your_own_is_checked_and_runs(tmp_path):
    checked, entropy, density = start("custom_strategy.py", folder=tmp_path).splitlines()
    assert checked == "InformationDensityAcquisition keeps the promises of a strategy."
    found = [re.findall(r"(\d+): (0\.\d+)", line) for line in (entropy, density)]
    assert [[labels for labels, _ in curve] for curve in found] == [["20", "40", "60", "80"]] * 2
    assert found[0][0] == found[1][0], "both begin with the same labels and the same network"
    assert found[0][1:] != found[1][1:]


def test_information_density_is_the_formula_of_the_paper():
    import torch

    from examples.custom_strategy import InformationDensityAcquisition

    generator = torch.Generator().manual_seed(0)
    uncertain, features = torch.rand(7, generator=generator), torch.rand(7, 3, generator=generator)
    similar = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
    rows = torch.cat([uncertain[:, None], torch.nn.functional.normalize(features, dim=1)], dim=1)
    scores = InformationDensityAcquisition(1, beta=2.0).score(rows)
    torch.testing.assert_close(scores, uncertain * similar.mean(1) ** 2)


def test_your_own_model_and_data_run_unchanged(tmp_path):
    printed = start("custom_model_and_data.py", folder=tmp_path).splitlines()
    assert [line.split("  ")[0].strip() for line in printed] == ["random", "noise stability"]
    for line in printed:
        errors = re.findall(r"(\d+): (\d+\.\d)", line)
        assert [labels for labels, _ in errors] == ["20", "40", "60", "80", "100"]
        # the standard deviation of the target is 77, its mean absolute deviation 66
        assert float(errors[-1][1]) < 60
    source = (ROOT / "examples" / "custom_model_and_data.py").read_text(encoding="utf-8")
    theirs = source.split("# ----------------------------------------------------------------")[1]
    names = {node.id for node in ast.walk(ast.parse(theirs.partition("\n")[2])) if isinstance(node, ast.Name)}
    assert names
    assert not [name for name in names if "Acquisition" in name or "ActiveLearning" in name]


# what Jupyter says about its own sockets and paths
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # fewer epochs, and nothing else
        cell.source = cell.source.replace("max_epochs=50", "max_epochs=3")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type in ("error", "stream")]
    texts = [output["data"]["text/plain"] for output in outputs if output.output_type == "execute_result"]
    assert texts == ["Pool(40 of 1347 labeled, cycle 1)", "[20, 40, 60, 80, 100]"]
    assert [len(output["data"]["image/png"]) > 3000 for output in outputs if "image/png" in output.get("data", {})] == [
        True,
        True,
    ]


def test_the_notebook_is_kept_as_it_was_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")


def test_the_table_of_examples_names_them_all():
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")]
    assert [name for name in files if f"({name})" not in table and name != "__init__.py"] == []
