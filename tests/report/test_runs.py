import os
import re

import pytest

from lightning_al import EntropyAcquisition, Pool
from lightning_al.report.runs import find_runs, read_media
from lightning_al.storage.run_folder import RunRefusedError
from tests.report.runs import readable_runs, real_run, written_query, written_run


def test_a_real_run_is_read_whole(tmp_path):
    folder = real_run(tmp_path / "run", lambda: EntropyAcquisition(6), seed=3)
    (run,) = readable_runs([folder])
    history = Pool.load(folder / "pool.json").history
    assert (run.strategy, run.seed, run.path) == ("EntropyAcquisition", 3, folder)
    assert [record.labeled for record in run.records] == [10, 16]
    assert [query.cycle for query in run.queries] == [0, 1]
    for query, labeling in zip(run.queries, history[1:], strict=True):
        assert [int(pick.index) for pick in query.picks] == labeling.indices
        assert query.scores == labeling.scores
        assert sum(query.classes.values()) == 6
        assert len(query.quantiles) == 21
        assert all((query.folder / pick.file).is_file() for pick in query.picks)
    assert run.environments[0]["device"] == "cpu"
    assert not run.unfinished


def test_runs_inside_a_folder_are_found_once_by_strategy_and_seed(tmp_path):
    for seed in (10, 2):
        written_run(tmp_path / f"margin-seed-{seed}", marker={"strategy": "margin", "seed": seed})
    written_run(tmp_path / "bald-seed-0", marker={"strategy": "bald", "seed": 0})
    (tmp_path / "logs").mkdir()
    runs = readable_runs([tmp_path, tmp_path / "bald-seed-0"])
    assert [(run.strategy, run.seed) for run in runs] == [("bald", 0), ("margin", 2), ("margin", 10)]


def test_names_and_seeds_come_from_what_there_is(tmp_path):
    cli = {"seed_everything": 4, "acquisition": {"class_path": "lightning_al.MarginAcquisition"}, "cycles": 5}
    (of_cli,) = readable_runs([written_run(tmp_path / "one", config=cli)])
    assert (of_cli.strategy, of_cli.seed, of_cli.planned, of_cli.unfinished) == ("MarginAcquisition", 4, 5, True)
    (interrupted,) = readable_runs([written_run(tmp_path / "power-seed-1", config=cli)])
    assert interrupted.strategy == "power"
    (bare,) = readable_runs([written_run(tmp_path / "bare")])
    assert (bare.strategy, bare.seed, bare.unfinished, bare.queries, bare.environments) == ("bare", None, False, [], [])


@pytest.mark.parametrize("lost", ["pool.json", "config.yaml", "tracking.json", "cycle-00/picked/query.json"])
def test_a_run_that_lost_a_file_is_still_shown(tmp_path, lost):
    folder = real_run(tmp_path / "run", lambda: EntropyAcquisition(6), seed=0)
    (folder / lost).unlink()
    (run,) = readable_runs([folder])
    assert [record.labeled for record in run.records] == [10, 16]
    assert [query.cycle for query in run.queries] == ([1] if "query" in lost else [0, 1])


def test_a_missing_an_empty_and_a_broken_folder_are_refused_with_the_reason(tmp_path):
    with pytest.raises(RunRefusedError, match=rf"There is no folder {re.escape(str(tmp_path / 'no'))}"):
        find_runs([tmp_path / "no"])
    with pytest.raises(RunRefusedError, match="holds no run with a finished cycle"):
        find_runs([tmp_path])
    folder = written_run(tmp_path / "run")
    (folder / "cycles.csv").write_text("this,is\n1,2\n")
    with pytest.raises(RunRefusedError, match=r"can be read: .*cycles\.csv, row 1 lacks the field `cycle`"):
        find_runs([folder])
    (folder / "config.yaml").write_text("a: [")
    written_run(tmp_path / "other").joinpath("cycles.csv").replace(folder / "cycles.csv")
    with pytest.raises(RunRefusedError, match=r"can be read: .*config\.yaml is not valid YAML"):
        find_runs([folder])


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path):
    sound, damaged = (written_run(tmp_path / name) for name in ("sound", "damaged"))
    (damaged / "cycles.csv").write_text("cycle,labeled\n0,10\n")
    written_query(sound, 0, [{}])
    (written_query(sound, 1, [{}]) / "query.json").write_text('{"strategy": "X", "figures": 7}')
    (run,), unreadable = find_runs([tmp_path])
    assert run.path == sound
    assert len(unreadable) == 1
    assert re.search(r"damaged.cycles\.csv, row 1 lacks the field `queried`", unreadable[0])
    assert [query.cycle for query in run.queries] == [0]
    assert len(run.unreadable) == 1
    assert re.search(r"cycle-01.picked.query\.json: `figures` is 7, expected dict", run.unreadable[0])


def test_media_are_regular_files_of_a_bounded_size(tmp_path):
    (tmp_path / "secret").write_bytes(b"key")
    (tmp_path / "link.png").symlink_to(tmp_path / "secret")
    (tmp_path / "plain.png").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe.png")
    assert read_media(tmp_path / "plain.png", 3) == b"abc"
    assert [read_media(tmp_path / name, 10) for name in ("link.png", "pipe.png", "missing.png")] == [None] * 3
    assert read_media(tmp_path / "plain.png", 2) is None
