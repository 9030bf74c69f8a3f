import csv

import pytest

from lightning_al import Labels
from lightning_al.labeling.tables import TableError, export_queue, import_labels
from lightning_al.storage.queue_file import Queue, QueuedSample
from tests.labeling.queues import CLASSES

SAMPLES = [QueuedSample(3, "a.png", "cat"), QueuedSample(5, "=cmd|'/c calc'!A0", "-dog"), QueuedSample(9)]


@pytest.fixture
def labels(tmp_path):
    return Labels(tmp_path / "labels.jsonl")


def imported(tmp_path, labels, text, kind="class", classes=CLASSES):
    table = tmp_path / "table.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return import_labels(Queue(2, kind=kind, classes=classes, samples=SAMPLES), labels, table, by="Ada")


def test_what_waits_is_exported_without_formulas_and_comes_back(tmp_path, labels):
    queue = Queue(2, classes=CLASSES, samples=SAMPLES)
    labels.append(3, "cat")
    table = tmp_path / "queue.csv"
    assert export_queue(queue, labels, table, suggest=True) == 2
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows == [
        ["index", "path", "label", "prediction"],
        ["5", "'=cmd|'/c calc'!A0", "", "'-dog"],
        ["9", "", "", ""],
    ]
    assert import_labels(queue, labels, table) == 0
    rows[1][2] = "cow"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert import_labels(queue, labels, table) == 1
    assert dict(labels) == {3: "cat", 5: "cow"}
    export_queue(queue, labels, table)
    assert table.read_text() == "index,path,label\n9,,\n"


@pytest.mark.parametrize(
    ("kind", "classes", "text", "expected"),
    [
        ("class", CLASSES, "index,label\n3,cat\n5,?\n9,\n", {3: "cat", 5: None}),
        ("class", ["?", "!"], "index,label\n3,?\n", {3: "?"}),
        ("class", CLASSES, b"\xef\xbb\xbflabel;index;seconds\r\ndog ;3;1.5\r\n", {3: "dog"}),
        ("classes", CLASSES, 'index,label\n3,"cat; cow"\n5,;\n', {3: ["cat", "cow"], 5: []}),
        ("number", [], "index,label\n3,-1.5\n5,?\n", {3: -1.5, 5: None}),
    ],
)
def test_labels_of_every_kind_are_imported_once(tmp_path, labels, kind, classes, text, expected):
    assert imported(tmp_path, labels, text, kind, classes) == len(expected)
    assert dict(labels) == expected
    assert labels.answers[3].by == "Ada"
    assert imported(tmp_path, labels, text, kind, classes) == 0


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            "index,label,seconds\n3,cat,\n5,cwo,\nx,cat,\n4,cat,\n3,dog,\n9,dog,fast\n",
            [
                r"line 3: the label 'cwo' is none of the 3 classes",
                "line 4: `index` is 'x', expected a whole number",
                "line 5: sample 4 is not in the queue of cycle 2",
                "line 6: sample 3 is there twice",
                "line 7: `seconds` is 'fast', expected a number",
            ],
        ),
        ("index,name\n3,cat\n", [r"expected the columns `index` and `label`, got \['index', 'name'\]"]),
        ("", ["expected the columns `index` and `label`, got None"]),
        (b"index,label\n3,\xff\n", ['no table in UTF-8 .*save it as "CSV UTF-8"']),
        ('index,label\n3,"cat', ["line 2: unexpected end of data"]),
    ],
)
def test_all_lines_that_are_wrong_are_named_and_nothing_is_imported(tmp_path, labels, text, messages):
    with pytest.raises(TableError) as caught:
        imported(tmp_path, labels, text)
    for message in messages:
        assert caught.match(message)
    assert not labels.path.exists()
