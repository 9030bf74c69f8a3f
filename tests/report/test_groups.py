import pytest

from lightning_al.report.groups import choose_metric, compare_groups, group_runs
from lightning_al.storage.run_folder import RunRefusedError
from tests.report.runs import readable_runs, written_run


def settings(seed, query_size=10, **options):
    acquisition = {"class_path": "lightning_al.MarginAcquisition", "init_args": {"query_size": query_size}}
    return {"seed_everything": seed, "data": {"seed": seed}, "acquisition": acquisition, **options}


def test_runs_that_differ_in_seed_and_free_settings_are_one_group(tmp_path):
    for seed in (1, 0):
        written_run(tmp_path / f"run-{seed}", config=settings(seed, trainer={"devices": seed + 1}))
    (group,) = group_runs(readable_runs([tmp_path]))
    assert group.name == "MarginAcquisition"
    assert [run.seed for run in group.runs] == [0, 1]


def test_groups_of_one_strategy_are_named_after_what_differs(tmp_path):
    for size in (10, 20):
        written_run(tmp_path / f"run-{size}", config=settings(0, size))
    groups = group_runs(readable_runs([tmp_path]))
    assert [group.name for group in groups] == [
        "MarginAcquisition (query_size=10)",
        "MarginAcquisition (query_size=20)",
    ]


def test_the_same_run_twice_is_named_after_its_folder(tmp_path):
    for name in ("here", "there"):
        written_run(tmp_path / name, config=settings(0))
    groups = group_runs(readable_runs([tmp_path]))
    assert [group.name for group in groups] == ["MarginAcquisition in here", "MarginAcquisition in there"]


def test_unfinished_runs_and_other_numbers_of_labels_are_left_out_of_means(tmp_path):
    for seed in (0, 1):
        for strategy in ("random", "margin"):
            values = (0.5, 0.6, 0.7) if strategy == "random" else (0.5, 0.7, 0.9)
            written_run(tmp_path / f"{strategy}-seed-{seed}", values, marker={"strategy": strategy, "seed": seed})
    written_run(tmp_path / "margin-seed-2", (0.1, 0.1), (10, 20), marker={"strategy": "margin", "seed": 2})
    written_run(tmp_path / "bald-seed-0", labels=(5, 10, 15), marker={"strategy": "bald", "seed": 0})
    groups = group_runs(readable_runs([tmp_path]))
    comparison, apart = compare_groups(groups, "test/accuracy", None, False, [])
    assert [group.name for group in apart] == ["bald"]
    assert [run.path.name for group in groups for run in group.incomplete] == ["margin-seed-2"]
    assert comparison.baseline == "random"
    assert comparison.curves["margin"].values.tolist() == [[0.5, 0.7, 0.9]] * 2
    assert comparison.differences("random")["margin"].mean == pytest.approx(0.1)
    with pytest.raises(RunRefusedError, match="--baseline entropy: there is bald, margin, random"):
        compare_groups(groups, "test/accuracy", "entropy", False, [])


def test_runs_of_a_comparison_belong_together_with_or_without_their_configuration(tmp_path):
    for folder in ("first", "second"):
        for seed in (0, 1):
            # kept results have no configuration, and an unfinished run has no marker
            marker = {"strategy": "margin", "seed": seed} if seed or folder == "second" else None
            config = settings(seed) if not seed else None
            written_run(tmp_path / folder / f"margin-seed-{seed}", marker=marker, config=config)
    groups = group_runs(readable_runs([tmp_path / "first", tmp_path / "second"]))
    assert [group.name for group in groups] == ["margin (first)", "margin (second)"]
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [0, 1]]


def test_the_metric_is_the_first_that_is_no_cost_and_that_all_have(tmp_path):
    runs = readable_runs([written_run(tmp_path / "one"), written_run(tmp_path / "two")])
    assert choose_metric(runs, None) == ("test/accuracy", False)
    costs = readable_runs([written_run(tmp_path / "loss", metric="test/loss")])
    assert choose_metric(costs, None) == ("test/loss", True)
    runs[0].records[0].metrics["test/loss"] = 1.0  # in one cycle only
    with pytest.raises(RunRefusedError, match="--metric test/loss: not every run has it; all have test/accuracy"):
        choose_metric(runs, "test/loss")
    with pytest.raises(RunRefusedError, match="no test metric in common"):
        choose_metric([*runs, *costs], None)
