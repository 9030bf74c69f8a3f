import json
import os
from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from lightning_al import EntropyAcquisition, RandomAcquisition, run_cycles
from lightning_al.analysis.run_summary import summarize_run
from lightning_al.storage.cycles_table import read_cycles
from lightning_al.storage.run_folder import RunFolder
from lightning_al.storage.tracking_notes import read_notes, update_notes
from lightning_al.tracking import failures
from lightning_al.tracking.wandb import STEPS_PER_PROCESS, run_id
from tests.python_process import run_python
from tests.runs import make_data, maker
from tests.tracking.test_cycle_tracker import StepClassifier
from tests.wandb_files import read_when_written
from tests.wandb_server import KEY, wandb_server


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("lightning_al.tracking.failures._already_warned", set())


def start(*arguments, **environment):
    """Run a process as from a shell of its own: with no service of this one's, which would outlive it."""
    own = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name} | environment
    return run_python(*arguments, env=own)


def only_run(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return read_when_written(path)


def test_one_run_has_every_point_of_every_cycle(tmp_path):
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    make = maker(lambda: EntropyAcquisition(5), model=StepClassifier, logger=logger, log_every_n_steps=1)
    target = {"test/accuracy": 1e-6}
    records = run_cycles(make, make_data(), cycles=3, run_dir=tmp_path / "run", target=target)
    logger.experiment.finish()
    run = only_run(tmp_path)
    assert run.ended
    steps = run.column("_step")
    assert steps == sorted(set(steps)), "W&B drops a point whose step does not increase"
    # 10, 15 and 20 samples in batches of 8, twice: one point per step, none over another
    curve = [point for point in run.points if "train/global_step" in point]
    assert [point["trainer/global_step"] for point in curve] == list(range(4 + 4 + 6))
    tested = [point for point in run.points if "al/test/accuracy" in point]
    assert [point["al/labeled"] for point in tested] == [10, 15, 20]
    assert [point["al/test/accuracy"] for point in tested] == [record["test/accuracy"] for record in records]
    queries = [point for point in run.points if "al/pool" in point]
    assert [(point["al/labeled"], point["al/pool"]) for point in queries] == [(10, 105), (15, 100), (20, 95)]
    assert all({"al/redundancy", "al/label_entropy", "al/score/pool/q50"} <= set(point) for point in queries)
    assert run.axes["al/*"] == "al/labeled"
    for name, value in summarize_run(read_cycles(tmp_path / "run" / "cycles.csv"), target).items():
        assert run.summary[f"al/{name}"] == pytest.approx(value)
    about = run.config["lightning_al"]
    assert about["target"] == target
    assert about["config"]["acquisition"] == {"class": "EntropyAcquisition", "query_size": 5, "output": "softmax"}
    assert about["config"]["data"]["seed"] == 0
    pools = [set(artifact.aliases) for artifact in run.artifacts if artifact.type == "pool"]
    assert pools == [{"latest", f"cycle-{cycle}"} for cycle in range(3)]


def picked(folder, cycle, index):
    return RunFolder(folder).preview_dir(cycle) / f"{index}.png"


def test_the_picks_of_digits_become_tables_with_pictures(tmp_path):
    folder = tmp_path / "run"
    layers = [f"--config=configs/{name}.yaml" for name in ("digits", "strategies/margin", "wandb")]
    options = [
        "--cycles=2",
        "--trainer.max_epochs=1",
        "--num_preview_samples=3",
        f"--trainer.default_root_dir={folder}",
    ]
    finished = start("-m", "lightning_al", "fit", *layers, *options)
    assert finished.returncode == 0, finished.stderr
    run = only_run(folder)
    tables = [artifact.manifest for artifact in run.artifacts if "alpicked" in artifact.name]
    assert run.column("al/picked/nrows") == [3, 3]
    assert len(tables) == 2
    history = json.loads((folder / "pool.json").read_text())["history"]
    for cycle, manifest in enumerate(tables):
        files = {entry.path: Path(entry.local_path) for entry in manifest.contents}
        (content,) = (json.loads(file.read_text()) for path, file in files.items() if path.endswith("table.json"))
        assert content["columns"] == ["index", "cycle", "rank", "score", "predicted", "label", "sample"]
        picks = history[cycle + 1]
        assert [row[:4] for row in content["data"]] == [
            [picks["indices"][rank], cycle, rank, pytest.approx(picks["scores"][rank])] for rank in range(3)
        ]
        for row in content["data"]:
            with Image.open(files[row[-1]["path"]]) as picture, Image.open(picked(folder, cycle, row[0])) as kept:
                assert picture.tobytes() == kept.tobytes()
    assert run.column("al/scores_table/nrows") == [60, 60]
    assert run.run_id == json.loads((folder / "tracking.json").read_text())["logger_runs"]["wandb"]["id"]


def test_a_run_that_died_goes_on_under_its_id(tmp_path):
    died = start("-m", "tests.wandb_run", str(tmp_path), "2", "on_train_batch_start")
    assert died.returncode == 9, died.stderr
    finished = start("-m", "tests.wandb_run", str(tmp_path), "2")
    assert finished.returncode == 0, finished.stderr
    notes = read_notes(RunFolder(tmp_path / "run").notes_file).logger_runs["wandb"]
    assert notes["processes"] == 2
    paths = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_ctime)
    assert {path.stem for path in paths} == {f"run-{notes['id']}"}
    second = read_when_written(paths[-1])
    assert second.run_id == notes["id"]
    assert second.column("_step")[0] == STEPS_PER_PROCESS
    assert [point["al/labeled"] for point in second.points if "al/test/accuracy" in point] == [15]
    steps = [point["trainer/global_step"] for point in second.points if "train/global_step" in point]
    assert steps == list(range(4, 4 + 4))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.sweep)])
def test_online_a_server_gets_every_point_table_and_pool_from_all_processes(tmp_path, processes):
    with wandb_server() as server:
        online = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
        for cycles in range(2, 2 + processes):
            finished = start("-m", "tests.wandb_run", str(tmp_path), str(cycles), **online)
            assert finished.returncode == 0, finished.stderr
    assert server.asked.count("RunResumeStatus") == processes
    steps = [point["_step"] for point in server.history]
    assert steps == sorted(set(steps)), "a point at a step that was there already is lost"
    tested = [point["al/labeled"] for point in server.history if "al/test/accuracy" in point]
    assert tested == [10, 15, 20][: 1 + processes]
    assert any("lightning_al" in config for config in server.configs)
    pools = [made for made in server.artifacts if made["artifactTypeName"] == "pool"]
    aliases = [sorted(alias["alias"] for alias in made["aliases"]) for made in pools]
    assert aliases == [[f"cycle-{cycle}", "latest"] for cycle in range(1 + processes)]
    kept = [content for path, content in server.files.items() if path.endswith("/pool.json")]
    assert (tmp_path / "run" / "pool.json").read_bytes() in kept
    tables = [content for path, content in server.files.items() if "media/table/al/picked" in path]
    assert [len(json.loads(table)["data"]) for table in tables] == [5] * len(tables)
    assert len(tables) >= 1 + processes
    assert server.committed == len(server.artifacts)


def test_an_id_stays_until_a_run_is_overwritten(tmp_path):
    notes_file = RunFolder(tmp_path).notes_file
    update_notes(notes_file, steps=[4])
    first = run_id(tmp_path)
    assert first != run_id(tmp_path), "nothing was remembered yet"
    update_notes(notes_file, logger_runs={"wandb": {"id": first, "processes": 1}})
    assert run_id(tmp_path) == first
    assert run_id(tmp_path, fresh=True) != first
    assert read_notes(notes_file).steps == [4]


def test_disabled_wandb_is_no_trouble(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(project="test", save_dir=tmp_path)
    records = run_cycles(maker(lambda: EntropyAcquisition(5), logger=logger), make_data(), cycles=2, run_dir=tmp_path)
    assert [record["queried"] for record in records] == [5, 5]
    assert not failures._already_warned
    logger.experiment.finish()


def test_a_wandb_that_fails_costs_a_warning(tmp_path, monkeypatch):
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    experiment = logger.experiment
    log = experiment.log

    def fail(values, **options):
        if any(name.startswith("al/") for name in values):
            raise ConnectionError("quota exceeded")
        log(values, **options)

    monkeypatch.setattr(experiment, "log", fail)
    with pytest.warns(UserWarning, match="WandbLogger failed .ConnectionError: quota exceeded"):
        records = run_cycles(
            maker(lambda: RandomAcquisition(5), logger=logger), make_data(), cycles=2, run_dir=tmp_path
        )
    assert [record["queried"] for record in records] == [5, 5]
    experiment.finish()
