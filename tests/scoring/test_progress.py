import re
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_al import (
    BALDAcquisition,
    CheckpointEnsembleAcquisition,
    CoreSetAcquisition,
    EntropyAcquisition,
    NoiseStabilityAcquisition,
)
from lightning_al.scoring import progress
from lightning_al.scoring.progress import Bar, Progress
from lightning_al.testing import ToyClassifier
from tests.python_process import run_python
from tests.runs import make_data, make_trainer

BAR = re.compile(r"([A-Za-z, ]+Acquisition[a-z, ]*):\s+\d+%.*?(\d+)/(\d+) \[.*?<.*?sample/s(?:, (pass \d+ of \d+))?\]")


def run(*callbacks, data=None, **options):
    data = data or make_data()
    make_trainer(*callbacks, **{"enable_progress_bar": True, "max_epochs": 1, **options}).fit(ToyClassifier(), data)
    return data


@pytest.fixture
def states(monkeypatch, capsys):
    """Return what every bar showed, without the mercy on files."""
    monkeypatch.setattr(progress, "PIPE_SECONDS", 0.0)
    return lambda: [found.groups() for found in BAR.finditer(capsys.readouterr().out)]


# ---------------------------------------------------------------- how far


@pytest.fixture
def moves():
    told = []
    return SimpleNamespace(told=told, bar=Bar(100, lambda samples, said: told.append((samples, said))))


def test_each_pass_moves_the_bar_by_its_share(moves):
    for step in (1, 2, 3, 4):
        moves.bar.finish_pass(step, 4, 40)
    moves.bar.finish(40)
    moves.bar.finish(60)
    steps = [(10, f"pass {step} of 4") for step in (1, 2, 3, 4)]
    assert moves.told == [*steps, (0, ""), (60, "")]


def test_shares_that_are_no_whole_samples_add_up(moves):
    for step in range(1, 8):
        moves.bar.finish_pass(step, 7, 10)
    assert sum(samples for samples, _ in moves.told) == 10
    assert {samples for samples, _ in moves.told} == {1, 2}


def test_a_chunk_that_begins_again_neither_goes_back_nor_beyond_the_end(moves):
    for _ in range(3):  # as when memory runs out twice
        for step in range(1, 5):
            moves.bar.finish_pass(step, 5, 100)
    moves.bar.finish(100)
    assert sum(samples for samples, _ in moves.told) == 100
    assert min(samples for samples, _ in moves.told) == 0


def test_a_pass_may_be_reported_without_a_bar():
    Progress(SimpleNamespace()).report_pass(1, 2, 3)


# ---------------------------------------------------------------- on the screen


def test_no_progress_bar_prints_nothing(capsys):
    run(EntropyAcquisition(5), enable_progress_bar=False)
    assert "EntropyAcquisition" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "acquisition",
    [
        NoiseStabilityAcquisition(5, passes=3, method="finite_difference"),
        NoiseStabilityAcquisition(5, passes=3, method="jvp"),
        BALDAcquisition(5, passes=3),
    ],
    ids=["finite differences", "derivatives", "dropout"],
)
def test_the_tqdm_bar_tells_passes_samples_speed_and_time(states, acquisition):
    # one chunk holds the whole pool
    run(TQDMProgressBar(), acquisition, data=make_data(pool_batch_size=200))
    name = type(acquisition).__name__
    found = [state for state in states() if state[0] == name]
    assert (name, "0", "110", None) in found
    assert [state for state in found if state[3]] == [
        (name, "36", "110", "pass 1 of 3"),
        (name, "73", "110", "pass 2 of 3"),
        (name, "110", "110", "pass 3 of 3"),
    ]


def test_members_of_an_ensemble_are_passes(states):
    run(TQDMProgressBar(), CheckpointEnsembleAcquisition(5, epochs=2), max_epochs=2)
    assert {state[3] for state in states() if "Ensemble" in state[0]} >= {"pass 1 of 2", "pass 2 of 2"}


def test_other_parts_than_the_candidates_are_named(states):
    run(TQDMProgressBar(), CoreSetAcquisition(5))
    assert {(state[0], state[2]) for state in states() if "CoreSet" in state[0]} == {
        ("CoreSetAcquisition", "110"),
        ("CoreSetAcquisition, labeled", "10"),
    }


def test_a_disabled_tqdm_bar_shows_nothing(capsys):
    run(TQDMProgressBar(refresh_rate=0), EntropyAcquisition(5))
    assert "EntropyAcquisition" not in capsys.readouterr().out


def test_a_file_gets_a_bar_now_and_then():
    script = (
        "from tests.scoring.test_progress import *\n"
        "run(TQDMProgressBar(refresh_rate=1000), NoiseStabilityAcquisition(5, passes=200, method='finite_difference'))"
    )
    piped = run_python("-c", script)
    assert piped.returncode == 0, piped.stderr
    assert 1 <= len(BAR.findall(piped.stdout)) <= 3


# ---------------------------------------------------------------- rich


@pytest.fixture
def wide_terminal():
    yield {"force_terminal": True, "width": 200}
    import rich

    rich.reconfigure()


@pytest.mark.usefixtures("unrehearsed")
def test_the_rich_bar_joins_the_display_of_the_trainer(capsys, wide_terminal):
    # rich before 14.1 refuses a second live display, and this one is alive until the fit's teardown
    bar, displays = RichProgressBar(console_kwargs=wide_terminal), []

    class Spy(EntropyAcquisition):
        def measure_chunk(self, predictor, chunk):
            displays.append([(task.description, task.completed, task.total) for task in bar.progress.tasks])
            predictor.report_pass(1, 2, 110)
            displays.append([(task.description, task.completed, task.total) for task in bar.progress.tasks])
            return super().measure_chunk(predictor, chunk)

    data = run(bar, Spy(5), data=make_data(pool_batch_size=200))
    of_spy = [[task for task in display if "Spy" in task[0]] for display in displays]
    assert of_spy == [[("Spy", 0, 110)], [("Spy pass 1 of 2", 55, 110)]]
    assert re.search(r"Spy .*0/110", capsys.readouterr().out)
    assert not [task for task in bar.progress.tasks if "Spy" in task.description]
    assert len(data.pool.history[-1].indices) == 5


def test_a_disabled_rich_bar_shows_nothing(capsys):
    data = run(RichProgressBar(refresh_rate=0), EntropyAcquisition(5))
    assert "EntropyAcquisition" not in capsys.readouterr().out
    assert len(data.pool.history[-1].indices) == 5


def test_only_the_first_process_shows_a_bar(capsys):
    trainer = SimpleNamespace(progress_bar_callback=TQDMProgressBar(), is_global_zero=False)
    progress = Progress(trainer)
    with progress.bar(7, "Name") as advance:
        progress.report_pass(1, 2, 7)
        advance(7)
    assert capsys.readouterr().out == ""
