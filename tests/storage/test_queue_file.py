import pytest

from lightning_al.storage.queue_file import Queue, QueuedSample, TopClass, latest_queue, read_queue, write_queue
from lightning_al.storage.schema import DamagedFileError

QUEUE = Queue(
    cycle=3,
    classes=["cat", "dog"],
    samples=[
        QueuedSample(7, "photos/Zoë \udcff\n.png", "dog", [TopClass("dog", 0.75), TopClass("cat", 0.25)], 1.5),
        QueuedSample(3),
    ],
)
HEAD = '{"cycle": 0}\n'


def test_a_queue_comes_back_and_the_last_one_counts(tmp_path):
    assert latest_queue(tmp_path) is None
    for cycle in (9, 100, 10):
        (tmp_path / f"cycle-{cycle:02d}" / "csv").mkdir(parents=True)
        path = write_queue(tmp_path, Queue(cycle))
        assert read_queue(path) == Queue(cycle)
    assert latest_queue(tmp_path) == tmp_path / "cycle-100" / "queue.jsonl"
    assert read_queue(write_queue(tmp_path, QUEUE)) == QUEUE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 holds a NoneType"),
        ('{"labels": "labels.jsonl"}', "line 1 lacks the field `cycle`"),
        ('{"cycle": 0, "schema_version": 2}', "line 1: `schema_version` and `kind` are 2 and 'class', expected 1"),
        ('{"cycle": 0, "kind": "mask"}', "1 and 'mask', expected 1 and one of class, classes, number"),
        (HEAD + '{"index": "7"}', "line 2: `index` is '7', expected int"),
        (HEAD + '{"index": 7, "top_classes": [{"label": "a"}]}', "line 2, top_classes.* lacks the field `probability`"),
        (HEAD + '{"index": 7}\n{"ind', "line 3 is not valid JSON"),
        (HEAD + '{"index": 7}\n{"index": 7}', r"asks about \[7\] more than once"),
    ],
)
def test_a_damaged_queue_names_the_line(tmp_path, text, message):
    path = tmp_path / "queue.jsonl"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match=message):
        read_queue(path)
