import math
import re
from collections import Counter, UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_al import perturb
from lightning_al.adapters import Predictor
from lightning_al.forecast import Forecast, fit_forecast
from lightning_al.functional.noise_stability import deviation_sizes, sensitivity
from lightning_al.jvp import ForwardDerivatives
from lightning_al.noise import Noise
from lightning_al.perturb import FiniteDifferences
from lightning_al.racing import (
    EVEN,
    FINISHED,
    ODD,
    SCORE,
    Cut,
    Plan,
    check_race,
    log_scores,
    outlook,
    race,
    race_features,
    ranking_rows,
)
from tests.digits import digits, one_thread, trained_net

PASSES = 8
SEEDS = [(5, step) for step in range(PASSES)]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad(), one_thread():
        yield


# torch's own, when it first loads the rules of forward-mode differentiation
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


# ---------------------------------------------------------------- the rows


@pytest.mark.parametrize("passes", [1, 2, 5, 6])
def test_ranking_rows_hold_the_mean_and_the_means_of_even_and_odd_passes(passes):
    sizes = torch.rand(7, passes, generator=torch.Generator().manual_seed(passes), dtype=torch.float64)
    rows = ranking_rows(sizes)
    assert rows.shape == (7, 4)
    for row, own in zip(rows.tolist(), sizes.tolist(), strict=True):
        even, odd = own[::2], own[1::2] or own  # a single pass is both of its halves
        assert row[SCORE] == pytest.approx(sum(own) / len(own), rel=1e-12)
        assert row[EVEN] == pytest.approx(sum(even) / len(even), rel=1e-12)
        assert row[ODD] == pytest.approx(sum(odd) / len(odd), rel=1e-12)
        assert row[FINISHED] == 1


CLEAN = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("positions", [(), (4,), (2, 3)])
def test_an_outlook_is_the_sensitivity_and_the_average_outputs_with_their_logarithms(positions):
    clean = torch.randn(5, 3, *positions, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    found = outlook(clean, "softmax")
    means = clean.flatten(2).mean(2) if positions else clean
    expected = torch.cat([sensitivity(clean, "softmax").log().unsqueeze(1), means, (means + 1e-4).log()], 1)
    assert found.shape == (5, 1 + 3 + 3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_outlook_of_several_labels_goes_by_their_sigmoids():
    clean = CLEAN.sigmoid()
    expected = torch.cat([sensitivity(clean, "sigmoid").log().unsqueeze(1), clean, (clean + 1e-4).log()], 1)
    torch.testing.assert_close(outlook(clean, "sigmoid"), expected, rtol=1e-12, atol=0)


def test_the_outlook_of_raw_outputs_has_no_logarithms_of_them():
    expected = torch.cat([torch.zeros(5, 1, dtype=torch.float64), CLEAN], 1)  # all respond alike to themselves
    torch.testing.assert_close(outlook(CLEAN, "identity"), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("classes", "kept"), [(64, 64), (65, 8), (300, 8)])
def test_of_many_classes_an_outlook_has_the_largest(classes, kept):
    raw = 3 * torch.randn(6, classes, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    clean = raw.softmax(1)
    found = outlook(clean, "softmax")
    assert found.shape == (6, 1 + 2 * kept)
    expected = [row if kept == classes else sorted(row, reverse=True)[:8] for row in clean.tolist()]
    assert found[:, 1 : 1 + kept].tolist() == expected


def test_the_outlook_of_a_sure_sample_is_finite():
    for dtype in (torch.float32, torch.float64):
        clean = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
        for output in ("softmax", "sigmoid", "identity"):
            assert outlook(clean, output).isfinite().all()


def test_features_are_the_outlook_and_the_logarithm_of_the_mean_deviation_so_far():
    outlooks = torch.tensor([[1.0, 7.0], [math.e, 8.0]])
    sizes = torch.tensor([[1.0, 3.0], [0.0, 2 * math.e]])
    assert torch.equal(race_features(outlooks, sizes[:, :0]), outlooks)
    expected = torch.tensor([[1.0, 7.0, math.log(2)], [math.e, 8.0, 1.0]])
    torch.testing.assert_close(race_features(outlooks, sizes), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_logarithm_of_no_deviation_is_finite_and_below_all_others(dtype):
    logs = log_scores(torch.tensor([0.0, 1e-30, 1.0], dtype=dtype))
    assert logs.isfinite().all()
    assert logs[0] < logs[1] < logs[2] == 0
    assert log_scores(torch.tensor([-1e-9], dtype=dtype)) == logs[0]  # what rounding may leave of a zero


def make_forecast(columns: int, seed: int = 0) -> Forecast:
    """Fit a forecast to nothing in particular."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(6, columns, generator=generator, dtype=torch.float64)
    return fit_forecast(features, torch.randn(6, generator=generator, dtype=torch.float64), torch.ones(6))


@pytest.mark.parametrize("passes", [0, 2])
def test_a_cut_foretells_from_the_passes_so_far_only(passes):
    cut = Cut(passes, make_forecast(3 if passes else 2), 0.0)
    outlooks, sizes = torch.tensor([[0.3, 1.0], [0.02, 2.0]]), torch.tensor([[1.0, 3.0, 50.0], [0.5, 0.1, math.nan]])
    found = cut.foretell(outlooks, sizes)
    assert found.dtype == torch.float32
    features = torch.cat([outlooks, torch.tensor([[2.0], [0.3]]).log()], 1) if passes else outlooks
    torch.testing.assert_close(found, cut.forecast(features))


# ---------------------------------------------------------------- the race


class Problem:
    """A trained classifier in double precision, and digits in batches of unequal size with the number of each."""

    def __init__(self, samples: int = 60, output: str = "softmax", derivatives: bool = False) -> None:
        self.ran: Counter[int] = Counter()
        self.output = output
        self.model = trained_net().double()
        images = digits().tensors[0][100 : 100 + samples].double()
        self.chunk = list(zip(images.split((25, 1, 20, 14)), torch.arange(samples).split((25, 1, 20, 14)), strict=True))
        parameters = list(self.model.parameters())
        predictor = Predictor(self.model)
        if derivatives:
            self.backend: Any = ForwardDerivatives(predictor, output, parameters, Noise())
        else:
            self.backend = FiniteDifferences(self._forward, parameters, Noise())
        self._predictor = predictor

    def _forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.ran.update(batch[1].tolist())
        return self._predictor.output(batch, self.output)

    def known(self, norm: str = "squared") -> tuple[Tensor, Tensor]:
        """Return the outlooks and the sizes of all deviations, and forget that they were computed."""
        outlooks = torch.cat([outlook(self.backend.rough(batch), self.output) for batch in self.chunk])
        sizes = deviation_sizes(self.backend, self.chunk, SEEDS, norm)
        self.ran.clear()
        return outlooks, sizes


def make_plan(outlooks: Tensor, sizes: Tensor, first: float = 0.3, second: float = 0.6) -> Plan:
    """Make a plan by which some fall out before the first pass, and some after the third."""
    outlooks, sizes = outlooks.double(), sizes.double()
    cuts = []
    for passes, quantile in ((0, first), (3, second)):
        features = race_features(outlooks, sizes[:, :passes])[::2]
        forecast = fit_forecast(features, log_scores(sizes.mean(1))[::2], torch.ones(len(features)))
        cuts.append(
            Cut(passes, forecast, float(forecast(race_features(outlooks, sizes[:, :passes])).quantile(quantile)))
        )
    return Plan(PASSES, cuts)


def foretell(forecast: Forecast, features: list[float]) -> float:
    """Sum a forecast up over its anchors."""
    total = forecast.mean
    own = [(x - c) / s for x, c, s in zip(features, forecast.center.tolist(), forecast.scale.tolist(), strict=True)]
    for anchor, coefficient in zip(forecast.anchors.tolist(), forecast.coefficients.tolist(), strict=True):
        total += coefficient * math.exp(-(math.dist(own, anchor) ** 2) / (2 * forecast.width**2))
    return total


def twin(outlooks: Tensor, sizes: Tensor, plan: Plan) -> tuple[Tensor, list[int]]:
    """Race sample by sample; return the rows, and after how many passes each sample left."""
    rows, left = [], []
    for clean, own in zip(outlooks.tolist(), sizes.tolist(), strict=True):
        own = own[: plan.passes]
        row, last = [sum(own) / len(own), sum(own[::2]) / len(own[::2]), sum(own[1::2]) / len(own[1::2]), 1.0], None
        for cut in reversed(plan.cuts):  # the earliest one that a sample fails has the last word
            known = clean + ([math.log(sum(own[: cut.passes]) / cut.passes)] if cut.passes else [])
            forecast = foretell(cut.forecast, known)
            if forecast < cut.threshold:
                row, last = [math.exp(forecast)] * 3 + [0.0], cut.passes
        rows.append(row)
        left.append(plan.passes if last is None else last)
    return torch.tensor(rows, dtype=torch.float64), left


@FORWARD_MODE
@pytest.mark.parametrize("derivatives", [False, True])
@pytest.mark.parametrize(
    ("output", "norm"), [("softmax", "squared"), ("softmax", "l2"), ("sigmoid", "squared"), ("identity", "squared")]
)
def test_who_finishes_has_the_score_of_all_passes_and_who_drops_out_a_forecast(output, norm, derivatives):
    problem = Problem(output=output, derivatives=derivatives)
    outlooks, sizes = problem.known(norm)
    plan = make_plan(outlooks, sizes)
    rows = race(problem.backend, problem.chunk, SEEDS, plan, norm, output)
    expected, left = twin(outlooks, sizes, plan)
    assert set(left) == {0, 3, PASSES}
    assert rows[:, FINISHED].tolist() == [float(passes == PASSES) for passes in left]
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=0)


@pytest.fixture
def looks_in_full(request, monkeypatch):
    """Decide whether the first look is rough, as it is on a processor that is fast in bfloat16."""
    monkeypatch.setattr(perturb, "has_fast_bfloat16", lambda device: not request.param)
    return request.param


@pytest.mark.parametrize("looks_in_full", [False, True], indirect=True)
def test_who_drops_out_never_runs_again(looks_in_full):
    problem = Problem()
    outlooks, sizes = problem.known()
    plan = make_plan(outlooks, sizes)
    rows = race(problem.backend, problem.chunk, SEEDS, plan, "squared", "softmax")
    expected, left = twin(outlooks, sizes, plan)
    # a look at all; then a clean pass, if the look was rough, and three noisy ones; then the same and the other five
    clean = 0 if looks_in_full else 1
    cost = {0: 1, 3: 1 + clean + 3, PASSES: 1 + clean + 3 + clean + 5}
    assert dict(problem.ran) == {number: cost[passes] for number, passes in enumerate(left)}
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=0)


def test_a_race_costs_fewer_passes_than_none():
    problem = Problem()
    plan = make_plan(*problem.known(), first=0.6, second=0.8)
    race(problem.backend, problem.chunk, SEEDS, plan, "squared", "softmax")
    raced = problem.ran.total()
    problem.ran.clear()
    race(problem.backend, problem.chunk, SEEDS, Plan(PASSES), "squared", "softmax")
    assert problem.ran.total() == 60 * (PASSES + 1)
    assert raced < problem.ran.total() / 2


@pytest.mark.parametrize("passes", [1, 4, PASSES])
def test_without_cuts_all_run_the_first_passes_of_the_plan_and_no_other_look_is_taken(passes):
    problem = Problem()
    _, sizes = problem.known()
    rows = race(problem.backend, problem.chunk, SEEDS, Plan(passes), "squared", "softmax")
    assert torch.equal(rows, ranking_rows(sizes[:, :passes]))
    assert set(problem.ran.values()) == {passes + 1}


@pytest.mark.parametrize("threshold", [math.inf, -math.inf])
@pytest.mark.parametrize("passes", [0, 3])
@pytest.mark.parametrize("looks_in_full", [False, True], indirect=True)
def test_all_or_none_may_drop_out(looks_in_full, threshold, passes):
    problem = Problem()
    outlooks, sizes = problem.known()
    plan = Plan(PASSES, [Cut(passes, make_forecast(outlooks.shape[1] + bool(passes)), threshold)])
    rows = race(problem.backend, problem.chunk, SEEDS, plan, "squared", "softmax")
    torch.testing.assert_close(rows, twin(outlooks, sizes, plan)[0], rtol=1e-6, atol=0)
    assert rows[:, FINISHED].unique().tolist() == [float(threshold < 0)]
    cost = {(math.inf, 0): 1, (math.inf, 3): 5, (-math.inf, 0): 10, (-math.inf, 3): 11}
    if looks_in_full:  # the look is the clean pass of every stretch
        cost = {(math.inf, 0): 1, (math.inf, 3): 4, (-math.inf, 0): 9, (-math.inf, 3): 9}
    assert set(problem.ran.values()) == {cost[threshold, passes]}


def test_a_race_in_single_precision_has_the_scores_of_all_passes():
    model, images = trained_net(), digits().tensors[0][100:400]
    backend = FiniteDifferences(Predictor(model).probabilities, list(model.parameters()), Noise())
    chunk = list(images.split(100))
    sizes = deviation_sizes(backend, chunk, SEEDS)
    outlooks = torch.cat([outlook(backend.rough(batch), "softmax") for batch in chunk])
    rows = race(backend, chunk, SEEDS, make_plan(outlooks, sizes), "squared", "softmax")
    finished = rows[:, FINISHED] == 1
    assert 50 < finished.sum() < 150
    # probabilities are near one, and two passes of another batch size may round them apart
    difference = (rows[finished, SCORE] - sizes.mean(1)[finished]).abs()
    ulp = torch.finfo(torch.float32).eps
    assert (difference <= 20 * ulp * sizes.mean(1)[finished].sqrt() + ulp**2).all()


@FORWARD_MODE
@pytest.mark.parametrize("derivatives", [False, True])
def test_the_company_of_a_batch_changes_no_bit(derivatives):
    problem = Problem(derivatives=derivatives)
    plan = make_plan(*problem.known())
    together = race(problem.backend, problem.chunk, SEEDS, plan, "squared", "softmax")
    alone = [race(problem.backend, [batch], SEEDS, plan, "squared", "softmax") for batch in problem.chunk]
    assert torch.equal(together, torch.cat(alone))


def test_the_company_of_a_sample_does_not_decide_its_fate():
    problem = Problem()
    plan = make_plan(*problem.known())
    together = race(problem.backend, problem.chunk, SEEDS, plan, "squared", "softmax")
    images, numbers = (torch.cat(parts).flip(0) for parts in zip(*problem.chunk, strict=True))
    other = list(zip(images.split(7), numbers.split(7), strict=True))
    rows = race(problem.backend, other, SEEDS, plan, "squared", "softmax").flip(0)
    assert torch.equal(rows[:, FINISHED], together[:, FINISHED])
    torch.testing.assert_close(rows, together, rtol=1e-6, atol=0)


def test_a_race_leaves_the_weights_alone():
    problem = Problem()
    before = [parameter.clone() for parameter in problem.model.parameters()]
    race(problem.backend, problem.chunk, SEEDS, make_plan(*problem.known()), "squared", "softmax")
    assert all(map(torch.equal, problem.model.parameters(), before))


def test_dense_outputs_race_by_their_averages():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Conv2d(1, 3, 3, padding=1).double()
        images = 3 * torch.randn(24, 1, 5, 4, dtype=torch.float64)
    backend = FiniteDifferences(Predictor(model).probabilities, list(model.parameters()), Noise(1e-2))
    sizes = deviation_sizes(backend, [images], SEEDS)
    assert sizes.shape == (24, PASSES)
    outlooks = outlook(backend.rough(images), "softmax")
    plan = make_plan(outlooks, sizes)
    rows = race(backend, list(images.split(10)), SEEDS, plan, "squared", "softmax")
    expected, left = twin(outlooks, sizes, plan)
    assert len(set(left)) == 3
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=0)


@dataclass
class Sample:
    image: Tensor
    name: str


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


FORMS = {
    "tensor": (lambda x: x, lambda batch: batch),
    "list": (lambda x: [x, torch.zeros(len(x))], lambda batch: batch[0]),
    "dict with a name": (lambda x: {"image": x, "name": "digits"}, lambda batch: batch["image"]),
    "nested": (lambda x: ({"views": [x, x]}, torch.zeros(len(x))), lambda batch: batch[0]["views"][1]),
    "named tuple": (lambda x: Pair(x, torch.zeros(len(x))), lambda batch: batch.image),
    "dataclass": (lambda x: Sample(x, "digits"), lambda batch: batch.image),
    "mapping of another make": (lambda x: UserDict(image=x), lambda batch: batch["image"]),
    "shared weights": (lambda x: {"image": x, "scale": torch.ones(64)}, lambda batch: batch["image"] * batch["scale"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_every_form_are_thinned_out(form):
    wrap, unwrap = FORMS[form]
    problem = Problem()
    outlooks, sizes = problem.known()
    plan = make_plan(outlooks, sizes)
    backend = FiniteDifferences(
        lambda batch: problem.model(unwrap(batch)).softmax(1), list(problem.model.parameters()), Noise()
    )
    chunk = [wrap(images) for images, _ in problem.chunk]
    check_race(backend, chunk[0])
    rows = race(backend, chunk, SEEDS, plan, "squared", "softmax")
    torch.testing.assert_close(rows, twin(outlooks, sizes, plan)[0], rtol=1e-6, atol=0)
    assert len(unwrap(chunk[0])) == 25  # the batch itself stays whole


def test_a_constant_as_long_as_the_survivors_are_many_stays_whole():
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
    seen: list[tuple[int, int]] = []

    def forward(batch: dict[str, Tensor]) -> Tensor:
        seen.append((len(batch["x"]), len(batch["scale"])))
        return model(batch["x"] * batch["scale"]).softmax(1)

    backend = FiniteDifferences(forward, list(model.parameters()), Noise())
    batch = {"x": x, "scale": scale}
    check_race(backend, batch)
    outlooks, sizes = outlook(backend.rough(batch), "softmax"), deviation_sizes(backend, [batch], SEEDS)
    plan = make_plan(outlooks, sizes, first=0.5, second=0.8)  # four of eight stay, and then two or fewer
    rows = race(backend, [batch], SEEDS, plan, "squared", "softmax")
    expected, left = twin(outlooks, sizes, plan)
    assert sum(passes > 0 for passes in left) == 4
    assert 0 < left.count(PASSES) < 4
    assert {length for _, length in seen} == {4}
    assert {count for count, _ in seen} == {8, 4, left.count(PASSES)}
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=0)


# ---------------------------------------------------------------- check_race


class Forward:
    """As much of a backend as a look at the clean outputs takes."""

    def __init__(self, forward: Any) -> None:
        self.rough = forward


POINTS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("forward", "batch"),
    [
        (lambda batch: batch, POINTS),
        (lambda batch: batch, POINTS[:1]),  # a batch of one has no part
        (lambda batch: batch["x"], {"x": POINTS, "text": ["any"] * 8}),
        # low precision rounds another batch size otherwise
        (lambda batch: batch * (1 + 0.01 * (len(batch) == 4)), POINTS),
    ],
)
def test_batches_whose_samples_go_their_own_way_may_race(forward, batch):
    check_race(Forward(forward), batch)


@pytest.mark.parametrize(
    ("forward", "batch", "found"),
    [
        (lambda batch: torch.stack(batch), list(torch.randn(8, 4)), "other outputs"),  # one tensor per sample
        (lambda batch: torch.tensor([[float(len(text))] for text in batch]), ["a", "bc", "d"], "other outputs"),
        (lambda batch: batch - batch.mean(0), POINTS, "other outputs"),
        (lambda batch: batch.flip(0), POINTS, "other outputs"),
        (lambda batch: batch + batch.new_tensor(len(batch)), POINTS, "other outputs"),
        (lambda batch: batch.reshape(8, 4), POINTS, r"RuntimeError: shape '\[8, 4\]' is invalid for input of size 16"),
        (lambda batch: [batch, None][len(batch) < 8] + 0, POINTS, "TypeError: unsupported operand"),
    ],
)
def test_batches_that_cannot_be_split_are_refused(forward, batch, found):
    message = rf"`racing=True` takes single samples out of a batch, but half of a batch gives {found}"
    with pytest.raises(ValueError, match=message) as caught:
        check_race(Forward(forward), batch)
    remedy = "Let batches be containers of tensors with one row per sample, or use racing=False."
    assert re.search(re.escape(remedy) + "$", str(caught.value))
    assert (caught.value.__cause__ is None) == (found == "other outputs")
