import base64

from lightning_al.report.groups import compare_groups, group_runs
from lightning_al.report.run_sections import InlineMedia, comparison_table, describe_runs, summary_cards
from tests.report.runs import readable_runs, written_query, written_run


def study(folder):
    """Random and margin over two seeds; margin is 0.1 and 0.3 above in the middle and at the end."""
    for seed in (0, 1):
        shift = 0.02 * seed
        random = (0.5 + shift, 0.6 + shift, 0.7 + shift)
        written_run(folder / f"random-seed-{seed}", random, marker={"strategy": "random", "seed": seed})
        margin = (0.5 + shift, 0.7 + 2 * shift, 0.9 + shift)
        written_run(folder / f"margin-seed-{seed}", margin, marker={"strategy": "margin", "seed": seed})
    groups = group_runs(readable_runs([folder]))
    return compare_groups(groups, "test/accuracy", None, False, [])[0], groups


def test_the_table_has_the_numbers_of_the_comparison_and_sorts_by_them(tmp_path):
    comparison, _ = study(tmp_path)
    header, rows = comparison_table(comparison)
    assert header[:4] == ["strategy", "seeds", "last test/accuracy", "area"]
    assert header[4:] == ["area minus random", "p (Holm)", "labels to 0.71", "fit s/cycle", "query s/cycle"]
    margin, random = rows
    assert [cell.text for cell in margin][:3] == ["margin", "2", "0.9100 ± 0.0141"]
    difference = comparison.differences("random")["margin"]
    assert margin[4].text == f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    assert margin[4].key == difference.mean
    assert [cell.text for cell in margin][6:] == ["20", "3.00", "1.50"]
    assert [cell.text for cell in random][4:7] == ["-", "-", "not reached"]
    assert random[6].key == float("inf")


def test_the_cards_have_the_best_metric_the_labels_saved_and_the_seconds_spent(tmp_path):
    cards = {caption: (number, note) for caption, number, note in summary_cards(*study(tmp_path))}
    assert cards["test/accuracy"] == ("0.910", "margin, 30 labels")
    assert cards["labels needed"] == ("20", "margin for 0.710, random's value at 30")
    # four runs of 9 seconds of fits and 4.5 of queries
    assert cards["spent on queries"] == ("33%", "18.0 s of 54.0 s")
    assert cards["runs"] == ("4", "2 strategies")


def test_pictures_go_to_the_first_seeds_and_stop_at_the_limit(tmp_path, monkeypatch):
    for seed in (0, 1):
        for strategy in ("a", "b"):
            folder = written_run(tmp_path / f"{strategy}-seed-{seed}", marker={"strategy": strategy, "seed": seed})
            picked = written_query(folder, 0, [{"file": "7.png"}, {"file": "gone.png"}, {"text": "words"}])
            (picked / "7.png").write_bytes(b"x" * 400)
    monkeypatch.setattr(InlineMedia.__init__, "__defaults__", (1000,))
    sections = describe_runs(group_runs(readable_runs([tmp_path])))
    assert [(section.name, section.run.seed, section.sheets[0].left_out) for section in sections] == [
        ("a", 0, 1), ("a", 1, 2), ("b", 0, 1), ("b", 1, 2),
    ]  # fmt: skip
    kept = sections[0].sheets[0].picks[0].address
    assert base64.b64decode(kept.removeprefix("data:image/png;base64,")) == b"x" * 400


def test_a_file_name_cannot_lead_out_of_the_run(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    picked = written_query(written_run(tmp_path / "run"), 0, [{"file": "../../../secret.png"}])
    assert (picked / "../../../secret.png").exists()
    (section,) = describe_runs(group_runs(readable_runs([tmp_path / "run"])))
    assert section.sheets[0].picks[0].address is None


def test_only_a_known_label_that_differs_is_a_mistake(tmp_path):
    rows = [{"predicted": "1", "label": "1"}, {"predicted": "1", "label": "2"}, {"predicted": "1"}, {"label": "2"}]
    folder = written_run(tmp_path / "run")
    written_query(folder, 0, rows)
    (section,) = describe_runs(group_runs(readable_runs([folder])))
    assert [pick.wrong for pick in section.sheets[0].picks] == [False, True, False, False]
