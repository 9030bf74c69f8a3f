"""The command `lightning-al compare`, with real processes on toy data."""

import csv
import fcntl
import io
import json
import os
import re
import runpy
import shutil
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightning_al import cli
from lightning_al.cli import child_processes, child_runs, compare
from tests.cli.toy import TOY
from tests.runs import picks_in

ROOT = Path(__file__).parents[2]
CONFIG = TOY.replace("lightning_al.testing.ToyClassifier", "toy_model.ToyModel")
# does in the second cycle of one run what a file of the working directory says
ACT = """\
import fcntl
import time
from pathlib import Path


def act(name):
    action, _, run = Path("action").read_text().partition(" ")
    if name != run:
        return
    if action == "fail":
        raise RuntimeError("the disk is full")
    lock = Path("lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    Path("hangs").touch()
    time.sleep(600)
"""
MODEL = """\
from pathlib import Path

from act import act
from lightning_al.testing import ToyClassifier


class ToyModel(ToyClassifier):
    def on_train_start(self):
        folder = Path(self.trainer.default_root_dir)
        if folder.name == "cycle-01":
            act(folder.parent.name)
"""
# takes the arguments of `lightning-al fit` and leaves its files, without the ten seconds that importing torch takes
FIT = """\
import json
import random
import sys
from pathlib import Path

from act import act

options = dict(zip(sys.argv[2::2], sys.argv[3::2]))  # of several --config, the strategy is the last
folder, seed = Path(options["--trainer.default_root_dir"]), options["--seed_everything"]
strategy = Path(options["--config"]).stem
order = random.Random(seed).sample(range(120), 120)
picks = random.Random(seed + strategy).sample(order[10:], 12)
history = [{"cycle": 0, "strategy": "initial", "indices": order[:10], "scores": None, "seconds": {}}]
rows = ["cycle,labeled,queried,test/accuracy,fit_seconds,score_seconds,select_seconds"]
table = folder / "cycles.csv"
if table.exists():
    rows = table.read_text().splitlines()
    print(f"Continuing the run in {folder}")
folder.mkdir(parents=True, exist_ok=True)
for cycle in range(2):
    indices = picks[6 * cycle : 6 * cycle + 6]
    history.append({"cycle": cycle + 1, "strategy": strategy, "indices": indices, "scores": None, "seconds": {}})
    if len(rows) == cycle + 1:
        if cycle:
            act(folder.name)
        accuracy = random.Random(seed + strategy * cycle).random()
        rows.append(f"{cycle},{10 + 6 * cycle},6,{accuracy},{random.random()},0.1,0.1")
    table.write_text("\\n".join(rows) + "\\n")
    pool = {"schema_version": 1, "size": 120, "fingerprint": "", "history": history}
    (folder / "pool.json").write_text(json.dumps(pool))
"""


@dataclass
class Call:
    """A call of the command in this process: its exit status and what it printed."""

    status: int
    output: str
    errors: str
    files: dict


def call(*arguments):
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        status = compare.main(list(map(str, arguments)))
    return Call(status, output.getvalue(), errors.getvalue(), files_of_runs(Path("study")))


def files_of_runs(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.glob("*-seed-*/**/*")}


def write_toy(folder):
    (folder / "toy.yaml").write_text(CONFIG)
    for name, text in (("act", ACT), ("toy_model", MODEL), ("fit", FIT)):
        (folder / f"{name}.py").write_text(text)
    (folder / "action").write_text("")
    (folder / "random.yaml").write_text("acquisition: RandomAcquisition\n")


def interrupt_when_it_hangs():
    """Press Ctrl-C, so to speak; without the hanging run nothing happens, and the test sees that."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if Path("hangs").exists():
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.02)


@dataclass
class Story:
    """What happened in `folder` to a comparison that was interrupted, then continued, then had a failing run."""

    folder: Path
    interrupted: Call
    failed: Call
    first_table: str


COMMAND = ["--config", "toy.yaml", "--strategies", "entropy", "random", "--folder", "study"]


@pytest.fixture(scope="module", params=["without torch", pytest.param("as it is", marks=pytest.mark.sweep)])
def story(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    write_toy(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if request.param == "without torch":
            patch.setattr(child_runs, "PROGRAM", (sys.executable, "fit.py"))
        patch.setattr(child_processes, "GRACE_SECONDS", 1.0)
        Path("action").write_text("hang entropy-seed-0")
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if pytest is in the background
        try:
            thread = threading.Thread(target=interrupt_when_it_hangs)
            thread.start()
            interrupted = call(*COMMAND, "--seeds", 1, "--workers", 1)
            thread.join()
        finally:
            signal.signal(signal.SIGINT, before)
        table = Path("study/entropy-seed-0/cycles.csv").read_text()

        Path("action").write_text("fail entropy-seed-1")
        failed = call(*COMMAND, "--seeds", 2, "--workers", 2)
    return Story(folder, interrupted, failed, table)


@pytest.fixture
def study(story, monkeypatch):
    """Work beside the comparison, in which nothing may be run any more."""
    monkeypatch.chdir(story.folder)
    monkeypatch.setattr(child_runs, "PROGRAM", ("no-such-program",))
    return story.folder / "study"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Work in a folder with configurations and no run; nothing may be run."""
    write_toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child_runs, "PROGRAM", ("no-such-program",))
    return tmp_path


def rows_of(folder):
    with (folder / "cycles.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ interrupted, continued, failed


def test_ctrl_c_leaves_no_process_and_says_how_to_go_on(story):
    assert story.interrupted.status == 130
    assert story.interrupted.errors == "Interrupted; the same command continues.\n"
    assert story.interrupted.output == "2 runs in study, 0 of them finished.\n"
    with (story.folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the run that held it is gone


def test_the_same_command_continues_a_killed_run(story):
    log = (story.folder / "study" / "entropy-seed-0.log").read_text()
    assert log.count("$ lightning-al fit ") == 2
    assert "Continuing the run in" in log.rpartition("$ lightning-al fit ")[2]
    table = (story.folder / "study" / "entropy-seed-0" / "cycles.csv").read_text()
    assert len(story.first_table.splitlines()) == 2
    assert table.startswith(story.first_table)  # with its seconds, so the cycle was not trained again
    assert len(table.splitlines()) == 3


def test_a_failing_run_shows_the_end_of_its_log_and_stops_no_other(story):
    assert story.failed.status == 1
    assert story.failed.errors == "\n1 of 4 runs failed:\n  entropy seed 1: study/entropy-seed-1.log\n"
    lines = story.failed.output.split("\n\n# test/accuracy")[0].splitlines()
    assert lines[0] == "4 runs in study, 0 of them finished."
    told = {line.split("] ")[1].split(":")[0][:14]: line for line in lines if re.match(r"\[[1-4]/4\] ", line)}
    assert re.fullmatch(
        r"\[\d/4\] entropy seed 1 failed with status 1 after \d+\.\d min; study/entropy-seed-1\.log ends:",
        told.pop("entropy seed 1"),
    )
    for name in ("entropy seed 0", "random seed 0", "random seed 1"):
        done = told.pop(name)
        assert re.fullmatch(rf"\[\d/4\] {name}: test/accuracy 0\.\d{{4}} with 16 labels, \d+\.\d min", done)
    assert told == {}
    assert "RuntimeError: the disk is full" in lines
    assert 0 < len(lines) - 5 <= compare.LOG_LINES
    assert "Finished seeds per strategy: entropy 1, random 2." in story.failed.output


def test_a_comparison_that_is_complete_starts_nothing(study, story):
    again = call(*COMMAND, "--seeds", 1)
    assert again.status == 0
    assert again.output.startswith("2 runs in study, 2 of them finished.\n\n# test/accuracy of 2 strategies")
    assert "Seeds: 0, the same for every strategy." in again.output
    assert again.files == story.failed.files


def test_a_seed_gives_every_strategy_the_same_beginning(study):
    beginnings = []
    for seed in (0, 1):
        entropy, random = (study / f"{name}-seed-{seed}" for name in ("entropy", "random"))
        assert picks_in(entropy)[0] == picks_in(random)[0]
        assert rows_of(entropy)[0]["test/accuracy"] == rows_of(random)[0]["test/accuracy"]
        assert picks_in(entropy)[1] != picks_in(random)[1]
        beginnings.append(picks_in(entropy)[0])
    assert beginnings[0] != beginnings[1]


# ------------------------------------------------------------------ the report


def test_the_report_is_printed_and_kept_with_its_numbers_and_figure(study, story):
    done = call("--report-only", "--folder", "study", "--against", "entropy")
    assert done.status == 0
    text = (study / "comparison.md").read_text()
    assert text in done.output
    assert "paired differences over the 1 that all have (0)." in text
    assert text.index("## Area minus that of random") < text.index("## Area minus that of entropy")
    numbers = json.loads((study / "comparison.json").read_text())
    assert numbers["labels"] == [10, 16]
    for name, seeds in (("entropy", [0]), ("random", [0, 1])):
        values = [[float(row["test/accuracy"]) for row in rows_of(study / f"{name}-seed-{seed}")] for seed in seeds]
        assert numbers["strategies"][name]["values"] == values
    assert (study / "learning_curves.png").stat().st_size > 10_000
    assert done.output.endswith(f"The learning curves are in {Path('study', 'learning_curves.png')}.\n")
    assert done.files == story.failed.files


def test_the_report_takes_some_strategies_some_seeds_and_targets(study):
    options = ["--report-only", "--no-run", "--folder", "study", "--strategies", "random", "--seed-list", 1]
    done = call(*options, "--target", 0.1, 2, "--lower-is-better")
    assert done.status == 0
    assert "# test/accuracy of 1 strategy\n\nSeeds: 1, the same" in done.output
    row = rows_of(study / "random-seed-1")[0]
    assert re.search(rf"\| random +\| {float(row['test/accuracy']):.3f} +\|", done.output)
    assert "(lower is better)" in done.output
    assert "| test/accuracy 0.1" in done.output
    assert "≤ 10" in done.output


def test_a_strategy_without_a_finished_run_is_named(study):
    done = call("--report-only", "--folder", "study", "--strategies", "random", "margin")
    assert done.status == 0
    assert "\nNo finished run: margin.\n" in done.output
    assert (study / "comparison.md").read_text().endswith("\nNo finished run: margin.\n")


def test_a_report_of_nothing_or_of_a_missing_metric_is_refused(study, tmp_path):
    empty = call("--report-only", "--folder", tmp_path)
    assert (empty.status, empty.output) == (1, "")
    assert empty.errors.startswith(f"lightning-al compare: There is no finished run in {tmp_path}; leave out")
    missing = call("--report-only", "--folder", "study", "--metric", "val/f1")
    assert missing.status == 1
    assert "has no `val/f1` in every row; it has test/accuracy." in missing.errors


def test_a_report_over_runs_of_two_settings_is_refused(study, tmp_path):
    shutil.copytree(study, tmp_path / "mixed")
    path = tmp_path / "mixed" / "random-seed-1" / "finished.json"
    record = json.loads(path.read_text())
    record["settings"]["config"]["toy.yaml"]["trainer"]["max_epochs"] = 5
    path.write_text(json.dumps(record))
    refused = call("--report-only", "--folder", tmp_path / "mixed")
    assert refused.status == 1
    assert "random-seed-1 was finished with other settings" in refused.errors
    assert "toy.yaml.trainer.max_epochs: 5 then, 1 now" in refused.errors
    assert call("--report-only", "--folder", tmp_path / "mixed", "--seed-list", 0).status == 0


# ------------------------------------------------------------------ refused before anything runs


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        (["--", "--trainer.max_epochs", "3"], "arguments: [] then, ['--trainer.max_epochs', '3'] now"),
        (["--config", "other.yaml"], "config.other.yaml.cycles: 'not set' then, 5 now"),
    ],
)
def test_another_setting_is_refused_by_name(study, story, arguments, change):
    Path("other.yaml").write_text("cycles: 5\n")
    if arguments[0] == "--config":
        arguments = ["--config", "toy.yaml", *arguments[1:]]
    refused = call(*COMMAND, "--seeds", 3, *arguments)
    assert refused.status == 1
    assert f"{Path('study', 'entropy-seed-0')} was finished with other settings ({change}" in refused.errors
    assert refused.files == story.failed.files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config and --strategies are required"),
        (["--config", "toy.yaml"], "--config and --strategies are required"),
        (["--config", "no.yaml", "--strategies", "random"], "--config no.yaml: there is no such file"),
        ([*COMMAND, "--strategies", "rendom"], "--strategies rendom: there is no preset `rendom`, and no such file"),
        ([*COMMAND, "--strategies", "rendom.yaml"], "--strategies rendom.yaml: there is no such file"),
        ([*COMMAND, "--strategies", "random", "random.yaml"], "have the same name; rename one"),
        ([*COMMAND, "--seeds", "0"], "expected one or more different seeds, none below 0, got []"),
        ([*COMMAND, "--seed-list", "1", "1"], "none below 0, got [1, 1]"),
        ([*COMMAND, "--seed-list", "-1"], "got [-1]"),
        ([*COMMAND, "--seeds", "2", "--seed-list", "1"], "not allowed with"),
        ([*COMMAND, "--workers", "0"], "--workers 0: expected at least 1"),
        ([*COMMAND, "--baseline", "margin"], "--baseline or --against margin: it is not among --strategies; add it"),
        ([*COMMAND, "--against", "margin"], "--baseline or --against margin: it is not among --strategies; add it"),
        (
            [*COMMAND, "--", "--seed_everything=4"],
            "--seed_everything=4 after --: a comparison sets",
        ),
        ([*COMMAND, "--", "--trainer.default_root_dir", "x"], "--trainer.default_root_dir after --: a comparison sets"),
        ([*COMMAND, "--", "--overwrite", "true"], "--overwrite after --: a comparison sets seeds and folders itself"),
        ([*COMMAND, "--trainer.max_epochs", "5"], "unrecognized arguments: --trainer.max_epochs 5"),
        ([*COMMAND, "--repor"], "unrecognized arguments: --repor"),
        ([*COMMAND, "--grid", "acquisition.passes"], "--grid acquisition.passes: expected SETTING=VALUE,VALUE,..."),
        ([*COMMAND, "--grid", "a.b=[1"], "--grid a.b=[1: the values are not YAML"),
        ([*COMMAND, "--grid", "a.b=1,1"], "--grid a.b=1,1: two values have the same name"),
        ([*COMMAND, "--grid", "a.b=1", "a.b=2"], "expected each setting once, got a.b again in b=2"),
        ([*COMMAND, "--grid", "no.yaml"], "--grid no.yaml: there is no such file"),
        ([*COMMAND, "--grid", "toy.yaml"], "--grid toy.yaml: expected names of variants, each with settings"),
    ],
)
def test_what_would_go_wrong_is_refused(toy, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        compare.main(arguments)
    assert message in capsys.readouterr().err
    assert not Path("study").exists()


@pytest.mark.parametrize("package", ["scipy", "matplotlib"])
def test_a_missing_package_is_told_before_the_first_run(toy, capsys, monkeypatch, package):
    monkeypatch.setattr(compare, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(SystemExit, match="2"):
        compare.main(COMMAND)
    assert f'{package} is not installed: pip install "lightning_al[report]"' in capsys.readouterr().err


# ------------------------------------------------------------------ arguments


def test_runs_are_planned_seed_by_seed_with_the_arguments_given(toy):
    (toy / "mine.yml").write_text("acquisition: MyAcquisition\n")
    options = compare.parse(
        [*COMMAND, "--strategies", "random", "mine.yml", "--seed-list", "7", "3", "--", "--cycles=9"]
    )
    runs = compare.plan(options)
    assert [(run.seed, run.strategy) for run in runs] == [(7, "random"), (7, "mine"), (3, "random"), (3, "mine")]
    assert [run.strategy_file for run in runs[:2]] == [ROOT / "configs/strategies/random.yaml", Path("mine.yml")]
    assert {run.arguments for run in runs} == {("--cycles=9",)}
    assert {run.config for run in runs} == {(Path("toy.yaml"),)}
    assert {run.folder for run in runs} == {Path("study")}


GRIDS = [
    # one strategy beside the baseline: the setting is the name; the baseline has no such argument
    (["acquisition.passes=1,inf"], ["random", "passes=1", "passes=inf"]),
    (["acquisition.passes=1,inf", "--baseline", "entropy"], ["entropy", "passes=1", "passes=inf"]),
    (["trainer.max_epochs=1,2"], ["random,max_epochs=1", "random,max_epochs=2", "max_epochs=1", "max_epochs=2"]),
    (
        ["acquisition.query_size=3", "acquisition.x=[a],[b]"],
        ["random,query_size=3", "query_size=3,x=a", "query_size=3,x=b"],
    ),
    (["variants.yaml"], ["random", "no-noise", "much"]),
]


@pytest.mark.parametrize(("grid", "names"), GRIDS)
def test_a_grid_makes_variants_that_are_named_by_what_differs(toy, grid, names):
    (toy / "variants.yaml").write_text(
        "no noise: {acquisition.scale: 0}\nmuch: {acquisition.scale: 1, trainer.x: null}\n"
    )
    options = compare.parse([*COMMAND, "--seeds", "1", "--grid", *grid])
    assert set(names) <= set(options.strategies)


def test_a_variant_is_a_run_of_its_own_with_its_settings(toy):
    (entropy, *_), first = (
        compare.plan(compare.parse([*COMMAND, "--grid", f"acquisition.x={x}"])) for x in ("[1e-3]", 2)
    )
    assert (entropy.path, entropy.command[-1]) == (Path("study/x=1e-3-seed-0"), '--acquisition.x=["1e-3"]')
    assert entropy.completion_record().settings["strategy"]["acquisition.x"] == '["1e-3"]'
    assert first[1].command[-1].startswith("study")  # the baseline


def test_variants_of_the_query_size_are_compared_apart(study, tmp_path):
    shutil.copytree(study, tmp_path / "sizes")
    for name in ("entropy", "random"):
        path = tmp_path / "sizes" / f"{name}-seed-0"
        variant = tmp_path / "sizes" / f"{name},query_size=9-seed-0"
        shutil.copytree(path, variant)
        (variant / "cycles.csv").write_text((path / "cycles.csv").read_text().replace("1,16,6", "1,19,9"))
        record = (path / "finished.json").read_text()
        (variant / "finished.json").write_text(record.replace(f'"{name}"', f'"{name},query_size=9"', 1))
    done = call("--report-only", "--folder", tmp_path / "sizes")
    assert done.status == 0
    assert "## Area minus that of random\n" in done.output
    assert "## Area minus that of random,query_size=9\n" in done.output
    numbers = [json.loads((tmp_path / "sizes" / f"comparison-{number}.json").read_text()) for number in (1, 2)]
    assert sorted(part["labels"] for part in numbers) == [[10, 16], [10, 19]]


def test_three_seeds_are_the_default_and_one_strategy_needs_no_baseline(toy):
    assert compare.parse(COMMAND).seeds == [0, 1, 2]
    assert compare.parse([*COMMAND, "--strategies", "margin"]).baseline == "random"
    assert compare.parse(["--report-only"]).seeds is None  # whatever there is


def test_the_command_line_and_the_script_lead_here(study, capsys, monkeypatch):
    arguments = ["--report-only", "--folder", "study", "--strategies", "random"]
    outputs = []
    for program in (cli.main, lambda: runpy.run_path(str(ROOT / "examples" / "compare.py"), run_name="__main__")):
        words = ["compare", *arguments] if program is cli.main else arguments
        monkeypatch.setattr(sys, "argv", ["lightning-al", *words])
        with pytest.raises(SystemExit) as ended:
            program()
        assert ended.value.code == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "# test/accuracy of 1 strategy" in outputs[0]


def test_the_help_tells_what_is_compared(capsys):
    with pytest.raises(SystemExit, match="0"):
        compare.main(["--help"])
    text = capsys.readouterr().out
    assert (
        "lightning-al compare --config configs/digits.yaml --strategies random margin -- --trainer.max_epochs 5" in text
    )
    assert "(default: 3)" in text
