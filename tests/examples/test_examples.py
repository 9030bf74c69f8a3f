"""The scripts of `examples/` import; as a newcomer starts them, in processes of their own, they run in the sweep."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wandb_files import read_wandb

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "active_learning.ipynb"
# quickstart.py runs as it is imported, and test_docs.py runs it
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(EXAMPLES.rglob("*.py"))
    if path.name not in ("__init__.py", "quickstart.py")
]


def start(script, *arguments, folder):
    environment = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("name", MODULES)
def test_every_example_imports_and_says_how_to_start_it(name):
    module = importlib.import_module(name)
    assert module.__doc__
    if hasattr(module, "main"):
        assert re.search(r"^ +(python|lightning-al|PYTHONPATH)\b.*", module.__doc__, re.M)


@pytest.mark.sweep
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


def test_a_strategy_of_your_own_keeps_the_promises():
    from examples.custom_strategy import InformationDensityAcquisition
    from lightning_al.testing import check_acquisition

    check_acquisition(lambda: InformationDensityAcquisition(5))


@pytest.mark.sweep
def test_a_strategy_of_your_own_is_checked_and_runs(tmp_path):
    checked, entropy, density = start("custom_strategy.py", folder=tmp_path).splitlines()
    assert checked == "InformationDensityAcquisition passes the checks of a strategy."
    curves = [re.findall(r"(\d+): (0\.\d+)", line) for line in (entropy, density)]
    assert [[labels for labels, _ in curve] for curve in curves] == [["20", "40", "60", "80"]] * 2
    assert curves[0][0] == curves[1][0], "both begin with the same labels and the same network"
    assert curves[0][1:] != curves[1][1:]


def test_information_density_is_the_formula_of_the_paper():
    import torch

    from examples.custom_strategy import InformationDensityAcquisition

    generator = torch.Generator().manual_seed(0)
    uncertain, features = torch.rand(7, generator=generator), torch.rand(7, 3, generator=generator)
    similar = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
    rows = torch.cat([uncertain[:, None], torch.nn.functional.normalize(features, dim=1)], dim=1)
    scores = InformationDensityAcquisition(1, beta=2.0).score(rows)
    torch.testing.assert_close(scores, uncertain * similar.mean(1) ** 2)


@pytest.mark.sweep
def test_your_own_model_and_data_run(tmp_path):
    printed = start("custom_model_and_data.py", folder=tmp_path).splitlines()
    assert [line.split("  ")[0].strip() for line in printed] == ["random", "noise stability"]
    for line in printed:
        errors = re.findall(r"(\d+): (\d+\.\d)", line)
        assert [labels for labels, _ in errors] == ["20", "40", "60", "80", "100"]
        # the standard deviation of the target is 77, its mean absolute deviation 66
        assert float(errors[-1][1]) < 60


def test_your_own_model_and_data_know_nothing_of_active_learning():
    source = (EXAMPLES / "custom_model_and_data.py").read_text(encoding="utf-8")
    theirs = source.split("# ----------------------------------------------------------------")[1]
    names = {node.id for node in ast.walk(ast.parse(theirs.partition("\n")[2])) if isinstance(node, ast.Name)}
    assert names
    assert not [name for name in names if "Acquisition" in name or "ActiveLearning" in name]


@pytest.mark.sweep
# what Jupyter says about its own sockets and paths
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
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
    text = NOTEBOOK.read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for number, cell in enumerate(code):
        compile("".join(cell["source"]), f"cell {number}", "exec")
    assert str(ROOT) not in text


def test_the_table_of_examples_names_them_all():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert [name for name in files if f"({name})" not in table and name != "__init__.py"] == []
