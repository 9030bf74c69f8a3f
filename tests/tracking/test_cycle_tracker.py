import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_al import EntropyAcquisition, Pool, RandomAcquisition, run_cycles
from lightning_al.storage.run_folder import RunFolder
from lightning_al.storage.tracking_notes import read_notes
from lightning_al.testing import ToyClassifier
from lightning_al.tracking.cycle_tracker import CycleTracker
from lightning_al.tracking.failures import warn_on_failure
from lightning_al.tracking.query_metrics import query_metrics, track_query
from lightning_al.tracking.query_summary import QuerySummary
from lightning_al.tracking.tracker import MetricsTracker, tracker_for
from tests.python_process import run_python
from tests.runs import make_data, make_trainer, maker

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    monkeypatch.setattr("lightning_al.tracking.failures._already_warned", set())


class MemoryLogger(Logger):
    """A logger of a user's own, with the least that Lightning asks for."""

    name = "memory"
    version = 0

    def __init__(self):
        self.points = []
        self.saves = 0

    def log_metrics(self, metrics, step=None):
        self.points.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def save(self):
        self.saves += 1


class BrokenLogger(MemoryLogger):
    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no route to host")


def outcome_of(scores=(0.5, 2.0, 1.0), of_all=(0.5, 2.0, 1.0, 0.0, 0.25), metrics=()):
    pool = Pool(10)
    pool.label([0, 1], strategy="initial")
    pool.label([4, 7, 2], strategy="Entropy", scores=scores, seconds={"score": 1.5, "select": 0.25})
    return QuerySummary(pool, dict(metrics), None if of_all is None else torch.tensor(of_all), [])


def test_a_query_is_logged_at_what_the_cycle_trained_on():
    logger = MemoryLogger()
    track_query([logger], outcome_of(metrics={"passes": 10.0, "label/3": 2.0}))
    ((step, metrics),) = logger.points
    assert step == 2
    assert metrics == {
        "al/labeled": 2,
        "al/queried": 3,
        "al/pool": 5,
        "al/passes": 10.0,
        "al/label/3": 2.0,
        "al/score_seconds": 1.5,
        "al/select_seconds": 0.25,
        **{f"al/score/pool/{name}": value for name, value in zip(QUANTILES, (0, 0.25, 0.5, 1, 2), strict=True)},
        **{f"al/score/picked/{name}": value for name, value in zip(QUANTILES, (0.5, 0.5, 1, 2, 2), strict=True)},
    }
    assert logger.saves == 1


QUANTILES = ("q05", "q25", "q50", "q75", "q95")


def test_a_query_without_scores_logs_none():
    metrics = query_metrics(outcome_of(scores=None, of_all=None))
    assert set(metrics) == {"al/queried", "al/pool", "al/score_seconds", "al/select_seconds"}


def test_every_logger_gets_the_metrics_and_none_is_fine():
    loggers = [MemoryLogger(), MemoryLogger()]
    track_query(loggers, outcome_of())
    assert loggers[0].points == loggers[1].points != []
    track_query([], outcome_of())


def test_only_the_first_process_logs(monkeypatch):
    logger = MemoryLogger()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    track_query([logger], outcome_of())
    assert logger.points == []


def test_a_logger_may_have_a_tracker_of_its_own():
    class ShowingLogger(MemoryLogger):
        """A logger that can show more than numbers."""

    queries = []

    class ShowingTracker(MetricsTracker):
        def log_query(self, summary):
            queries.append(summary)

    tracker_for.register(ShowingLogger, ShowingTracker)
    shows, plain, summary = ShowingLogger(), MemoryLogger(), outcome_of()
    track_query([shows, plain], summary)
    assert queries == [summary]
    assert shows.points == plain.points != []
    assert type(tracker_for(plain)) is MetricsTracker


def test_a_logger_that_fails_costs_one_warning_and_no_cycle(tmp_path):
    broken, sound = BrokenLogger(), MemoryLogger()
    # training logs nothing, so only what this package logs meets the broken logger
    make = maker(lambda: EntropyAcquisition(5), model=QuietClassifier, logger=[broken, sound])
    with pytest.warns(
        UserWarning, match="BrokenLogger failed .ConnectionError: no route to host.*labels are safe"
    ) as told:
        records = run_cycles(make, make_data(test_dataset=None), cycles=3, run_dir=tmp_path)
    assert sum("BrokenLogger" in str(warning.message) for warning in told) == 1
    assert [record["queried"] for record in records] == [5, 5, 5]
    assert [step for step, metrics in sound.points if "al/pool" in metrics] == [10, 15, 20]


class QuietClassifier(ToyClassifier):
    def log(self, *args, **kwargs):
        pass


def test_what_is_interrupted_by_a_person_is_not_sheltered():
    with pytest.raises(KeyboardInterrupt), warn_on_failure("It"):
        raise KeyboardInterrupt


def test_a_csv_file_is_complete_after_each_point(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=100)
    for labeled in (10, 20):
        tracker_for(logger).log_metrics({"al/x": labeled / 4}, labeled)
        rows = read_csv(tmp_path / "metrics.csv")
        assert rows[-1] == {"al/x": str(labeled / 4), "al/labeled": str(labeled), "step": str(labeled)}
    assert len(rows) == 2


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- curves of cycles


class StepClassifier(ToyClassifier):
    """Logs in each step what the trainer counts, which must begin anew in each cycle."""

    def training_step(self, batch, batch_idx):
        self.log("train/global_step", float(self.global_step), on_step=True, on_epoch=False)
        return super().training_step(batch, batch_idx)


def test_the_curves_of_cycles_follow_each_other(tmp_path):
    logger = CSVLogger(tmp_path / "log", name="", version="")
    monitored = dict.fromkeys(range(3))

    def make(cycle):
        monitored[cycle] = LearningRateMonitor()
        return maker(lambda: EntropyAcquisition(5), model=StepClassifier, logger=logger, log_every_n_steps=1)(cycle)

    run_cycles(make, make_data(), cycles=3, run_dir=tmp_path / "run")
    rows = [row for row in read_csv(tmp_path / "log" / "metrics.csv") if row.get("train/global_step")]
    # 10, 15 and 20 samples in batches of 8, twice
    assert [int(row["step"]) for row in rows] == list(range(4 + 4 + 6))
    assert [float(row["train/global_step"]) for row in rows] == [*range(4), *range(4), *range(6)]


def test_tensorboard_gets_figures_and_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    make = maker(lambda: EntropyAcquisition(5), model=StepClassifier, logger=logger, log_every_n_steps=1)
    run_cycles(make, make_data(), cycles=2, run_dir=tmp_path / "run")
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("al/cycle")] == [(10, 0.0), (15, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("al/pool")] == [(10, 105.0), (15, 100.0)]
    assert [event.step for event in events.Scalars("train/global_step")] == list(range(8))


def test_the_curves_go_on_in_a_new_process(tmp_path):
    died = run_python("-m", "tests.tracked_run", tmp_path, 2, "on_train_batch_start")
    assert died.returncode == 9, died.stderr
    finished = run_python("-m", "tests.tracked_run", tmp_path, 2)
    assert finished.returncode == 0, finished.stderr
    # the first process ended in the second cycle, which begins again at step 4
    rows = read_csv(tmp_path / "csv" / "version_1" / "metrics.csv")
    assert [int(row["step"]) for row in rows if row.get("train/global_step")] == list(range(4, 4 + 4))


def test_without_a_counter_to_set_a_warning_says_that_curves_overlap(tmp_path):
    other_version = make_trainer()
    other_version.fit_loop = SimpleNamespace(epoch_loop=object())
    with pytest.warns(UserWarning, match="counts its steps elsewhere, so the curves of cycles overlap"):
        CycleTracker(RunFolder(tmp_path), {}, {}).begin_cycle(other_version, 1)


def test_versions_and_hardware_are_noted_once_and_again_when_they_change(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(), cycles=2, run_dir=tmp_path)
    (first,) = read_notes(folder.notes_file).environments
    assert first["cycle"] == 0
    assert (first["torch"], first["device"]) == (torch.__version__.split("+")[0], "cpu")
    monkeypatch.setattr("lightning_al.tracking.cycle_tracker.environment_of", lambda trainer: {"torch": "changed"})
    run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(), cycles=3, run_dir=tmp_path)
    assert read_notes(folder.notes_file).environments == [first, {"cycle": 2, "torch": "changed"}]


# ---------------------------------------------------------------- targets


def test_a_run_says_what_its_targets_cost(tmp_path, caplog):
    make = maker(lambda: RandomAcquisition(5))
    with caplog.at_level("INFO"):
        records = run_cycles(make, make_data(), cycles=1, run_dir=tmp_path, target={"test/accuracy": 2, "test/x": 0.5})
        value = records[0]["test/accuracy"]
        run_cycles(make, make_data(), cycles=1, run_dir=tmp_path / "again", target={"test/accuracy": value})
    said = caplog.text.splitlines()
    assert f"test/accuracy does not reach 2; its last value is {value:.4g}." in said
    assert "The target of test/x names no test metric; there is test/accuracy." in said
    assert f"test/accuracy reaches {value:g} with 10 labels." in said
