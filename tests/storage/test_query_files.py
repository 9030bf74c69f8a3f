import pytest

from lightning_al.storage.query_files import PickRow, QueryFile, read_query, write_query
from lightning_al.storage.schema import DamagedFileError

QUERY = QueryFile("EntropyAcquisition", {"candidates": 100.0}, [0.0, 0.5, 1.0])
PICKS = [PickRow("7", "0", "0.25", "1", "2", "7.png"), PickRow("3", "1", text='a, "b"\nc')]


def test_a_query_comes_back(tmp_path):
    write_query(tmp_path, QUERY, PICKS)
    assert read_query(tmp_path) == (QUERY, PICKS)


def test_a_query_without_files_is_none(tmp_path):
    assert read_query(tmp_path / "picked") is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("query.json", "{", r"query\.json is not valid JSON"),
        ("query.json", '{"strategy": "A", "figures": {"x": "y"}}', r"query\.json: `figures\.x` is 'y', expected float"),
        ("query.json", '{"strategy": "A"}', r"query\.json lacks the field `figures`"),
        ("picked.csv", "index,score\n3,0.5\n", r"picked\.csv, row 1 lacks the field `rank`"),
    ],
)
def test_a_damaged_file_names_itself_and_the_field(tmp_path, name, text, message):
    write_query(tmp_path, QUERY, PICKS)
    (tmp_path / name).write_text(text)
    with pytest.raises(DamagedFileError, match=message):
        read_query(tmp_path)


@pytest.mark.parametrize("lost", ["query.json", "picked.csv"])
def test_one_file_without_the_other_says_nothing(tmp_path, lost):
    write_query(tmp_path, QUERY, PICKS)
    (tmp_path / lost).unlink()
    assert read_query(tmp_path) is None
