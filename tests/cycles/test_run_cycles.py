import csv
import json
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al import (
    Acquisition,
    ActiveLearningCLI,
    ActiveLearningDataModule,
    EntropyAcquisition,
    MarginAcquisition,
    Mixture,
    NoiseStabilityAcquisition,
    Pool,
    RandomAcquisition,
    StochasticBatch,
    run_cycles,
)
from lightning_al.numerics.seeding import RandomStream, derive_seed, seeded
from lightning_al.storage.run_folder import RunFolder
from lightning_al.storage.tracking_notes import read_notes
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.python_process import run_python
from tests.runs import (
    SECONDS,
    Recorder,
    ValidatedClassifier,
    make_data,
    make_trainer,
    maker,
    picks_in,
    same_weights,
    standard_run,
    weights_of,
    without_seconds,
)

ROOT = Path(__file__).parents[2]


def fresh_weights(cycle, model=ToyClassifier, seed=0):
    with seeded(seed):
        torch.manual_seed(derive_seed(RandomStream.TRAINING, seed, cycle) % 2**32)
        return weights_of(model())


def read_rows(folder):
    with (folder / "cycles.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ three cycles


@pytest.fixture(scope="module")
def three_cycles(tmp_path_factory):
    """One run with early stopping and checkpoints, which several tests look at from different sides."""
    folder = tmp_path_factory.mktemp("run")
    starts, epochs, checkpoints, made = [], [], [], []

    def make(cycle):
        made.append(cycle)
        checkpoints.append(ModelCheckpoint(monitor="val/loss", filename="best"))
        callbacks = [EntropyAcquisition(5), EarlyStopping("val/loss", patience=2), checkpoints[-1]]
        trainer = make_trainer(
            *callbacks,
            Recorder(starts, epochs),
            max_epochs=10,
            default_root_dir=folder,
            enable_checkpointing=True,
            num_sanity_val_steps=0,
        )
        return trainer, ValidatedClassifier()

    data = make_data(val_dataset=ToyDataset(40, seed=2))
    records = run_cycles(make, data, cycles=3)
    return {
        "folder": folder,
        "data": data,
        "records": records,
        "starts": starts,
        "epochs": epochs,
        "checkpoints": checkpoints,
        "made": made,
    }


def test_make_is_called_per_cycle_and_once_to_ask(three_cycles):
    assert three_cycles["made"] == [0, 0, 1, 2]


def test_each_cycle_trains_afresh(three_cycles):
    assert three_cycles["epochs"] == [3, 3, 3]  # the best epoch and two of patience, in every cycle
    assert [(start["epoch"], start["step"], start["optimizer"]) for start in three_cycles["starts"]] == [(0, 0, 0)] * 3


def test_each_cycle_starts_from_the_seeded_weights_of_its_cycle(three_cycles):
    for cycle, start in enumerate(three_cycles["starts"]):
        assert same_weights(start["weights"], fresh_weights(cycle, ValidatedClassifier))
    assert not same_weights(three_cycles["starts"][0]["weights"], three_cycles["starts"][1]["weights"])


def test_each_cycle_keeps_its_checkpoints_in_its_folder(three_cycles):
    used = three_cycles["checkpoints"][1:]  # the first one was only asked
    for cycle, checkpoint in enumerate(used):
        expected = three_cycles["folder"] / f"cycle-{cycle:02d}" / "checkpoints" / "best.ckpt"
        assert Path(checkpoint.best_model_path) == expected
        assert torch.load(expected, weights_only=False)["epoch"] == 0
        assert checkpoint.best_model_score == 0


def test_the_labeled_part_grows_by_the_query(three_cycles):
    records, pool = three_cycles["records"], three_cycles["data"].pool
    assert [(r["cycle"], r["labeled"], r["queried"]) for r in records] == [(0, 10, 5), (1, 15, 5), (2, 20, 5)]
    assert [labeling.strategy for labeling in pool.history] == ["initial", *["EntropyAcquisition"] * 3]
    assert len(set(pool.labeled)) == 25


def test_records_equal_the_file_in_the_promised_column_order(three_cycles):
    rows = read_rows(three_cycles["folder"])
    assert list(rows[0]) == ["cycle", "labeled", "queried", "test/accuracy", *SECONDS]
    assert [{name: float(text) for name, text in row.items()} for row in rows] == three_cycles["records"]
    assert all(0 <= record["test/accuracy"] <= 1 for record in three_cycles["records"])
    assert all(record[name] > 0 for record in three_cycles["records"] for name in SECONDS)
    assert all(type(record["labeled"]) is int for record in three_cycles["records"])


def test_the_run_folder_holds_what_the_design_says(three_cycles):
    names = {path.name for path in three_cycles["folder"].iterdir()}
    assert names == {"pool.json", "cycles.csv", "config.yaml", "tracking.json", "cycle-00", "cycle-01", "cycle-02"}
    config = yaml.safe_load((three_cycles["folder"] / "config.yaml").read_text())
    assert config["acquisition"] == {"class": "EntropyAcquisition", "query_size": 5, "output": "softmax"}
    split = {"initial_size": 10, "balanced_start": False, "candidates": None, "seed": 0}
    assert config["data"] == {**split, "batch_size": 8}
    assert (config["reset"], config["ckpt"]) == ("scratch", "last")


def test_a_plain_model_without_test_data_has_no_test_metrics(tmp_path):
    records = run_cycles(maker(lambda: RandomAcquisition(5)), make_data(test_dataset=None), cycles=2, run_dir=tmp_path)
    assert list(records[0]) == ["cycle", "labeled", "queried", *SECONDS]


def test_the_callers_random_numbers_have_no_say(tmp_path):
    picks = []
    for number in (1, 2):
        torch.manual_seed(number)
        run_cycles(maker(lambda: MarginAcquisition(5)), make_data(), cycles=2, run_dir=tmp_path / str(number))
        picks.append(picks_in(tmp_path / str(number)))
    assert picks[0] == picks[1]


def test_the_seed_of_the_datamodule_has_a_say(tmp_path):
    picks = []
    for seed in (0, 1):
        data = make_data(seed=seed, initial_size=list(range(10)))
        run_cycles(maker(lambda: MarginAcquisition(5)), data, cycles=1, run_dir=tmp_path / str(seed))
        picks.append(picks_in(tmp_path / str(seed)))
    assert picks[0][0] == picks[1][0] == list(range(10))
    assert picks[0][1] != picks[1][1]


# ------------------------------------------------------------------ the end of the pool


def test_a_query_larger_than_the_pool_takes_the_rest_and_the_run_ends(tmp_path):
    data = make_data()
    records = run_cycles(maker(lambda: EntropyAcquisition(60)), data, cycles=9, run_dir=tmp_path)
    assert [(record["labeled"], record["queried"]) for record in records] == [(10, 60), (70, 50), (120, 0)]
    assert data.pool.num_unlabeled == 0
    assert len(read_rows(tmp_path)) == 3


def test_a_run_that_ended_with_an_empty_pool_stays_ended(tmp_path):
    make = maker(lambda: EntropyAcquisition(0.5))
    first = run_cycles(make, make_data(), cycles=9, run_dir=tmp_path)
    assert [record["labeled"] for record in first] == [10, 70, 120]
    assert run_cycles(make, make_data(), cycles=9, run_dir=tmp_path) == first


# ------------------------------------------------------------------ which weights


class DeepSpot(ToyClassifier):
    """Moves its head far away after the first epoch, so that best and last weights differ visibly."""

    seen: list

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", float(self.current_epoch))

    def on_test_start(self):
        self.seen.append(("test", weights_of(self)))

    def acquisition_step(self, batch):
        self.seen.append(("score", weights_of(self)))
        return self(batch[0])


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("ckpt", ["best", "last"])
def test_ckpt_names_the_weights_that_score_and_are_tested(tmp_path, ckpt):
    DeepSpot.seen = seen = []
    ends = []

    def make(cycle):
        checkpoint = ModelCheckpoint(monitor="val/loss", filename="best")
        trainer = make_trainer(
            EntropyAcquisition(5), checkpoint, Recorder([], ends), max_epochs=3, enable_checkpointing=True
        )
        return trainer, DeepSpot()

    data = make_data(val_dataset=ToyDataset(40, seed=2))
    run_cycles(make, data, cycles=2, run_dir=tmp_path, ckpt=ckpt)
    for cycle in (0, 1):
        saved = torch.load(tmp_path / f"cycle-{cycle:02d}" / "checkpoints" / "best.ckpt", weights_only=False)
        best = [tensor for name, tensor in saved["state_dict"].items() if name.endswith(("weight", "bias"))]
        mine = seen[cycle * len(seen) // 2 : (cycle + 1) * len(seen) // 2]
        assert {stage for stage, _ in mine} == {"score", "test"}
        assert all(same_weights(weights, best) == (ckpt == "best") for _, weights in mine)
    assert ends == [3, 3]


def test_best_weights_need_a_checkpoint(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"ckpt='best'.*no `ModelCheckpoint` saved any.*`monitor=`"):
        run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(), cycles=1, run_dir=tmp_path, ckpt="best")


# ------------------------------------------------------------------ loggers


def test_one_logger_over_all_cycles_gets_the_figures_at_the_number_of_labels(tmp_path):
    logger = CSVLogger(tmp_path, name="csv", version=0)
    make = maker(lambda: EntropyAcquisition(5), logger=logger)
    records = run_cycles(make, make_data(), cycles=3, run_dir=tmp_path / "run")
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["al/labeled"]]
    tested = {int(row["step"]): float(row["al/test/accuracy"]) for row in rows if row["al/test/accuracy"]}
    assert tested == {record["labeled"]: record["test/accuracy"] for record in records}
    assert all(float(row["al/labeled"]) == int(row["step"]) for row in rows)
    pool = {int(row["step"]): float(row["al/pool"]) for row in rows if row["al/pool"]}
    assert pool == {10: 105, 15: 100, 20: 95}


# ------------------------------------------------------------------ wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cycles": 0}, r"`run_cycles\(cycles=0\)`: at least one cycle"),
        ({"ckpt": "first"}, r"`run_cycles\(ckpt='first'\)`: expected 'last' or 'best'"),
        ({"reset": "cold"}, r"`run_cycles\(reset='cold'\)`: expected one of"),
        ({"reset": "pretrained"}, "a checkpoint is needed for reset='pretrained'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_made(tmp_path, options, message):
    def make(cycle):
        pytest.fail("`make` was called")

    with pytest.raises(ValueError, match=message):
        run_cycles(make, make_data(), **{"cycles": 1, "run_dir": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [0, 2])
def test_a_trainer_needs_exactly_one_acquisition(tmp_path, count):
    def make(cycle):
        return make_trainer(*[RandomAcquisition(5) for _ in range(count)]), ToyClassifier()

    with pytest.raises(MisconfigurationException, match=f"one acquisition callback, got {count}. Add one, as in"):
        run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)


# ------------------------------------------------------------------ trials


def test_fast_dev_run_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_data()
    make = maker(lambda: EntropyAcquisition(5), fast_dev_run=True, enable_checkpointing=True)
    records = run_cycles(make, data, cycles=3)
    assert [(record["cycle"], record["labeled"], record["queried"]) for record in records] == [(0, 10, 0)]
    assert list(tmp_path.iterdir()) == []
    assert data.pool.num_labeled == 10


def test_fast_dev_run_goes_through_with_the_best_weights(tmp_path):
    make = maker(lambda: EntropyAcquisition(5), fast_dev_run=True, enable_checkpointing=True)
    records = run_cycles(make, make_data(), cycles=3, run_dir=tmp_path, ckpt="best")
    assert [record["cycle"] for record in records] == [0]


def test_a_trial_does_not_set_an_old_run_aside(tmp_path):
    folder = tmp_path / "run"
    run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(), cycles=1, run_dir=folder)
    make = maker(lambda: EntropyAcquisition(5), fast_dev_run=True)
    run_cycles(make, make_data(), cycles=1, run_dir=folder, overwrite=True)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["run"]  # the lock is hidden
    assert len(picks_in(folder)) == 2


# ------------------------------------------------------------------ resuming


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Four cycles in one go: (folder, records)."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, standard_run(folder, cycles=4)


def test_finished_cycles_are_not_repeated(uninterrupted, capfd):
    folder, records = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}

    def make(cycle):
        pytest.fail("`make` was called")

    settings = yaml.safe_load((folder / "config.yaml").read_text())
    again = run_cycles(
        make, make_data(candidates=60), cycles=4, reset="shrink_perturb", run_dir=folder, config=settings
    )
    assert again == records
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before


def test_a_new_process_continues_like_one_that_never_stopped(uninterrupted, tmp_path):
    folder, _ = uninterrupted
    standard_run(tmp_path, cycles=2)
    assert len(read_rows(tmp_path)) == 2
    continued = run_python("-m", "tests.runs", tmp_path, 4)
    assert continued.returncode == 0, continued.stderr
    assert f"Continuing the run in {tmp_path} after 2 finished cycles." in continued.stderr
    assert picks_in(tmp_path) == picks_in(folder)
    assert [row["test/accuracy"] for row in read_rows(tmp_path)] == [row["test/accuracy"] for row in read_rows(folder)]


@pytest.mark.parametrize(
    ("hook", "kept"), [("on_test_start", 3), ("on_train_batch_start", 2)], ids=["after the query", "in the fit"]
)
def test_a_killed_run_continues_with_the_same_picks(uninterrupted, tmp_path, hook, kept):
    folder, records = uninterrupted
    killed = run_python("-m", "tests.runs", tmp_path, 4, hook)
    assert killed.returncode == 9, killed.stderr
    assert len(read_rows(tmp_path)) == 1  # the row of the cycle that died is lost
    left = picks_in(tmp_path)
    assert left == picks_in(folder)[:kept]  # its labels are not
    continued = standard_run(tmp_path, cycles=4)
    assert picks_in(tmp_path) == picks_in(folder)
    assert without_seconds(continued) == without_seconds(records)
    assert [row["labeled"] for row in read_rows(tmp_path)] == ["10", "16", "22", "28"]


def lose_the_last_row(folder):
    """Leave labels of a cycle without a row, as a crash between the two does."""
    lines = (folder / "cycles.csv").read_text().splitlines(keepends=True)
    (folder / "cycles.csv").write_text("".join(lines[:-1]))


def test_the_redone_row_knows_how_long_the_lost_query_took(tmp_path):
    make = maker(lambda: EntropyAcquisition(5))
    first = run_cycles(make, make_data(), cycles=2, run_dir=tmp_path)
    lose_the_last_row(tmp_path)
    second = run_cycles(make, make_data(), cycles=2, run_dir=tmp_path)
    assert without_seconds(second) == without_seconds(first)
    assert second[1]["score_seconds"] == first[1]["score_seconds"]
    assert len(picks_in(tmp_path)) == 3


class KilledError(Exception):
    """Ends a run in the middle."""


def kill_after(monkeypatch, cls, name, kills):
    """Let a method raise after its work, where `kills` of its arguments says so."""
    original = getattr(cls, name)

    def run(self, *arguments):
        original(self, *arguments)
        if kills(self, *arguments):
            raise KilledError

    monkeypatch.setattr(cls, name, run)


def logged_points(folder):
    """Return the last value of each metric at each step, in the files of all processes, but for seconds."""
    points = {}
    for path in sorted(folder.rglob("metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                points |= {(name, row["step"]): value for name, value in row.items() if value and "seconds" not in name}
    return points


MOMENTS = {
    "the labels": (ActiveLearningDataModule, "save_pool", lambda data: data.pool.cycle == 2),
    "the row of the cycle": (RunFolder, "write_records", lambda folder, records: len(records) == 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_behind_what_is_written_last_nothing_is_missing(tmp_path, monkeypatch, moment):
    def run(folder):
        logger = CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)
        make = maker(lambda: EntropyAcquisition(5), logger=logger, log_every_n_steps=1)
        return run_cycles(make, make_data(), cycles=2, run_dir=folder / "run")

    def files(folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")

    expected = run(tmp_path / "expected")
    with monkeypatch.context() as patch:
        kill_after(patch, *MOMENTS[moment])
        with pytest.raises(KilledError):
            run(tmp_path / "killed")
    assert without_seconds(run(tmp_path / "killed")) == without_seconds(expected)
    assert logged_points(tmp_path / "killed") == logged_points(tmp_path / "expected")
    assert files(tmp_path / "killed" / "run") == files(tmp_path / "expected" / "run")
    notes = [read_notes(tmp_path / name / "run" / "tracking.json").steps for name in ("killed", "expected")]
    assert notes[0] == notes[1]


def test_labels_that_an_error_kept_from_the_file_are_written_when_the_datamodule_continues(tmp_path, monkeypatch):
    def interrupt(data):
        raise KilledError

    make, data = maker(lambda: EntropyAcquisition(5)), make_data()
    run_cycles(make, data, cycles=1, run_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ActiveLearningDataModule, "save_pool", interrupt)
        with pytest.raises(KilledError):
            run_cycles(make, data, cycles=2, run_dir=tmp_path)
    run_cycles(make, data, cycles=2, run_dir=tmp_path)
    assert [len(indices) for indices in picks_in(tmp_path)] == [10, 5, 5]


def test_what_a_killed_process_was_writing_is_deleted(tmp_path):
    make = maker(lambda: EntropyAcquisition(5))
    run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)
    expected = sorted(tmp_path.rglob("*"))
    (tmp_path / "cycle-00" / ".picked.tmp").mkdir()
    for name in (".pool.json.abc.tmp", "cycle-00/.picked.tmp/1.png", "cycle-00/.weights.tmp"):
        (tmp_path / name).touch()
    run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)
    assert sorted(tmp_path.rglob("*")) == expected


def test_another_configuration_is_refused_by_name(tmp_path):
    run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(), cycles=1, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"another configuration \(acquisition.query_size: 5 then, 6 now\)\. Choose"):
        run_cycles(maker(lambda: EntropyAcquisition(6)), make_data(), cycles=2, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"acquisition.class: 'EntropyAcquisition' then, 'MarginAcquisition' now"):
        run_cycles(maker(lambda: MarginAcquisition(5)), make_data(), cycles=2, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"\(data.initial_size: 10 then, 11 now; data.seed: 0 then, 1 now\)"):
        run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(initial_size=11, seed=1), cycles=2, run_dir=tmp_path)
    make = maker(lambda: EntropyAcquisition(5))
    with pytest.raises(ValueError, match=r"\(reset: 'scratch' then, 'warm' now; ckpt: 'last' then, 'best' now\)"):
        run_cycles(make, make_data(), cycles=2, run_dir=tmp_path, reset="warm", ckpt="best")
    assert len(read_rows(tmp_path)) == 1


class Sized(ToyClassifier):
    def __init__(self, width=4):
        super().__init__()
        self.save_hyperparameters()


def test_another_model_or_training_is_refused_by_name(tmp_path):
    run_cycles(maker(lambda: EntropyAcquisition(5), Sized), make_data(), cycles=1, run_dir=tmp_path)
    changes = {
        "model.hparams.width: 4 then, 5 now": (maker(lambda: EntropyAcquisition(5), partial(Sized, 5)), {}),
        "model.class: 'Sized' then, 'ToyClassifier' now": (maker(lambda: EntropyAcquisition(5)), {}),
        "data.batch_size: 8 then, 4 now": (maker(lambda: EntropyAcquisition(5), Sized), {"batch_size": 4}),
        "trainer.max_epochs: 2 then, 3 now; trainer.gradient_clip_val: None then, 0.5 now": (
            maker(lambda: EntropyAcquisition(5), Sized, max_epochs=3, gradient_clip_val=0.5),
            {},
        ),
    }
    for change, (make, options) in changes.items():
        with pytest.raises(ValueError, match=re.escape(change)):
            run_cycles(make, make_data(**options), cycles=2, run_dir=tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    older = {name: values for name, values in config.items() if name not in ("model", "trainer")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    assert len(run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(), cycles=2, run_dir=tmp_path)) == 2
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["class"] == "ToyClassifier"


@pytest.mark.parametrize("shared", ["trainer", "model"])
def test_a_trainer_or_model_of_an_earlier_cycle_is_refused(tmp_path, shared):
    trainer, model = make_trainer(RandomAcquisition(5)), ToyClassifier()

    def make(cycle):
        fresh = make_trainer(RandomAcquisition(5)), ToyClassifier()
        return (trainer, fresh[1]) if shared == "trainer" else (fresh[0], model)

    with pytest.raises(MisconfigurationException, match=rf"`make\(1\)` returned the {shared} of an earlier cycle"):
        run_cycles(make, make_data(), cycles=2, run_dir=tmp_path)
    assert len(read_rows(tmp_path)) == 1


def stability(passes):
    """A part of a wrapper that no YAML can hold."""
    return partial(NoiseStabilityAcquisition, passes=passes, modules=["net.4"])


def test_a_run_with_a_wrapper_is_continued_and_another_partial_refused(tmp_path):
    def run(cycles, part):
        return run_cycles(maker(lambda: StochasticBatch(5, part)), make_data(), cycles=cycles, run_dir=tmp_path)

    run(1, stability(passes=3))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["acquisition"] == {
        "class": "StochasticBatch",
        "query_size": 5,
        "acquisition": {"class": "NoiseStabilityAcquisition", "passes": 3, "modules": ["net.4"]},
        "noise": "power",
        "temperature": 1.0,
    }
    assert len(run(2, stability(passes=3))) == 2
    with pytest.raises(ValueError, match=r"\(acquisition\.acquisition\.passes: 3 then, 4 now\)"):
        run(3, stability(passes=4))
    with pytest.raises(ValueError, match=r"acquisition\.acquisition: None then, 'MarginAcquisition' now"):
        run(3, MarginAcquisition)


def test_what_wrappers_hold_is_named_alike_in_every_process(tmp_path):
    def run(cycles, passes):
        noisy = partial(StochasticBatch, acquisition=MarginAcquisition, noise="soft_rank")
        parts = [stability(passes), noisy, RandomAcquisition]
        return run_cycles(maker(lambda: Mixture(6, parts)), make_data(), cycles=cycles, run_dir=tmp_path)

    run(1, passes=3)
    text = (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load(text)["acquisition"]["acquisitions"] == [
        {"class": "NoiseStabilityAcquisition", "passes": 3, "modules": ["net.4"]},
        {"class": "StochasticBatch", "acquisition": "MarginAcquisition", "noise": "soft_rank"},
        "RandomAcquisition",
    ]
    assert " at 0x" not in text
    assert len(run(2, passes=3)) == 2
    with pytest.raises(ValueError, match=r"acquisition\.acquisitions: \[.*'passes': 3.* then, \[.*'passes': 4.* now"):
        run(3, passes=4)


def test_the_class_in_a_partial_that_yaml_made_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lightning-al"])
    arguments = ["--model=lightning_al.testing.ToyClassifier", "--acquisition=StochasticBatch"]
    arguments += ["--data.datamodule_or_train_dataset=lightning_al.testing.ToyDataset", "--data.initial_size=10"]
    arguments += ["--acquisition.query_size=5", "--acquisition.acquisition=NoiseStabilityAcquisition"]
    cli = ActiveLearningCLI(
        args=[*arguments, "--acquisition.acquisition.passes=3", "--trainer.logger=false"], run=False
    )
    (acquisition,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Acquisition))
    run_cycles(maker(lambda: acquisition), make_data(), cycles=1, run_dir=tmp_path)
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())["acquisition"]["acquisition"]
    assert (kept["class"], kept["passes"]) == ("NoiseStabilityAcquisition", 3)


def test_more_cycles_are_no_other_configuration(tmp_path):
    make = maker(lambda: EntropyAcquisition(5))
    run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)
    assert len(run_cycles(make, make_data(), cycles=2, run_dir=tmp_path)) == 2
    assert len(run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)) == 2  # what is finished stays


def test_a_setting_that_the_acquisition_hides_is_named(tmp_path):
    class HidingAcquisition(Acquisition):
        def __init__(self, query_size, temperature=1.0):
            super().__init__(query_size)
            self._temperature = temperature

        def measure(self, predictor, batch):
            return predictor(batch).sum(1)

    with pytest.raises(MisconfigurationException, match=r"`HidingAcquisition\(temperature=...\)`.*self\.temperature"):
        run_cycles(maker(lambda: HidingAcquisition(5)), make_data(), cycles=1, run_dir=tmp_path)


def test_a_datamodule_of_another_run_is_refused(tmp_path):
    """Otherwise the second run would replay the picks of the first, whatever its acquisition."""
    data = make_data()
    run_cycles(maker(lambda: EntropyAcquisition(5)), data, cycles=2, run_dir=tmp_path / "first")
    with pytest.raises(ValueError, match=r"labels are kept in .*first.pool\.json, those of this run in .*second"):
        run_cycles(maker(lambda: RandomAcquisition(5)), data, cycles=2, run_dir=tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_the_same_datamodule_continues_its_own_run(tmp_path):
    data, make = make_data(), maker(lambda: EntropyAcquisition(5))
    run_cycles(make, data, cycles=2, run_dir=tmp_path / "run")
    records = run_cycles(make, data, cycles=3, run_dir=tmp_path / "run")
    run_cycles(make, make_data(), cycles=3, run_dir=tmp_path / "one")
    assert [record["labeled"] for record in records] == [10, 15, 20]
    assert picks_in(tmp_path / "run") == picks_in(tmp_path / "one")


def test_records_without_their_pool_are_refused(tmp_path):
    folder, make = tmp_path / "run", maker(lambda: EntropyAcquisition(5))
    run_cycles(make, make_data(), cycles=2, run_dir=folder)
    (folder / "pool.json").unlink()
    with pytest.raises(ValueError, match=r"cycles.csv lists finished cycles, but pool.json beside it.*--overwrite"):
        run_cycles(make, make_data(), cycles=3, run_dir=folder)
    run_cycles(make, make_data(), cycles=1, run_dir=folder, overwrite=True)
    assert (len(read_rows(folder)), len(read_rows(tmp_path / "run.old-1"))) == (1, 2)


# ------------------------------------------------------------------ overwriting


def test_overwrite_sets_the_old_run_aside(tmp_path):
    folder, make = tmp_path / "run", maker(lambda: EntropyAcquisition(5))
    run_cycles(make, make_data(), cycles=2, run_dir=folder)
    records = run_cycles(maker(lambda: RandomAcquisition(4)), make_data(), cycles=1, run_dir=folder, overwrite=True)
    assert [(record["labeled"], record["queried"]) for record in records] == [(10, 4)]
    assert [len(indices) for indices in picks_in(folder)] == [10, 4]
    assert len(read_rows(tmp_path / "run.old-1")) == 2
    run_cycles(make, make_data(), cycles=1, run_dir=folder, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["run", "run.old-1", "run.old-2"]
    assert Pool.load(tmp_path / "run.old-2" / "pool.json").history[1].strategy == "RandomAcquisition"


def test_overwrite_refuses_to_rename_the_working_directory(tmp_path, monkeypatch):
    make = maker(lambda: RandomAcquisition(5))
    run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)
    (tmp_path / "inside").mkdir()
    for place in (tmp_path, tmp_path / "inside"):
        monkeypatch.chdir(place)
        with pytest.raises(ValueError, match=r"`overwrite=True` would rename .*in which this process works"):
            run_cycles(make, make_data(), cycles=1, run_dir=os.path.relpath(tmp_path), overwrite=True)
    assert (tmp_path / "pool.json").exists()


def test_overwrite_of_nothing_is_a_plain_run(tmp_path):
    folder = tmp_path / "run"
    make = maker(lambda: RandomAcquisition(5))
    assert len(run_cycles(make, make_data(), cycles=1, run_dir=folder, overwrite=True)) == 1
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["run"]  # the lock is hidden


# ------------------------------------------------------------------ processes


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        ("ddp", ["noise", "warm"]),
        pytest.param("ddp", ["entropy", "random"], marks=pytest.mark.sweep),
        pytest.param("ddp_fork", ["warm"], marks=pytest.mark.sweep),  # it forks for every stage, which is slow
    ],
)
def test_the_picks_do_not_depend_on_the_number_of_processes(tmp_path, strategy, names):
    # Lightning forks the processes of `ddp_fork` itself
    for place, arguments, ranks in (("one", ("auto", 1), 1), ("two", (strategy, 2), 2 if strategy == "ddp" else 1)):
        finished = run_python("-m", "tests.ddp_runs", tmp_path / place, *arguments, *names, ranks=ranks)
        assert finished.returncode == 0, finished.stderr
    picks = {name: picks_in(tmp_path / "one" / name) for name in names}
    assert picks == {name: picks_in(tmp_path / "two" / name) for name in names}
    assert all([len(indices) for indices in history] == [12, 6, 6] for history in picks.values())
    assert len({str(history) for history in picks.values()}) == len(names)
    for name in names:
        tested = [
            [float(row["test/accuracy"]) for row in read_rows(tmp_path / place / name)] for place in ("one", "two")
        ]
        assert tested[0] == pytest.approx(tested[1])


# ------------------------------------------------------------------ one cycle


def test_the_metrics_of_all_test_loaders_are_kept(tmp_path):
    class TwoTests(ToyClassifier):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            points, labels = batch
            self.log("test/accuracy", (self(points).argmax(1) == labels).float().mean())

    data = make_data()
    loader = data.test_dataloader()
    data.test_dataloader = lambda: [loader, loader]
    make = maker(lambda: RandomAcquisition(5), model=TwoTests)
    (record,) = run_cycles(make, data, cycles=1, run_dir=tmp_path)
    first, second = (record[f"test/accuracy/dataloader_idx_{number}"] for number in (0, 1))
    assert first == second > 0


def test_a_metric_named_like_a_column_leaves_the_column_alone(tmp_path):
    class Labeled(ToyClassifier):
        def test_step(self, batch, batch_idx):
            self.log("labeled", 0.5)

    (record,) = run_cycles(maker(lambda: RandomAcquisition(5), model=Labeled), make_data(), cycles=1, run_dir=tmp_path)
    assert (record["labeled"], record["test/labeled"]) == (10, 0.5)


def test_after_an_error_a_later_fit_follows_the_pool(tmp_path):
    class FailsInTest(ToyClassifier):
        def test_step(self, batch, batch_idx):
            raise RuntimeError("no test today")

    data = make_data()
    with pytest.raises(RuntimeError, match="no test today"):
        run_cycles(maker(lambda: RandomAcquisition(5), model=FailsInTest), data, cycles=1, run_dir=tmp_path)
    assert (data.cycle, data.pool.cycle) == (1, 1)


def test_sigterm_ends_with_a_status_that_says_so_and_the_run_goes_on(tmp_path):
    class Terminated(ToyClassifier):
        def on_train_batch_start(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        run_cycles(maker(lambda: RandomAcquisition(5), model=Terminated), make_data(), cycles=1, run_dir=tmp_path)
    assert ended.value.code == 143
    make = maker(lambda: RandomAcquisition(5))
    records = run_cycles(make, make_data(), cycles=1, run_dir=tmp_path, may_change=["model"])
    assert [record["queried"] for record in records] == [5]


def test_the_seconds_of_a_fit_are_kept_where_the_query_is_of_an_earlier_process(tmp_path):
    make = maker(lambda: RandomAcquisition(5))
    run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)
    (tmp_path / "cycles.csv").unlink()  # as after a kill behind the labels
    stored = json.loads((tmp_path / "pool.json").read_text())
    stored["history"][1]["seconds"] = {"score": 1000.0, "select": 0.0}
    (tmp_path / "pool.json").write_text(json.dumps(stored))
    (record,) = run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)
    assert record["score_seconds"] == 1000
    assert record["fit_seconds"] > 0


def test_a_training_that_diverged_is_replaced_and_no_label_is_lost(tmp_path):
    class Diverging(ToyClassifier):
        def __init__(self, lr):
            super().__init__()
            self.lr = lr

        def on_train_end(self):
            if self.lr > 1 and self.trainer.datamodule.cycle == 1:
                self.net[0].weight.data.fill_(float("nan"))

    def run(lr, cycles=2, **options):
        make = maker(lambda: EntropyAcquisition(5), lambda: Diverging(lr))
        config = {"model": {"lr": lr}, "acquisition": "entropy"}
        return run_cycles(make, make_data(), cycles=cycles, run_dir=tmp_path / "run", config=config, **options)

    with pytest.raises(ValueError, match="the training of cycle 1 diverged, so nothing is labeled"):
        run(10)
    first = picks_in(tmp_path / "run")
    with pytest.raises(ValueError, match="keep its labels and train with them by `retrain`"):
        run(0.1)
    assert [record["labeled"] for record in run(0.1, retrain=True)] == [10, 15]
    assert picks_in(tmp_path / "run")[:2] == first
    assert [record["labeled"] for record in run(0.1, cycles=3)] == [10, 15, 20]
