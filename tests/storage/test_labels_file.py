import json
import multiprocessing
import os
import shutil
import time
import warnings

import numpy as np
import pytest

from lightning_al import Labels
from lightning_al.storage.schema import DamagedFileError
from tests.cli.process_checks import wait_until

CLASSES = ["cat", "dog", "cow"]
TORN = r"labels\.jsonl, line \d+ is torn"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "labels.jsonl"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_answer_is_one_line_and_the_last_one_of_an_index_counts(path):
    labels = Labels(path, classes=CLASSES)
    labels.append(7, "dog", by="Ada", seconds=1.5)
    labels.append(np.int64(3), None)
    labels.append(7, "cow")
    assert dict(labels) == dict(Labels(path)) == {3: None, 7: "cow"}
    assert (labels.labeled, labels.set_aside, labels.classes) == ([7], [3], CLASSES)
    header, first, *_ = lines_of(path)
    assert header == {"schema_version": 1, "classes": CLASSES}
    assert first | {"at": ""} == {"index": 7, "label": "dog", "by": "Ada", "at": "", "seconds": 1.5}
    assert len(lines_of(path)) == 4  # nothing was rewritten
    labels.withdraw(7)
    assert dict(Labels(path)) == {3: None}
    assert list(Labels(path).answers) == [3]


def test_what_others_append_is_read_on_demand_and_a_replaced_file_from_its_beginning(path, tmp_path):
    ours, theirs = Labels(path, classes=CLASSES), Labels(path, classes=CLASSES)
    theirs.append(1, "cat")
    shutil.copy(path, tmp_path / "copy")
    theirs.append(2, "dog")
    assert dict(ours) == {}
    ours.read()
    assert dict(ours) == {1: "cat", 2: "dog"}
    os.replace(tmp_path / "copy", path)
    ours.read()
    assert dict(ours) == {1: "cat"}
    path.unlink()
    ours.read()
    assert dict(ours) == {}


@pytest.mark.parametrize(
    ("classes", "label", "target"),
    [
        (CLASSES, "cow", 2),
        (CLASSES, 1, 1),
        (CLASSES, ["cow", "cat"], [1, 0, 1]),
        (CLASSES, [], [0, 0, 0]),
        (None, 4, 4),
        (None, np.float64(0.5), 0.5),
        (None, {"file": "masks/7.png"}, "masks/7.png"),
    ],
)
def test_every_kind_of_label_becomes_a_target(path, classes, label, target):
    labels = Labels(path, classes, read_file=lambda file: file.relative_to(path.parent).as_posix())
    labels.append(0, label)
    assert Labels(path)[0] == labels[0]
    assert labels.target_of(0) == target


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (
            CLASSES,
            "cwo",
            r"append\(5, 'cwo'\)`: the label 'cwo' is none of the 3 classes \(cat, dog, cow\)",
        ),
        (CLASSES, 3, "the label 3 is none of the 3 classes"),
        (CLASSES, 1.5, "the label 1.5 is none of these: the name or the number of a class"),
        (CLASSES, ["cat", "cat"], "names a class twice"),
        (CLASSES, ["cat", "x"], "'x' is none of the 3 classes"),
        (None, True, "the label True is none of these"),
        (None, float("nan"), "the label nan is none of these"),
        (None, {"file": 3}, "none of these"),
    ],
)
def test_another_label_is_refused_and_not_written(path, classes, label, message):
    labels = Labels(path, classes)
    with pytest.raises(ValueError, match=message):
        labels.append(5, label)
    assert not path.exists()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "which is no target; leave out the indices in `set_aside`"),
        ({"file": "a"}, r"pass `Labels\(read_file=...\)`"),
        ("cat", r"names no classes, which 'cat' needs: expected `Labels\(classes=\[...\]\)`"),
        ([], "names no classes"),
    ],
)
def test_a_label_without_a_target_says_what_is_missing(path, label, message):
    labels = Labels(path)
    labels.append(0, label)
    with pytest.raises(ValueError, match=message):
        labels.target_of(0)


@pytest.mark.parametrize("classes", [[], ["cat", "cat"], "cat", ["cat", 3], [""]])
def test_classes_are_distinct_texts(path, classes):
    with pytest.raises(ValueError, match=r"`Labels\(classes=...\)`: expected distinct names of classes"):
        Labels(path, classes)


def test_the_order_of_the_classes_is_that_of_the_file(path):
    Labels(path, CLASSES).append(0, "cat")
    with pytest.raises(ValueError, match=r"line 1 has the classes \['cat', 'dog', 'cow'\], expected the same"):
        Labels(path, CLASSES[::-1])
    late = Labels(path.with_name("other.jsonl"))  # made before another process has written the classes
    Labels(late.path, CLASSES).append(0, "cat")
    with pytest.raises(ValueError, match="'cwo' is none of the 3 classes"):
        late.append(1, "cwo")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 is not valid JSON"),
        ("", "line 3 is not valid JSON"),
        ("[]", "line 3 holds a list"),
        ('{"label": "cat"}', "line 3 lacks the field `index`"),
        ('{"index": 1}', "line 3 lacks the field `label`"),
        ('{"index": -1, "label": "cat"}', "line 3: `index` is -1, expected a dataset index"),
        ('{"index": 1, "label": "cwo"}', "line 3: the label 'cwo' is none of the 3 classes"),
        ('{"index": 1, "label": "cat", "seconds": -1}', "line 3: `seconds` is -1.0, expected a time"),
        ('{"schema_version": 1, "classes": ["cat"]}', "line 3 lacks the field `index`"),
    ],
)
def test_other_damage_is_an_error_with_the_line(path, line, message):
    labels = Labels(path, CLASSES)
    labels.append(0, "cat")
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DamagedFileError, match=message):
        Labels(path)
    with pytest.raises(DamagedFileError, match=message):
        labels.append(1, "dog")
    assert path.read_text().endswith(f"{line}\n")


@pytest.mark.parametrize("header", ['{"schema_version": 2, "classes": ["cat"]}', '{"schema_version": 1, "classes": 3}'])
def test_a_header_of_another_kind_is_refused(path, header):
    path.parent.mkdir()
    path.write_text(f"{header}\n")
    with pytest.raises(DamagedFileError, match="line 1: "):
        Labels(path)


def test_a_line_that_is_torn_anywhere_is_dropped_with_a_warning_and_replaced(path):
    for label in ("cat", "dog"):
        Labels(path, CLASSES).append(len(label) + len(Labels(path)), label)
    complete = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(complete) if byte == ord("\n")]
    for length in {*range(1, len(complete), 7), *(end + offset for end in ends for offset in (-2, -1, 0))}:
        path.write_bytes(complete[:length])
        num_lines = sum(end <= length for end in ends)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            labels = Labels(path, CLASSES)
            labels.read()
        num_complete = num_lines + (length + 1 in ends)  # an editor may leave out the last line break
        assert list(labels) == [3, 4][: max(num_complete - 1, 0)]
        torn = length not in ends and length + 1 not in ends
        assert [f"line {num_lines + 1} is torn" in str(warning.message) for warning in caught] == [True] * torn
        labels.append(9, "cow")
        assert list(Labels(path)) == [*[3, 4][: max(num_complete - 1, 0)], 9]
        assert Labels(path).classes == CLASSES


def test_a_line_that_another_process_tears_later_is_cut_off_with_a_warning(path):
    labels = Labels(path)
    labels.append(1, 0.5)
    with path.open("a") as file:
        file.write('{"index": 2, "la')
    with pytest.warns(UserWarning, match=TORN):
        labels.append(3, 1.5)
    assert dict(Labels(path)) == {1: 0.5, 3: 1.5}


def answer_until_killed(path, indices, confirmed):
    labels = Labels(path, CLASSES)
    with open(confirmed, "ab", buffering=0) as file:
        for index in indices:
            labels.append(index, CLASSES[index % 3])
            file.write(b"%d\n" % index)


def confirmed_by(file):
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_four_writers_of_which_some_are_killed_lose_and_double_nothing(path, tmp_path):
    context = multiprocessing.get_context("fork")
    files = [tmp_path / f"confirmed-{number}" for number in range(8)]
    ranges = [range(1000 * number, 1000 * number + (40 if number % 2 else 1000)) for number in range(8)]
    writers = [
        context.Process(target=answer_until_killed, args=(path, *both)) for both in zip(ranges, files, strict=True)
    ]
    for four in (slice(0, 4), slice(4, 8)):
        for writer in writers[four]:
            writer.start()
        for number in range(four.start, four.stop):
            if number % 2 == 0:  # in the middle of its work, at whatever it does then
                wait_until(lambda number=number: len(confirmed_by(files[number])) > 10)
                time.sleep(0.003 * number)
                writers[number].kill()
        for writer in writers[four]:
            writer.join()
    stored = [line["index"] for line in lines_of(path)[1:]]
    assert len(set(stored)) == len(stored)
    for number, file in enumerate(files):
        confirmed = confirmed_by(file)
        written = [index for index in stored if index in ranges[number]]
        assert written[: len(confirmed)] == confirmed
        assert len(written) <= len(confirmed) + 1  # killed between the disk and the confirmation
        assert len(confirmed) == 40 if number % 2 else 10 < len(confirmed) < 1000
    assert all(label == CLASSES[index % 3] for index, label in Labels(path).items())
