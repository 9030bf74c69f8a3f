import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from lightning_al.storage.schema import DamagedFileError, from_mapping, read_json


@dataclass
class Part:
    name: str


@dataclass
class Example:
    count: int
    share: float
    labels: list[int] | None = None
    parts: list[Part] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    anything: Any = None


def test_values_come_back_as_annotated():
    values = {"count": 3, "share": 1, "labels": [1, 2], "parts": [{"name": "a"}], "seconds": {"fit": 2}, "unknown": 0}
    assert from_mapping(Example, values, "file") == Example(3, 1.0, [1, 2], [Part("a")], {"fit": 2.0})
    assert from_mapping(Example, {"count": 3, "share": 0.5, "labels": None}, "file") == Example(3, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "3"}, r"file: `count` is '3', expected int"),
        ({"count": True}, r"file: `count` is True, expected int"),
        ({"share": None}, r"file: `share` is None, expected float"),
        ({"labels": [1, "x"]}, r"file: `labels\[1\]` is 'x', expected int"),
        ({"labels": 7}, r"file: `labels` is 7, expected list"),
        ({"parts": [{}]}, r"file, parts\[0\] lacks the field `name`"),
        ({"seconds": {"fit": "long"}}, r"file: `seconds\.fit` is 'long', expected float"),
    ],
)
def test_a_wrong_field_is_named(change, message):
    with pytest.raises(DamagedFileError, match=message):
        from_mapping(Example, {"count": 3, "share": 0.5, **change}, "file")


def test_a_missing_field_is_named():
    with pytest.raises(DamagedFileError, match="file lacks the field `share`; restore the file"):
        from_mapping(Example, {"count": 3}, "file")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3"])
def test_what_is_no_object_is_named(tmp_path, text):
    (tmp_path / "example.json").write_text(text)
    with pytest.raises(
        DamagedFileError, match=r"example\.json (is not valid JSON|holds a (list|int), expected fields)"
    ):
        read_json(Example, tmp_path / "example.json")


def test_a_file_that_is_missing_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(Example, tmp_path / "example.json")


def test_the_json_of_a_dataclass_is_read(tmp_path):
    (tmp_path / "example.json").write_text(json.dumps({"count": 1, "share": 2.5}))
    assert read_json(Example, tmp_path / "example.json") == Example(1, 2.5)
