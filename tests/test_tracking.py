import csv
import struct
import time

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_al import EntropyAcquisition, Pool, RandomAcquisition, run_cycles
from lightning_al.tracking import log_at, log_query
from tests.runs import make_data, maker


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


def queried_pool(scores=(0.5, 2.0, 1.0)):
    pool = Pool(10)
    pool.label([0, 1], strategy="initial")
    pool.label([4, 7, 2], strategy="Entropy", scores=scores, seconds={"score": 1.5, "select": 0.25})
    return pool


def test_a_query_is_logged_at_what_the_cycle_trained_on():
    logger = MemoryLogger()
    log_query([logger], queried_pool())
    assert logger.points == [
        (
            2,
            {
                "al/queried": 3,
                "al/pool": 5,
                "al/score_seconds": 1.5,
                "al/select_seconds": 0.25,
                "al/score_max": 2.0,
                "al/score_min": 0.5,
                "al/labeled": 2,
            },
        )
    ]
    assert logger.saves == 1


def test_a_query_without_scores_logs_none():
    logger = MemoryLogger()
    log_query([logger], queried_pool(scores=None))
    ((step, metrics),) = logger.points
    assert step == 2
    assert set(metrics) == {"al/queried", "al/pool", "al/score_seconds", "al/select_seconds", "al/labeled"}


def test_every_logger_gets_the_figures_and_none_is_fine():
    loggers = [MemoryLogger(), MemoryLogger()]
    log_at(loggers, {"al/x": 1.0}, 30)
    assert [logger.points for logger in loggers] == [[(30, {"al/x": 1.0, "al/labeled": 30})]] * 2
    log_at([], {"al/x": 1.0}, 30)


def test_only_the_first_process_logs(monkeypatch):
    logger = MemoryLogger()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_at([logger], {"al/x": 1.0}, 30)
    assert logger.points == []


def test_a_csv_file_is_complete_after_each_point(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=100)
    for labeled in (10, 20):
        log_at([logger], {"al/x": labeled / 4}, labeled)
        with (tmp_path / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows[-1] == {"al/x": str(labeled / 4), "al/labeled": str(labeled), "step": str(labeled)}
    assert len(rows) == 2


def test_tensorboard_gets_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    run_cycles(maker(lambda: EntropyAcquisition(5), logger=logger), make_data(), cycles=2, run_dir=tmp_path / "run")
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("al/cycle")] == [(10, 0.0), (15, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("al/pool")] == [(10, 105.0), (15, 100.0)]


def test_wandb_gets_one_run_with_a_point_per_cycle(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    make = maker(lambda: RandomAcquisition(5), logger=logger)
    records = run_cycles(make, make_data(), cycles=3, run_dir=tmp_path / "run")
    logger.experiment.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    points, axes, ended = read_wandb(path)
    deadline = time.monotonic() + 60
    while not ended and time.monotonic() < deadline:  # a process of wandb's own writes the file
        time.sleep(0.1)
        points, axes, ended = read_wandb(path)
    tested = [point for point in points if "al/test/accuracy" in point]
    assert [point["al/labeled"] for point in tested] == ["10", "15", "20"]
    assert [float(point["al/test/accuracy"]) for point in tested] == [record["test/accuracy"] for record in records]
    assert [(point["al/labeled"], point["al/pool"]) for point in points if "al/pool" in point] == [
        ("10", "105"),
        ("15", "100"),
        ("20", "95"),
    ]
    assert axes["al/*"] == "al/labeled"


def read_wandb(path):
    """Read points, axes and whether all is there: blocks of 32 KiB with records as LevelDB logs have them."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, b""
    points, axes, ended = [], {}, False
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record.FromString(parts)
            parts = b""
            if record.HasField("history"):
                points.append({"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item})
            elif record.HasField("metric"):
                axes[record.metric.glob_name] = record.metric.step_metric
            ended = ended or record.HasField("exit")
    return points, axes, ended
