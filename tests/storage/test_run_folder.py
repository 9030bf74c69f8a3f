import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from lightning_al import Pool
from lightning_al.storage.cycles_table import CycleRecord
from lightning_al.storage.pool_file import Labeling
from lightning_al.storage.run_folder import RunFolder
from lightning_al.testing import ToyClassifier

RECORDS = [
    CycleRecord(
        0, 10, 5, fit_seconds=1e-7, score_seconds=0.5, select_seconds=0.0, metrics={"test/accuracy": 0.1 + 0.2}
    ),
    CycleRecord(1, 15, 0, fit_seconds=float("inf"), score_seconds=0.0, select_seconds=0.0, metrics={}),
]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def begun(folder):
    """A folder with a pool and a configuration, as it is while the first cycle trains."""
    Pool(5).save(folder.pool_file)
    folder.write_config({"acquisition": {"class": "Entropy", "query_size": 5}, "trainer": {"devices": 1}, "seed": 0})
    return folder


def test_nothing_is_made_before_the_first_file(folder):
    assert folder.read_records() == []
    folder.check_config({"seed": 1}, (), 0)
    folder.set_aside()
    assert not folder.path.exists()


def test_paths(folder):
    assert folder.cycle(0).name == "cycle-00"
    assert folder.cycle(123).name == "cycle-123"
    assert folder.weights(7) == folder.path / "cycle-07" / "weights.ckpt"


def test_records_come_back_exactly(begun):
    begun.write_records(RECORDS)
    assert begun.read_records() == RECORDS


def test_records_without_a_pool_are_refused(folder):
    folder.write_records(RECORDS)
    with pytest.raises(ValueError, match=r"cycles\.csv lists finished cycles, but pool\.json beside it"):
        folder.read_records()


def test_weights_come_back(folder):
    model = ToyClassifier()
    folder.write_weights(2, model)
    state = torch.load(folder.weights(2), weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [path.name for path in folder.cycle(2).iterdir()] == ["weights.ckpt"]


def test_the_same_configuration_continues_and_says_so(begun, caplog):
    caplog.set_level(logging.INFO)
    config = {"seed": 0, "trainer": {"devices": 1}, "acquisition": {"query_size": 5, "class": "Entropy"}}
    begun.check_config(config, (), finished=3)
    assert caplog.messages == [f"Continuing the run in {begun.path} after 3 finished cycles."]


def test_a_pool_that_a_plain_trainer_left_has_no_configuration_to_differ_from(folder, caplog):
    caplog.set_level(logging.INFO)
    Pool(5).save(folder.pool_file)
    folder.check_config({"seed": 0}, (), finished=0)
    assert caplog.messages == [f"Continuing the run in {folder.path} after 0 finished cycles."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"\(seed: 0 then, 1 now\)"),
        (
            {"acquisition": {"class": "Margin", "query_size": 6}},
            r"\(acquisition\.class: 'Entropy' then, 'Margin' now; ",
        ),
        ({"acquisition": {"class": "Entropy"}}, r"\(acquisition\.query_size: 5 then, None now\)"),
        ({"extra": {"deep": [1, 2]}}, r"\(extra\.deep: None then, \[1, 2\] now\)"),
        ({"trainer": {"devices": 2}}, r"\(trainer\.devices: 1 then, 2 now\)"),
    ],
)
def test_another_configuration_is_refused_by_name(begun, change, message):
    config = {"acquisition": {"class": "Entropy", "query_size": 5}, "trainer": {"devices": 1}, "seed": 0}
    with pytest.raises(ValueError, match=message):
        begun.check_config({**config, **change}, (), finished=0)


def test_free_settings_may_change_with_everything_below_them(begun):
    config = {"acquisition": {"class": "Entropy", "query_size": 5}, "trainer": {"devices": 2}, "seed": 0}
    begun.check_config(config, ("trainer.devices",), finished=0)
    begun.check_config(config, ("trainer",), finished=0)
    with pytest.raises(ValueError, match=r"trainer\.devices"):
        begun.check_config(config, ("trainer.device",), finished=0)


@pytest.mark.parametrize(
    ("change", "is_training"),
    [
        ({"trainer": {"devices": 2}}, True),
        ({"model": {"lr": 0.1}}, True),
        ({"data": {"batch_size": 4}}, True),
        ({"data": {"batch_size": 8, "candidates": 4}}, False),
        ({"seed": 1}, False),
        ({"model": {"lr": 0.1}, "acquisition": {"class": "Entropy", "query_size": 6}}, False),
        ({"acquisition": None, "trainer": {"callbacks": ["Margin"], "devices": 1}}, False),
    ],
)
def test_retraining_changes_settings_of_training_only(begun, change, is_training, caplog):
    before = {
        "acquisition": change.get("acquisition", True) and {"class": "Entropy", "query_size": 5},
        "trainer": {"callbacks": ["Entropy"], "devices": 1},
        "model": {"lr": 1.0},
        "data": {"batch_size": 8},
        "seed": 0,
    }
    begun.write_config(before)
    config = {**before, **change}
    with pytest.raises(ValueError, match="was started with another configuration") as refusal:
        begun.check_config(config, (), finished=2)
    assert ("`retrain` (`--retrain`)" in str(refusal.value)) == is_training
    with nullcontext() if is_training else pytest.raises(ValueError, match="was started with another configuration"):
        caplog.set_level(logging.INFO)
        begun.check_config(config, (), finished=2, retrain=True)
        assert caplog.messages[0].startswith("From cycle 2 on the run trains with other settings (")


def test_a_configuration_holds_what_yaml_can(begun):
    begun.write_config({"path": Path("a/b"), "sizes": (1, 2), "nested": {"none": None, "flag": True}})
    kept = yaml.safe_load(begun.config_file.read_text())
    assert kept == {"path": "a/b", "sizes": [1, 2], "nested": {"none": None, "flag": True}}
    begun.check_config({"path": Path("a/b"), "sizes": (1, 2), "nested": {"none": None, "flag": True}}, (), finished=0)


def test_set_aside_counts_up(begun):
    begun.set_aside()
    Pool(6).save(begun.pool_file)
    begun.set_aside()
    assert not begun.path.exists()
    sizes = [Pool.load(begun.path.with_name(f"run.old-{number}") / "pool.json").size for number in (1, 2)]
    assert sizes == [5, 6]


def test_a_folder_that_is_no_run_is_not_renamed(folder):
    folder.path.mkdir()
    (folder.path / "notes.txt").write_text("mine")
    folder.set_aside()
    assert (folder.path / "notes.txt").exists()


def test_the_working_directory_is_not_renamed(begun, monkeypatch):
    monkeypatch.chdir(begun.path)
    with pytest.raises(ValueError, match=r"`overwrite=True` would rename .*default_root_dir"):
        RunFolder(Path(".")).set_aside()


# ---------------------------------------------------------------- records and pool


def labelings(*sizes):
    start = [sum(sizes[:cycle]) for cycle in range(len(sizes))]
    return [Labeling("someone", list(range(first, first + size))) for first, size in zip(start, sizes, strict=True)]


def record(cycle, labeled, queried):
    return CycleRecord(cycle, labeled, queried, fit_seconds=1.0, score_seconds=0.0, select_seconds=0.0)


def test_records_that_the_pool_confirms_are_fine(begun):
    begun.check_records([], labelings(10))
    begun.check_records([record(0, 10, 5), record(1, 15, 3)], labelings(10, 5, 3))
    begun.check_records([record(0, 10, 5), record(1, 15, 0)], labelings(10, 5))
    begun.check_records([record(0, 10, 5)], labelings(10, 5, 3))  # killed behind the labels of the second cycle


@pytest.mark.parametrize(
    ("records", "sizes", "row"),
    [
        ([record(0, 10, 5), record(1, 15, 3)], (10, 5), 2),  # an older pool
        ([record(0, 10, 5), record(1, 15, 3), record(2, 18, 2), record(3, 20, 1)], (10, 5, 3), 3),  # rows too many
        ([record(0, 10, 6)], (10, 5), 1),
        ([record(1, 10, 5)], (10, 5), 1),
        ([record(0, 12, 5)], (10, 5), 1),
    ],
)
def test_records_that_the_pool_contradicts_are_refused(begun, records, sizes, row):
    with pytest.raises(
        ValueError, match=rf"cycles\.csv, row {row} does not fit pool\.json: expected cycle, labeled and"
    ):
        begun.check_records(records, labelings(*sizes))


def test_records_without_settings_are_refused(begun):
    begun.config_file.unlink()
    with pytest.raises(ValueError, match=r"holds finished cycles, but no config\.yaml with their settings"):
        begun.check_records([record(0, 10, 5)], labelings(10, 5))
