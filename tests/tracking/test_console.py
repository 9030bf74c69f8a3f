from lightning_al.tracking.console import format_table


def test_a_table_has_aligned_columns_and_gaps():
    table = format_table([{"cycle": 0, "loss": 0.5}, {"cycle": 10, "loss": 0.25, "new": 7}])
    assert table.splitlines() == ["cycle    loss  new", "    0  0.5000", "   10  0.2500    7"]
