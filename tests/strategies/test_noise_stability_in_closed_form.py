import logging
import math
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition, functional
from lightning_al.numerics.seeding import RandomStream, make_generator
from lightning_al.perturbation.closed_form import ClosedForm
from lightning_al.scoring.progress import Bar
from lightning_al.testing import ToyClassifier
from tests.digits import digits, fit, make_data
from tests.perturbation.jacobian_twin import twin
from tests.snapshot import module_picture, random_picture
from tests.strategies import spy

pytestmark = pytest.mark.usefixtures("unrehearsed")

DOUBLE = {"precision": "64-true"}


class Spy(spy.Spy):
    """The same in the limit of infinitely many passes."""

    def __init__(self, query_size: int, **options: Any) -> None:
        super().__init__(query_size, **{"passes": "inf", **options})


@pytest.fixture(autouse=True)
def forget():
    Spy.forget()


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("written", ["inf", ".inf", "'inf'"])
def test_infinitely_many_passes_may_be_written_either_way_in_yaml(written):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(NoiseStabilityAcquisition, "acquisition")
    parsed = parser.parse_string(f"acquisition:\n  query_size: 5\n  passes: {written}\n")
    acquisition = NoiseStabilityAcquisition(**parsed.acquisition.as_dict())
    assert acquisition.passes in ("inf", math.inf)
    assert fit(acquisition, data=make_data(candidates=20)).query.scores
    # a shell takes the quotes off
    arguments = ["--acquisition.query_size=5", f"--acquisition.passes={written.strip(chr(39))}"]
    assert parser.parse_args(arguments).acquisition.passes in ("inf", math.inf)


@pytest.mark.parametrize("written", ["7", "10"])
def test_a_number_of_passes_stays_a_number(written):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(NoiseStabilityAcquisition, "acquisition")
    passes = parser.parse_args(["--acquisition.query_size=5", f"--acquisition.passes={written}"]).acquisition.passes
    assert type(passes) is int
    assert passes == int(written)


# ---------------------------------------------------------------- scores and picks


@pytest.mark.parametrize("selection", ["power", "topk"])
@pytest.mark.parametrize("options", [{"directions": "all"}, {"directions": "all", "modules": ["net.2"]}])
def test_picks_are_by_the_exact_scores(selection, options):
    run = fit(Spy(20, selection=selection, **options), data=make_data(candidates=80), **DOUBLE)
    (query,) = Spy.queries
    images = digits().tensors[0].double()[torch.tensor(query.indices)]
    noisy = ["net.2.weight", "net.2.bias"] if "modules" in options else None
    scores = twin(run.model, images, noisy=noisy)
    torch.testing.assert_close(query.pool[:, 0], scores.float(), rtol=1e-6, atol=0)
    generator = make_generator(RandomStream.SELECTION, 0, 0)
    if selection == "topk":
        rows = functional.top_k(query.pool[:, 0], 20)
    else:
        rows = functional.power(query.pool[:, 0], 20, generator=generator)
    assert run.picks == [query.indices[row] for row in rows.tolist()]


@pytest.mark.parametrize("selection", ["power", "topk"])
def test_picks_do_not_depend_on_the_size_of_the_batches(selection):
    picks = []
    for size in (128, 50, 7):
        run = fit(Spy(30, selection=selection), data=make_data(candidates=200, pool_batch_size=size), **DOUBLE)
        picks.append(run.picks)
    assert picks[0] == picks[1] == picks[2]


def test_nothing_is_reported_of_passes_that_were_not_taken(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(Spy(20), data=make_data(candidates=100))
    assert Spy.reports == [{}]
    assert "Spy: labeled 20 of 100 candidates" in caplog.text
    assert "passes" not in caplog.text


class Witness(Callback):
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen = module_picture(pl_module), random_picture()


def test_the_module_and_random_numbers_are_left_alone():
    before, after = Witness(), Witness()
    fit(before, Spy(20), after, data=make_data(candidates=100))
    assert before.seen == after.seen


def test_a_lack_of_memory_changes_no_pick(monkeypatch, caplog):
    expected, original, tried = fit(Spy(60), data=make_data(candidates=300), **DOUBLE), ClosedForm.scores, []

    def short(self: ClosedForm, batch: Any) -> Tensor:
        scores = original(self, batch)
        tried.append(len(scores))
        if len(scores) > 50:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return scores

    monkeypatch.setattr(ClosedForm, "scores", short)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        found = fit(Spy(60), data=make_data(candidates=300), **DOUBLE)
    assert "Scoring goes on with half as many samples at a time" in caplog.text
    assert max(tried) > 50 > min(tried)
    assert found.picks == expected.picks
    torch.testing.assert_close(torch.tensor(found.query.scores), torch.tensor(expected.query.scores), rtol=1e-6, atol=0)


def test_the_bar_moves_batch_by_batch(monkeypatch):
    moves = []
    original = Bar.finish_pass

    def note(self: Bar, step: int, count: int, samples: int) -> None:
        moves.append((step, count, samples))
        original(self, step, count, samples)

    monkeypatch.setattr(Bar, "finish_pass", note)
    fit(Spy(20), data=make_data(candidates=100, pool_batch_size=40), enable_progress_bar=True)
    assert moves == [(1, 1, 40), (1, 1, 40), (1, 1, 20)]


# ---------------------------------------------------------------- what has no closed form


class Detached(ToyClassifier):
    def forward(self, points: Tensor) -> Tensor:
        return self.net[4](self.net[:4](points).detach())


def toy_data() -> ActiveLearningDataModule:
    points = torch.randn(60, 3, generator=make_generator(0))
    return ActiveLearningDataModule(TensorDataset(points, torch.arange(60) % 4), initial_size=20, batch_size=10)


def test_what_cannot_be_counted_is_named_in_a_warning_and_scored_by_passes():
    def picks_of(passes: Any) -> list[int]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return fit(Spy(10, passes=passes), model=Detached(), data=toy_data()).picks

    named = r"No closed form for Detached: net\.0\.weight, net\.0\.bias, net\.1\.weight.*takes 30 passes instead"
    with pytest.warns(UserWarning, match=named):
        picks = picks_of("inf")
    assert picks == picks_of(30)
    assert [report["passes"] for report in Spy.reports] == [30, 30]
