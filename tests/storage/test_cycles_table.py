import math

import pytest

from lightning_al.storage.cycles_table import CycleRecord, metric_names, read_cycles, write_cycles
from lightning_al.storage.schema import DamagedFileError

HEADER = "cycle,labeled,queried,test/accuracy,fit_seconds,score_seconds,select_seconds"


def record(cycle, **metrics):
    return CycleRecord(cycle, 10 + cycle, 1, fit_seconds=0.25, score_seconds=1e-7, select_seconds=0.5, metrics=metrics)


def test_records_come_back_exactly_with_their_types(tmp_path):
    records = [record(0, **{"test/a,b": 0.1 + 0.2}), record(1, **{"test/a,b": 3.0, "test/loss": math.inf})]
    write_cycles(tmp_path / "cycles.csv", records)
    stored = read_cycles(tmp_path / "cycles.csv")
    assert stored == records
    assert [type(value) for value in stored[1].to_row().values()] == [
        int,
        int,
        int,
        float,
        float,
        float,
        float,
        float,
        float,
    ]


def test_not_a_number_comes_back(tmp_path):
    write_cycles(tmp_path / "cycles.csv", [record(0, loss=math.nan)])
    assert math.isnan(read_cycles(tmp_path / "cycles.csv")[0].metrics["loss"])


def test_columns_are_counts_then_metrics_of_all_records_then_seconds(tmp_path):
    write_cycles(tmp_path / "cycles.csv", [record(0), record(1, late=2.0)])
    assert (tmp_path / "cycles.csv").read_text().splitlines() == [
        "cycle,labeled,queried,late,fit_seconds,score_seconds,select_seconds,track_seconds",
        "0,10,1,,0.25,1e-07,0.5,0.0",
        "1,11,1,2.0,0.25,1e-07,0.5,0.0",
    ]


def test_a_table_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "cycles.csv").write_text(f"{HEADER}\n0,10,1,0.5,0.25,1e-07,0.5\n")
    assert read_cycles(tmp_path / "cycles.csv") == [record(0, **{"test/accuracy": 0.5})]


def test_a_metric_counts_where_every_cycle_has_it():
    assert metric_names([record(0, a=1.0, b=2.0), record(1, b=2.0)]) == ["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n0,ten,5,0.5,1,1,1\n", r"cycles\.csv, row 1: `labeled` is 'ten', expected a whole number"),
        (f"{HEADER}\n0,10,5,0.5,1,1,1\n1,10.5,5,0.5,1,1,1\n", r"row 2: `labeled` is '10\.5'"),
        (f"{HEADER}\n0,10,5,good,1,1,1\n", r"row 1: `test/accuracy` is 'good', expected a number"),
        (f"{HEADER}\n0,10,5,0.5,1\n", r"row 1 lacks the field `score_seconds`"),
        (f"{HEADER},track_seconds\n0,10,5,0.5,1,1,1\n", r"row 1 lacks the field `track_seconds`"),
        ("cycle,labeled\n0,10\n", r"row 1 lacks the field `queried`"),
        (f"{HEADER}\n0,10,5,0.5,1,1,1,7\n", r"row 1 has more cells than the header"),
    ],
    ids=["text", "fraction", "metric", "cut off", "cut off at the end", "no column", "too many"],
)
def test_a_damaged_table_names_file_row_and_column(tmp_path, text, message):
    (tmp_path / "cycles.csv").write_text(text)
    with pytest.raises(DamagedFileError, match=message):
        read_cycles(tmp_path / "cycles.csv")
