from dataclasses import replace

import pytest
from sklearn.metrics import auc

from lightning_al.analysis.run_summary import summarize_run
from lightning_al.storage.cycles_table import SECONDS, CycleRecord, metric_names


def records_of(**curves):
    labels = [10, 20, 40]
    seconds = {"fit_seconds": 2.0, "score_seconds": 1.0, "select_seconds": 0.5}
    return [
        CycleRecord(cycle, count, 10, **seconds, metrics={name: curve[cycle] for name, curve in curves.items()})
        for cycle, count in enumerate(labels)
    ]


def test_areas_and_seconds():
    summary = summarize_run(records_of(**{"test/accuracy": [0.5, 0.6, 0.9], "test/loss": [2.0, 1.0, 0.5]}), {})
    assert summary["area/test/accuracy"] == pytest.approx(auc([10, 20, 40], [0.5, 0.6, 0.9]) / 30)
    assert summary["area/test/loss"] == pytest.approx(auc([10, 20, 40], [2, 1, 0.5]) / 30)
    assert summary["total/fit_seconds"] == 6
    assert summary["total/score_seconds"] == 3
    assert summary["total/select_seconds"] == 1.5
    assert len(summary) == 6


@pytest.mark.parametrize(
    ("curve", "target", "labels"),
    [([0.5, 0.6, 0.9], 0.75, 30), ([0.5, 0.6, 0.9], 0.5, 10), ([2.0, 1.0, 0.5], 1.5, 15), ([2.0, 1.0, 0.5], 0.5, 40)],
)
def test_labels_to_a_target_that_is_above_or_below(curve, target, labels):
    assert summarize_run(records_of(x=curve), {"x": target})["labels_to/x"] == labels


def test_a_target_that_is_not_reached_is_left_out():
    assert "labels_to/x" not in summarize_run(records_of(x=[0.5, 0.6, 0.9]), {"x": 0.95, "y": 1.0})


def test_labels_that_do_not_grow_have_no_curve_but_totals():
    records = [replace(record, labeled=10) for record in records_of(x=[1.0, 2.0, 3.0])]
    assert set(summarize_run(records, {"x": 2.0})) == {f"total/{part}" for part in SECONDS}


def test_a_metric_that_a_cycle_lacks_is_none():
    records = records_of(x=[1, 2, 3], y=[1, 2, 3])
    del records[1].metrics["y"]
    assert metric_names(records) == ["x"]
