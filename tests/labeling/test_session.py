import math

import pytest

from lightning_al import Labels
from lightning_al.labeling import session as module
from lightning_al.labeling.session import LabelingSession, assign_keys
from lightning_al.storage.queue_file import Queue, QueuedSample
from tests.labeling.queues import CLASSES, session_of


def displayed(session, window="a", **options):
    sample = session.state(window, **options)["sample"]
    return None if sample is None else sample["index"]


def test_each_window_has_a_sample_of_its_own_and_keeps_it_when_it_is_loaded_again(tmp_path, monkeypatch):
    session = session_of(tmp_path, size=3)
    assert [displayed(session, window) for window in ("a", "b", "a", "c", "d", "b")] == [10, 11, 10, 12, 10, 11]
    session.answer(10, "cat")
    assert [displayed(session, window) for window in ("a", "b")] == [11, 11]  # better twice than never
    monkeypatch.setattr(module, "RESERVED_SECONDS", 0.0)
    assert displayed(session, "e") == 11
    session.answer(11, "dog")
    assert session.state("a")["upcoming"] == []
    session.answer(12, None)
    assert displayed(session) is None


def test_what_comes_next_is_known_ahead(tmp_path):
    session = session_of(tmp_path, size=5)
    assert session.state("a")["upcoming"] == [11, 12]


def test_a_repeated_answer_is_not_added_and_an_undone_one_is_asked_again_first(tmp_path):
    session = session_of(tmp_path)
    assert session.answer(10, "cat", by="Ada", seconds=2.0)
    assert not session.answer(10, "dog")
    assert session.labels[10] == "cat"
    assert displayed(session) == 11
    session.undo(10, "a")
    session.undo(10, "a")
    assert displayed(session) == 10
    assert session.answer(10, "dog")
    assert displayed(session) == 11
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 4  # classes, answer, undone, answer


def test_answers_of_other_processes_count(tmp_path):
    session = session_of(tmp_path)
    Labels(tmp_path / "labels.jsonl", CLASSES).append(10, "cow")
    assert displayed(session) == 11
    assert not session.answer(10, "cat")


@pytest.mark.parametrize(
    ("kind", "classes", "label", "message"),
    [
        ("class", CLASSES, ["cat"], "Sample 10: expected the name of a class or null, got"),
        ("class", CLASSES, 1, "expected the name of a class"),
        ("class", CLASSES, "cwo", "'cwo' is none of the 3 classes"),
        ("classes", CLASSES, "cat", "expected a list of names of classes"),
        ("classes", CLASSES, [1], "expected a list of names of classes"),
        ("number", [], "3", "expected a finite number"),
        ("number", [], True, "expected a finite number"),
        ("number", [], math.inf, "expected a finite number"),
    ],
)
def test_an_answer_of_another_kind_is_refused(tmp_path, kind, classes, label, message):
    session = session_of(tmp_path, kind=kind, classes=classes)
    with pytest.raises(ValueError, match=message):
        session.answer(10, label)
    with pytest.raises(ValueError, match="Sample 7 is not in the queue of cycle 0"):
        session.answer(7, None)
    assert displayed(session) == 10
    assert len(session.labels) == 0


def test_a_queue_of_classes_names_them(tmp_path):
    with pytest.raises(ValueError, match="asks for classes and names none"):
        LabelingSession(Queue(0, samples=[QueuedSample(1)]), Labels(tmp_path / "labels.jsonl"))


def test_predictions_come_only_if_asked_for_and_may_give_the_order(tmp_path):
    assert session_of(tmp_path / "a").state("a")["sample"].keys() == {"index", "title"}
    session = session_of(tmp_path / "b", suggest=True)
    sample = session.state("a")["sample"]
    assert (sample["prediction"], sample["top_classes"]) == ("dog", [["dog", 0.5], ["cat", 0.3]])
    # predicted: dog, cow, cat, dog
    assert displayed(session, "b", by_class=True) == 12
    for index in (12, 11):
        session.answer(index, "cat")
    assert displayed(session, "b", by_class=True) == 13  # the other dog is in the first window


def test_progress_and_summary(tmp_path):
    session = session_of(tmp_path)
    for index, label, seconds in ((10, "cat", 1.0), (11, "cat", 3.0), (12, None, None)):
        session.answer(index, label, seconds=seconds)
    progress = {"total": 4, "left": 1, "set_aside": 1, "per_minute": 30.0}
    assert session.state("a")["progress"] == progress
    summary = session.summary()
    assert summary["progress"] == progress
    assert summary["counts"] == [["cat", 2], ["dog", 0], ["cow", 0]]
    assert summary["minutes"] == pytest.approx(4 / 60)
    assert [(entry["index"], entry["label"]) for entry in summary["answers"]] == [(12, None), (11, "cat"), (10, "cat")]
    numbers = session_of(tmp_path / "numbers", kind="number", classes=[])
    numbers.answer(10, 2.5)
    numbers.answer(11, -1)
    assert numbers.summary()["range"] == [-1, 2.5]


@pytest.mark.parametrize(
    ("classes", "keys"),
    [
        (list("0123456789"), {digit: digit for digit in "0123456789"}),
        (["B", "cat", "b"], {"1": "cat", "2": "b", "b": "B"}),
    ],
)
def test_a_class_named_by_a_key_has_that_key(classes, keys):
    assert assign_keys(classes) == keys


def test_as_many_classes_have_keys_as_there_are_keys():
    names = [f"class {number}" for number in range(50)]
    assert sorted(assign_keys(names).values()) == sorted(names[:36])
