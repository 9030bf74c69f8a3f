"""Many processes side by side; a few lines of Python without torch stand for `lightning-al fit`."""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from lightning_al.cli import child_processes, child_runs
from lightning_al.cli.child_runs import Run, check_settings, devices_to_share_out, run_all
from lightning_al.storage.completion import read_completions, write_completion
from lightning_al.storage.run_folder import RunRefusedError
from tests.cli.process_checks import everyone_is_gone, wait_until

# Notes when it begins and ends, and does in between what the strategy file says after `do:`.
PROGRAM = """\
import fcntl, os, subprocess, sys, time
from pathlib import Path

arguments = sys.argv[1:]
folder = Path(arguments[arguments.index("--trainer.default_root_dir") + 1])
strategy_file = [Path(value) for name, value in zip(arguments, arguments[1:]) if name == "--config"][-1]
folder.mkdir(exist_ok=True)


def note(word):
    with (folder.parent / "events").open("a") as file:
        file.write(f"{word} {folder.name}\\n")


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


note("begin")
exec(strategy_file.read_text().partition("#")[2])
note("end")
"""
MEET = "wait_for(lambda: (folder.parent / 'events').read_text().count('begin') >= 2)"
# a loader worker has the lock file open, too, and the lock is free once every process that has is gone
HANG = """\
lock = (folder.parent / 'lock').open('a'); fcntl.flock(lock, fcntl.LOCK_SH); os.set_inheritable(lock.fileno(), True); \
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], close_fds=False); note('hang'); \
time.sleep(600)"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + HANG


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a maker of runs; `do` is a line of Python, which their process runs."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "data.yaml").write_text("cycles: 2\ntrainer:\n  max_epochs: 5\n")
    monkeypatch.setattr(child_runs, "PROGRAM", (sys.executable, str(tmp_path / "program.py")))

    def make(strategy="random", seed=0, do="pass", arguments=()):
        path = tmp_path / f"{strategy}.yaml"
        path.write_text(f"acquisition: {strategy} #{do}\n")
        return Run(tmp_path / "study", strategy, seed, (tmp_path / "data.yaml",), path, arguments)

    return make


class Report:
    """Keeps what was reported, and may do something at the first report."""

    def __init__(self, action=lambda: None):
        self.calls = []
        self.action = action

    def __call__(self, run, minutes, status):
        assert minutes >= 0
        self.calls.append((f"{run.strategy} {run.seed}", status))
        self.action()


def events(run):
    return [tuple(line.split()) for line in (run.folder / "events").read_text().splitlines()]


# ------------------------------------------------------------------ a run


def test_a_run_is_a_command_that_anyone_can_type(make):
    run = make("margin", 3, arguments=("--cycles", "2"))
    files = [str(run.folder.parent / name) for name in ("data.yaml", "margin.yaml")]
    folder = str(run.folder / "margin-seed-3")
    assert run.command == [
        *("fit", "--config", files[0], "--config", files[1], "--seed_everything", "3"),
        *("--trainer.default_root_dir", folder, "--cycles", "2"),
    ]
    assert not run.finished
    assert run_all([run], 1, Report()) == []
    assert run.finished
    record = json.loads((run.path / "finished.json").read_text())
    assert (record["strategy"], record["seed"]) == ("margin", 3)
    assert record["settings"] == {
        "config": {"data.yaml": {"cycles": 2, "trainer": {"max_epochs": 5}}},
        "strategy": {"acquisition": "margin"},
        "arguments": ["--cycles", "2"],
    }
    assert shlex.split(record["command"]) == ["lightning-al", *run.command]
    assert 0 <= record["minutes"] < 5
    assert run.log.read_text() == f"$ {record['command']}\n"


def test_the_completion_record_has_the_settings_at_the_start(make):
    run = make(do="strategy_file.write_text('acquisition: edited')")
    run_all([run], 1, Report())
    assert run.strategy_file.read_text() == "acquisition: edited"
    assert json.loads((run.path / "finished.json").read_text())["settings"]["strategy"] == {"acquisition": "random"}


def test_config_files_of_the_same_name_are_both_recorded(tmp_path):
    paths = [tmp_path / folder / "data.yaml" for folder in ("a", "b")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_text(f"seed: {number}")
    run = Run(tmp_path, "random", 0, tuple(paths), paths[0])
    assert run.completion_record().settings["config"] == {str(path): {"seed": n} for n, path in enumerate(paths)}


# ------------------------------------------------------------------ many runs


def test_runs_go_side_by_side_and_no_more_than_asked_for(make):
    runs = [make("random", seed, MEET) for seed in range(4)]
    report = Report()
    assert run_all(runs, 2, report) == []
    assert sorted(report.calls) == [(f"random {seed}", 0) for seed in range(4)]
    running, most = set(), 0
    for word, name in events(runs[0]):
        (running.add if word == "begin" else running.remove)(name)
        most = max(most, len(running))
    assert most == 2


def test_one_worker_keeps_the_order_given(make):
    runs = [make("random", seed) for seed in (2, 0, 1)]
    run_all(runs, 1, Report())
    assert events(runs[0]) == [(word, f"random-seed-{seed}") for seed in (2, 0, 1) for word in ("begin", "end")]


def test_a_failed_run_stops_no_other_and_is_the_only_one_repeated(make):
    runs = [make("broken", 0, "print('no such thing', file=sys.stderr); sys.exit(3)"), make("random", 0)]
    report = Report()
    assert run_all(runs, 1, report) == runs[:1]
    assert report.calls == [("broken 0", 3), ("random 0", 0)]
    assert [run.finished for run in runs] == [False, True]
    assert runs[0].log.read_text().splitlines()[1:] == ["no such thing"]

    report = Report()
    assert run_all([make("broken", 0), runs[1]], 1, report) == []
    assert report.calls == [("broken 0", 0)]
    lines = runs[0].log.read_text().splitlines()  # the log of the first attempt is kept
    assert [line.split()[0] for line in lines] == ["$", "no", "$"]
    assert run_all(runs, 1, Report(lambda: pytest.fail("nothing was left to run"))) == []


def test_a_run_that_is_killed_has_failed(make):
    report = Report()
    run = make(do="os.kill(os.getpid(), 9)")
    assert run_all([run], 1, report) == [run]
    assert report.calls == [("random 0", -9)]
    assert not run.finished


@pytest.mark.parametrize(
    ("cores", "workers", "given", "threads"), [(8, 2, None, "4"), (4, 6, None, "1"), (8, 2, "3", "3")]
)
def test_processes_share_the_processor(make, monkeypatch, cores, workers, given, threads):
    monkeypatch.setattr(child_runs, "available_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    run = make(do="print(os.environ['OMP_NUM_THREADS'], os.environ['WANDB_SILENT'])")
    run_all([run], workers, Report())
    assert run.log.read_text().splitlines()[1] == f"{threads} true"


def test_runs_take_turns_with_the_devices_that_are_visible(make, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-a")
    runs = [make("random", seed, "note(os.environ['CUDA_VISIBLE_DEVICES'])") for seed in range(3)]
    run_all(runs, 1, Report(), devices=devices_to_share_out(runs[0]))
    assert [word for word, _ in events(runs[0])[1::3]] == ["3", "GPU-a", "3"]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [("trainer: {devices: 2}", ()), ("", ("--trainer.devices=2",)), ("trainer: {devices: auto}", ())],
)
def test_devices_that_are_set_are_left_alone(make, monkeypatch, text, arguments):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    run = make(arguments=arguments)
    run.config[0].write_text(text)
    assert devices_to_share_out(run) == []


def test_a_run_may_write_to_the_terminal(make, capfd):
    run = make(do="print('cycle 0')")
    run_all([run], 1, Report(), to_terminal=True)
    assert capfd.readouterr().out == "cycle 0\n"
    assert not run.log.exists()
    assert run.finished


# ------------------------------------------------------------------ interrupted


@pytest.fixture
def usual_signals():
    """The handlers of a process in the foreground; in the background, or under nohup, pytest ignores some."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield handlers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_process_behind(make, usual_signals, number):
    def interrupt():
        wait_until(lambda: [word for word, _ in events(runs[0])].count("hang") == 2)
        os.kill(os.getpid(), number)

    runs = [make("margin", 0, HANG), make("entropy", 0, HANG), make("random", 0)]
    with pytest.raises(KeyboardInterrupt):
        run_all(runs, 3, Report(interrupt))
    wait_until(lambda: everyone_is_gone(runs[0].folder))
    assert {number: signal.getsignal(number) for number in usual_signals} == usual_signals
    assert [run.finished for run in runs] == [False, False, True]
    assert ("end", "margin-seed-0") not in events(runs[0])


def test_a_signal_that_nohup_ignores_stays_ignored(make, usual_signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    runs = [make(seed=0), make(seed=1)]
    run_all(runs, 1, Report(lambda: os.kill(os.getpid(), signal.SIGHUP)))
    assert [run.finished for run in runs] == [True, True]


def test_a_process_that_will_not_end_is_killed(make, monkeypatch):
    def interrupt():
        wait_until(lambda: ("hang", "margin-seed-0") in events(runs[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(child_processes, "GRACE_SECONDS", 0.2)
    runs = [make("margin", 0, STUBBORN), make("random", 0)]
    with pytest.raises(KeyboardInterrupt):
        run_all(runs, 2, Report(interrupt))
    wait_until(lambda: everyone_is_gone(runs[0].folder))


def test_a_program_that_is_missing_has_failed(make, monkeypatch):
    monkeypatch.setattr(child_runs, "PROGRAM", ("no-such-program",))
    run, report = make(), Report()
    assert run_all([run], 1, report) == [run]
    assert report.calls == [("random 0", 1)]
    assert run.log.read_text().endswith("no-such-program: No such file or directory\n")


# ------------------------------------------------------------------ completion records


def finish(run):
    run.path.mkdir(parents=True, exist_ok=True)
    write_completion(run.path, run.completion_record())


def test_completion_records_are_read_by_seed_and_then_by_strategy(make):
    runs = [make(name, seed) for name, seed in (("random", 10), ("random", 9), ("margin", 9))]
    assert read_completions(runs[0].folder) == []
    for run in runs:
        finish(run)
    make("entropy", 9).path.mkdir()  # not finished
    records = read_completions(runs[0].folder)
    assert [(record.strategy, record.seed) for record in records] == [
        ("margin", 9),
        ("random", 9),
        ("random", 10),
    ]
    assert records[0] == runs[2].completion_record()


def test_strategies_and_seeds_may_differ_and_nothing_else(make):
    runs = [make("random", 0), make("margin", 1)]
    for run in runs:
        finish(run)
    records = read_completions(runs[0].folder)
    check_settings(
        records, [make("random", 2).completion_record(), make("entropy", 0).completion_record()], runs[0].folder
    )
    check_settings(records, records, runs[0].folder)
    check_settings([], [], runs[0].folder)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("cycles: 3\ntrainer:\n  max_epochs: 5\n", "config.data.yaml.cycles: 2 then, 3 now"),
        ("cycles: 2\ntrainer:\n  max_epochs: 9\n", "config.data.yaml.trainer.max_epochs: 5 then, 9 now"),
        ("cycles: 2\n", "config.data.yaml.trainer.max_epochs: 5 then, 'not set' now"),
        ("cycles: 2\ntrainer:\n  max_epochs: 5\nreset: warm\n", "config.data.yaml.reset: 'not set' then, 'warm' now"),
    ],
)
def test_another_setting_of_the_data_is_refused_by_name(make, text, change):
    run = make("random", 4)
    finish(run)
    run.config[0].write_text(text)
    with pytest.raises(RunRefusedError) as caught:
        check_settings(read_completions(run.folder), [run.completion_record()], run.folder)
    message = str(caught.value)
    assert message.startswith(f"{run.path} was finished with other settings ({change}")
    assert message.endswith(f"Choose another --folder, restore the setting, or delete {run.path} to run it anew.")


def test_another_argument_or_setting_of_the_strategy_is_refused(make):
    run = make("random", 0)
    finish(run)
    records = read_completions(run.folder)
    with pytest.raises(RunRefusedError, match=r"\(arguments: \[\] then, \['--cycles', '9'\] now\)"):
        check_settings(records, [make("random", 0, arguments=("--cycles", "9")).completion_record()], run.folder)
    make("random", 0)
    run.strategy_file.write_text("acquisition:\n  class_path: X\n")
    changed = run.completion_record()
    with pytest.raises(RunRefusedError, match=r"strategy\.acquisition: 'random' then, 'not set' now; "):
        check_settings(records, [changed], run.folder)
    # a strategy that is not asked for now may have had any
    check_settings(records, [make("margin", 0).completion_record()], run.folder)


def test_values_that_json_cannot_hold_are_still_the_same_after_a_round_trip(make):
    run = make("random", 0)
    run.config[0].write_text("1: one\nday: 2024-01-31\nempty: {}\n")
    finish(run)
    check_settings(read_completions(run.folder), [run.completion_record()], Path("study"))


# ------------------------------------------------------------------ finished

HEADER = "cycle,labeled,queried,fit_seconds,score_seconds,select_seconds"


@pytest.mark.parametrize(
    ("rows", "finished"),
    [
        (["0,10,5,1,1,1"], False),
        ([], False),
        (["0,10,5,1,1,1", "1,15,5,1,1,1"], True),
        (["0,10,0,1,1,1"], True),  # every sample is labeled
    ],
    ids=["cut off", "no cycle", "all cycles", "empty pool"],
)
def test_a_run_that_ended_well_before_its_last_cycle_is_not_finished(make, rows, finished):
    table = "\\n".join([HEADER, *rows]) + "\\n"
    write = f"(folder / 'config.yaml').write_text('cycles: 2'); (folder / 'cycles.csv').write_text('''{table}''')"
    run, report = make(do=f"{write}; (folder / 'pool.json').touch()"), Report()
    failed = run_all([run], 1, report)
    assert (report.calls, run.finished, failed) == (
        [("random 0", int(not finished))],
        finished,
        [] if finished else [run],
    )
