import math

import pytest

from lightning_al.report.tables import (
    format_count,
    format_duration,
    format_markdown_table,
    format_mean,
    format_number,
    format_p_value,
    format_text_table,
)


def test_numbers_have_four_decimals_and_anything_else_is_as_it_was():
    assert [format_number(value) for value in (3, 0.123456, "", 1234567.0)] == ["3", "0.1235", "", "1234567.0000"]


def test_a_mean_has_its_spread_where_it_is_known():
    assert format_mean(0.5, 0.25, 1) == "0.5 ± 0.2"
    assert format_mean(0.5, math.nan, 4) == "0.5000"


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(0.0, "< 0.001"), (0.00099, "< 0.001"), (0.001, "0.001"), (0.0496, "0.050"), (1.0, "1.000"), (math.nan, "-")],
)
def test_a_p_value_is_never_printed_as_zero(p_value, text):
    assert format_p_value(p_value) == text


def test_counts_and_durations():
    assert [format_count(count, "seed") for count in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
    assert [format_count(count, "strategy", "strategies") for count in (1, 12)] == ["1 strategy", "12 strategies"]
    seconds = (0.04, 59.94, 60, 3599, 3600, 7500)
    assert [format_duration(count) for count in seconds] == [
        "0.0 s", "59.9 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip


def test_a_text_table_is_aligned_on_the_right_and_leaves_texts_that_look_like_numbers_alone():
    table = format_text_table(["cycle", "loss", "new"], [["0", "0.5000", ""], ["10", "1e5", "0007"]])
    assert table.splitlines() == ["cycle    loss   new", "    0  0.5000", "   10     1e5  0007"]
    assert format_text_table([], []) == ""


def test_a_markdown_table_has_as_many_columns_as_its_header_whatever_is_in_a_cell():
    table = format_markdown_table(["strategy", "area|loss"], [["a|b", "0.50 ± 0.10"], ["noise_stability", "0007"]])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1  # plain text is aligned, too
    assert set(lines[1]) == {"|", "-"}
    cells = [[cell.strip() for cell in line.replace("\\|", "!").strip("|").split("|")] for line in lines]
    assert cells[0] == ["strategy", "area!loss"]
    assert cells[2:] == [["a!b", "0.50 ± 0.10"], ["noise_stability", "0007"]]
