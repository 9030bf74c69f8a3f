import copy
import csv
import logging
import re
from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import Dataset

from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition, Query, perturb, run_cycles
from lightning_al.perturb import FiniteDifferences
from lightning_al.pilot import draw_up, overlap
from lightning_al.racing import EVEN, FINISHED, ODD, SCORE, outlook
from lightning_al.seeding import Stream
from lightning_al.survey import draw_pilot
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.digits import LABELED, DigitsClassifier, digits, fit, make_data
from tests.noise_stability_twin import twin

DOUBLE = {"precision": "64-true"}


class Spy(NoiseStabilityAcquisition):
    """Shows what it selected from, what it reported and by what plan."""

    queries: ClassVar[list[Query]] = []
    reports: ClassVar[list[dict[str, float]]] = []
    plans: ClassVar[list[Any]] = []

    def figures(self, query: Query) -> dict[str, float]:
        figures = super().figures(query)
        self.queries.append(query)
        self.reports.append(figures)
        self.plans.append(self._plan)
        return figures


@pytest.fixture(autouse=True)
def forget():
    for notes in (Spy.queries, Spy.reports, Spy.plans):
        notes.clear()


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("selection", ["k-center", "kmeans++", "power"])
@pytest.mark.parametrize("options", [{"racing": True}, {"passes": "auto"}, {"passes": "auto", "racing": True}])
def test_selections_that_look_at_all_scores_save_no_pass(selection, options):
    message = (
        rf"`NoiseStabilityAcquisition\(selection='{re.escape(selection)}'\)` looks at every score or deviation, so no "
        r'pass can be saved: use a number of `passes` and racing=False, or selection="topk"\.$'
    )
    with pytest.raises(ValueError, match=message):
        NoiseStabilityAcquisition(5, selection=selection, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_passes": 2},
            r"\(max_passes=2, stability=0.8\)`: expected at least 3 passes, whose halves can be compared",
        ),
        ({"stability": 0.0}, r"\(max_passes=30, stability=0.0\)`: .* and a share in \(0, 1\]"),
        ({"stability": 1.01}, r"stability=1.01\)`: expected"),
        ({"stability": -0.5}, r"stability=-0.5\)`: expected"),
        ({"stability": float("nan")}, r"stability=nan\)`: expected"),
        ({"passes": "auto", "max_passes": 0}, "`passes=0`: noise stability needs at least one pass"),
        ({"passes": "auto", "max_passes": 7.5}, "`passes=7.5`: noise stability needs at least one pass"),
        ({"passes": "many"}, "`passes=many`: noise stability needs at least one pass"),
    ],
)
def test_impossible_savings_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseStabilityAcquisition(5, **options)


@pytest.mark.parametrize("options", [{"stability": 1.0}, {"max_passes": 3}, {"passes": 1, "racing": True}])
def test_the_ends_of_the_ranges_are_allowed(options):
    acquisition = NoiseStabilityAcquisition(5, **options)
    assert all(getattr(acquisition, name) == value for name, value in options.items())


# ---------------------------------------------------------------- racing


@pytest.mark.parametrize("query_size", [20, 80, 200])
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_racing_picks_what_all_passes_would_have_picked(query_size, precision):
    whole = fit(Spy(query_size, passes=8), data=make_data(candidates=None), precision=precision)
    raced = fit(Spy(query_size, passes=8, racing=True), data=make_data(candidates=None), precision=precision)
    assert raced.picks == whole.picks
    assert raced.samples < 0.55 * whole.samples
    every, rows = (query.pool for query in Spy.queries)
    finished = rows[:, FINISHED] == 1
    assert every[:, FINISHED].all()
    assert 0.1 < finished.float().mean() < 0.45
    tolerance = {"rtol": 1e-5, "atol": 0.0} if precision == "64-true" else {"rtol": 2e-2, "atol": 1e-9}
    torch.testing.assert_close(rows[finished], every[finished], **tolerance)
    # a sample that dropped out has its forecast for all that is known, and was never among the best
    dropped = rows[~finished]
    assert (dropped[:, SCORE] == dropped[:, EVEN]).all()
    assert (dropped[:, SCORE] == dropped[:, ODD]).all()
    assert (dropped[:, SCORE] > 0).all()
    border = every[:, SCORE].sort(descending=True).values[query_size - 1]
    assert every[~finished, SCORE].max() < border
    assert dropped[:, SCORE].max() < border
    assert Spy.reports[0]["racing"] == 1
    assert Spy.reports[1]["racing"] == pytest.approx(float(finished.float().mean()))


@pytest.mark.parametrize("query_size", [20, 80])
def test_racing_in_a_small_pool_loses_at_most_one_pick_in_a_hundred(query_size):
    lost, spent = 0, 0.0
    for seed in range(5):
        whole = fit(Spy(query_size, passes=8, seed=seed), **DOUBLE)
        raced = fit(Spy(query_size, passes=8, seed=seed, racing=True), **DOUBLE)
        lost += len(set(whole.picks) - set(raced.picks))
        spent += raced.samples / whole.samples / 5
    assert lost <= 0.01 * 5 * query_size
    assert spent < 0.6


def test_the_pilot_is_measured_with_all_passes_and_the_others_as_it_shows():
    run = fit(Spy(80, passes=6, racing=True), **DOUBLE)
    (query,), (plan,) = Spy.queries, Spy.plans
    # naively, from the scores of all passes
    images = digits().tensors[0].double()[torch.tensor(query.indices)]
    seeds = [(Stream.NOISE, 0, 0, step) for step in range(6)]
    sizes = torch.stack([twin(run.model, [images], seeds=[seed]) for seed in seeds], 1)
    with torch.no_grad():
        outlooks = outlook(run.model.double()(images).softmax(1), "softmax")
    pilot = torch.isin(torch.tensor(query.indices), torch.tensor(draw_pilot(query.indices, 100, 0, 0)))
    assert int(pilot.sum()) == 100  # an eighth of the candidates
    measured = torch.cat([sizes, outlooks], 1)[pilot].float()
    looks_in_full = not perturb.has_fast_bfloat16(torch.device("cpu"))
    expected, rows = draw_up(measured, 6, 0.1, racing=True, stability=None, looks_in_full=looks_in_full)
    assert plan.passes == 6
    assert plan.cuts
    assert [cut.passes for cut in plan.cuts] == [cut.passes for cut in expected.cuts]
    for cut, other in zip(plan.cuts, expected.cuts, strict=True):
        assert cut.threshold == pytest.approx(other.threshold, rel=1e-3)
        torch.testing.assert_close(cut.foretell(outlooks, sizes), other.foretell(outlooks, sizes), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(query.pool[pilot], rows, rtol=1e-4, atol=0)
    staying = torch.ones(800, dtype=torch.bool)
    for cut in plan.cuts:
        staying &= cut.foretell(outlooks, sizes) >= cut.threshold
    assert query.pool[:, FINISHED].bool().tolist() == (pilot | staying).tolist()
    finished = sizes[pilot | staying].mean(1).float()
    torch.testing.assert_close(query.pool[pilot | staying, SCORE], finished, rtol=1e-4, atol=0)


class NumberedDigits(Dataset[tuple[Tensor, int]]):
    """Digits whose last entry is their dataset index; notes every read."""

    def __init__(self) -> None:
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(digits())

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads[index] += 1
        image, label = digits()[index]
        return torch.cat([image, torch.tensor([float(index)])]), int(label)


class Numbered(DigitsClassifier):
    ran: ClassVar[Counter[int]] = Counter()

    def forward(self, images: Tensor) -> Tensor:
        self.ran.update(images[:, 64].long().tolist())
        return super().forward(images[:, :64])


class Reset(Callback):
    """Forgets what training read and ran."""

    def __init__(self, *counters: Counter[int]) -> None:
        self.counters = counters

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for counter in self.counters:
            counter.clear()


@pytest.mark.parametrize("looks_in_full", [False, True])
@pytest.mark.parametrize("options", [{}, {"racing": True}, {"passes": "auto", "max_passes": 6, "racing": True}])
def test_every_candidate_is_read_once_and_who_drops_out_runs_no_further(monkeypatch, options, looks_in_full):
    monkeypatch.setattr(perturb, "has_fast_bfloat16", lambda device: not looks_in_full)
    dataset = NumberedDigits()
    data = make_data(dataset, candidates=None, pool_batch_size=50)
    spy = Spy(150, **{"passes": 6, **options})
    run = fit(Reset(dataset.reads, Numbered.ran), spy, model=Numbered(), data=data)
    (query,), (plan,) = Spy.queries, Spy.plans
    examples = Counter(query.indices[:50])  # a batch of which `prepare` sees before
    assert dataset.reads == Counter(query.indices) + examples
    cuts = [cut.passes for cut in plan.cuts]
    assert bool(cuts) is bool(options)
    pilot = set(draw_pilot(query.indices, len(query.indices) // 8, 0, 0)) if options else set()
    whole = 6 + 1 + bool(options)  # a clean pass, and a look
    for index, row in zip(query.indices, query.pool.tolist(), strict=True):
        if index in examples:
            continue
        if index in pilot:
            assert Numbered.ran[index] == whole
        elif looks_in_full:  # the look, or without cuts the clean pass, serves all stretches
            assert Numbered.ran[index] in ({1 + plan.passes} if row[FINISHED] else {1 + after for after in cuts})
        elif row[FINISHED]:
            stretches = len({0, *cuts})  # each with a clean pass of its own
            assert Numbered.ran[index] == plan.passes + stretches + bool(cuts)
        else:
            assert Numbered.ran[index] in {1 if after == 0 else 2 + after for after in cuts}
    assert len(run.picks) == 150


def test_racing_and_confined_noise_go_together():
    options = {"passes": 6, "modules": ["net.2"]}
    whole = fit(Spy(80, **options), **DOUBLE)
    raced = fit(Spy(80, racing=True, **options), **DOUBLE)
    assert raced.picks == whole.picks
    assert Spy.reports[1]["racing"] < 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_racing_and_derivatives_go_together():
    whole = fit(Spy(80, passes=6, method="jvp"), **DOUBLE)
    raced = fit(Spy(80, passes=6, method="jvp", racing=True), **DOUBLE)
    assert raced.picks == whole.picks
    assert Spy.reports[1]["racing"] < 1


@pytest.mark.parametrize("candidates", [12, 40, 64, 65, 70])
def test_a_pool_no_larger_than_a_pilot_is_ranked_by_all_passes_but_for_a_few(candidates):
    options = {"data": make_data(candidates=candidates), **DOUBLE}
    raced = fit(Spy(7, passes=4, racing=True), **options)
    whole = fit(Spy(7, passes=4), data=make_data(candidates=candidates), **DOUBLE)
    assert raced.picks == whole.picks
    assert len(Spy.queries[0].pool) == candidates
    assert Spy.queries[0].pool[:, FINISHED].sum() >= min(64, candidates - 1)


@pytest.mark.parametrize("options", [{"racing": True}, {"passes": "auto", "max_passes": 4, "racing": True}])
@pytest.mark.parametrize("candidates", [2, 90, 300])
def test_a_query_of_all_candidates_but_one_leaves_the_most_stable_one(candidates, options):
    query_size = candidates - 1
    raced = fit(Spy(query_size, **{"passes": 4, **options}), data=make_data(candidates=candidates), **DOUBLE)
    passes = int(Spy.reports[0]["passes"])
    whole = fit(Spy(query_size, passes=passes), data=make_data(candidates=candidates), **DOUBLE)
    assert raced.picks == whole.picks
    assert Spy.reports[0]["racing"] > 0.99  # who is nearly sure to be picked runs to the end
    assert Spy.reports[0]["confidence"] == Spy.reports[1]["confidence"] >= (candidates - 2) / query_size


def test_another_cycle_draws_another_pilot_and_other_noise():
    acquisition, data = Spy(30, passes=4, racing=True), make_data(candidates=None)
    picks = [fit(acquisition, data=data).picks for _ in range(2)]
    assert not set(picks[0]) & set(picks[1])
    first, second = Spy.queries
    assert set(second.indices) == set(first.indices) - set(picks[0])
    assert Spy.plans[0].cuts[0].threshold != Spy.plans[1].cuts[0].threshold
    pilots = [draw_pilot(query.indices, len(query.indices) // 8, 0, cycle) for cycle, query in enumerate(Spy.queries)]
    assert len(set(pilots[0]) & set(pilots[1])) < 100
    shared = sorted(set(pilots[0]) & set(pilots[1]))
    before, after = (
        [float(query.pool[query.indices.index(index), SCORE]) for index in shared] for query in Spy.queries
    )
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_fast_dev_run_races_too_and_labels_nothing(caplog):
    data = make_data(initial_size=LABELED)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run = fit(Spy(9, passes=3, racing=True), data=data, fast_dev_run=True)
    assert "Spy: `fast_dev_run` scored 10 samples, and labels nothing." in caplog.text
    assert run.pool.num_labeled == LABELED
    assert len(Spy.queries[0].pool) == 10


class Lists(Dataset[dict[str, Any]]):
    """Points as lists of numbers, of which no tensor knows."""

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> dict[str, Any]:
        point, label = ToyDataset()[index]
        return {"point": ",".join(map(str, point.tolist())), "label": label}


class Reader(ToyClassifier):
    def forward(self, point: list[str]) -> Tensor:
        return self.net(torch.tensor([[float(number) for number in text.split(",")] for text in point]))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch["point"]), batch["label"])


def test_batches_that_cannot_be_split_are_refused_by_a_race_and_labeled_without(caplog):
    data = ActiveLearningDataModule(Lists(), initial_size=20, batch_size=32)
    message = r"`racing=True` takes single samples out of a batch, but half of a batch gives other outputs"
    with pytest.raises(ValueError, match=message):
        fit(NoiseStabilityAcquisition(5, passes=3, racing=True), model=Reader(), data=data)
    assert data.pool.num_labeled == 20
    for passes in (3, "auto"):
        data = ActiveLearningDataModule(Lists(), initial_size=20, batch_size=32)
        fit(NoiseStabilityAcquisition(5, passes=passes, max_passes=4), model=Reader(), data=data)
        assert data.pool.num_labeled == 25


# ---------------------------------------------------------------- passes="auto"


@pytest.mark.parametrize("racing", [False, True])
def test_automatic_passes_give_the_scores_of_as_many_passes(racing):
    pool, options = {"candidates": None}, {"passes": "auto", "max_passes": 20, "stability": 0.75, "racing": racing}
    automatic = fit(Spy(200, **options), data=make_data(**pool), **DOUBLE)
    passes = Spy.reports[0]["passes"]
    assert 3 < passes < 20
    fixed = fit(Spy(200, passes=int(passes)), data=make_data(**pool), **DOUBLE)
    assert automatic.picks == fixed.picks
    torch.testing.assert_close(
        torch.tensor(automatic.query.scores), torch.tensor(fixed.query.scores), rtol=1e-5, atol=0
    )
    assert Spy.reports[0]["racing"] == 1 or racing
    assert Spy.reports[0]["confidence"] == pytest.approx(Spy.reports[1]["confidence"], abs=0.02)


def test_a_higher_stability_takes_no_fewer_passes():
    for stability in (0.01, 0.7, 0.8, 1.0):
        fit(Spy(200, passes="auto", max_passes=8, stability=stability, racing=True))
    passes = [report["passes"] for report in Spy.reports]
    assert passes == sorted(passes)
    assert (passes[0], passes[-1]) == (3, 8)


@pytest.mark.parametrize("racing", [False, True])
def test_automatic_passes_of_three_at_most_are_three(racing):
    run = fit(Spy(50, passes="auto", max_passes=3, racing=racing))
    assert Spy.reports[0]["passes"] == 3
    assert run.picks == fit(Spy(50, passes=3)).picks


# ---------------------------------------------------------------- figures


def test_the_confidence_is_the_agreement_of_even_and_odd_passes():
    run = fit(Spy(80, passes=6), **DOUBLE)
    (query,), (report,) = Spy.queries, Spy.reports
    images = digits().tensors[0].double()[torch.tensor(query.indices)]
    seeds = [(Stream.NOISE, 0, 0, step) for step in range(6)]
    even, odd = (twin(run.model, [images], seeds=half) for half in (seeds[::2], seeds[1::2]))
    best = [set(half.argsort(descending=True)[:80].tolist()) for half in (even, odd)]
    assert report == {"passes": 6, "confidence": len(best[0] & best[1]) / 80, "racing": 1}
    assert 0.2 < report["confidence"] < 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"passes": 1}, {"passes", "racing"}),  # one pass has no halves
        ({"passes": 2}, {"passes", "confidence", "racing"}),
        ({"passes": 3, "selection": "power"}, {"passes", "confidence", "racing"}),
        ({"passes": 3, "selection": "k-center"}, {"passes"}),
        ({"passes": 3, "selection": "kmeans++"}, {"passes"}),
    ],
)
def test_what_is_reported_depends_on_what_is_known(options, expected):
    fit(Spy(20, **options), data=make_data(candidates=120))
    assert set(Spy.reports[0]) == expected
    assert Spy.reports[0]["passes"] == options["passes"]
    assert Spy.reports[0].get("racing", 1) == 1


def test_the_shortlists_of_some_processes_hold_the_picks_and_the_confidence():
    acquisition = NoiseStabilityAcquisition(6)
    for seed in range(20):
        rows = torch.rand(90, 4, generator=torch.Generator().manual_seed(seed))
        parts = torch.arange(90).split((40, 30, 20))
        kept = [part[acquisition.shortlist(rows[part], 6)] for part in parts]
        assert all(len(one) <= 3 * 6 for one in kept)
        assert all(one.tolist() == sorted(one.tolist()) for one in kept)
        whole, short = (
            Query(rows[own], own.tolist(), 6, torch.Generator()) for own in (torch.arange(90), torch.cat(kept))
        )
        assert acquisition.select(short) == acquisition.select(whole)
        confidence = [overlap(query.pool[:, EVEN], query.pool[:, ODD], 6) for query in (short, whole)]
        assert confidence[0] == confidence[1]


@pytest.mark.parametrize("selection", ["k-center", "kmeans++", "power"])
def test_selections_that_look_at_all_rows_make_no_shortlist(selection):
    assert NoiseStabilityAcquisition(6, selection=selection).shortlist(torch.rand(9, 4), 6) is None


def read_figures(folder: Any) -> list[dict[str, float]]:
    """Return the figures of each query from the files of a logger, in the order of the labeled samples."""
    rows = []
    for path in folder.rglob("metrics.csv"):
        with path.open() as file:
            rows += [row for row in csv.DictReader(file) if row.get("al/passes")]
    figures = [{name: float(value) for name, value in row.items() if value} for row in rows]
    return sorted(figures, key=lambda row: row["al/labeled"])


@pytest.mark.parametrize(
    "options", [{"passes": 4}, {"passes": 4, "racing": True}, {"passes": "auto", "max_passes": 5, "racing": True}]
)
def test_passes_confidence_and_racing_are_logged_in_every_cycle(tmp_path, caplog, options):
    def make(cycle: int) -> tuple[Trainer, LightningModule]:
        trainer = Trainer(
            max_epochs=1,
            limit_train_batches=1,
            accelerator="cpu",
            callbacks=[Spy(50, **options)],
            logger=CSVLogger(tmp_path, name="csv", version=cycle),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return trainer, DigitsClassifier()

    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run_cycles(make, make_data(test_dataset=digits(), candidates=400), cycles=3, run_dir=tmp_path / "run")
    logged = read_figures(tmp_path)
    assert len(logged) == len(Spy.reports) >= 2
    for number, (row, report, query) in enumerate(zip(logged, Spy.reports, Spy.queries, strict=True)):
        assert row["al/labeled"] == LABELED + 50 * number
        assert row["al/queried"] == 50
        assert row["al/passes"] == report["passes"] == (options["passes"] if options["passes"] != "auto" else 5)
        assert row["al/confidence"] == pytest.approx(overlap(query.pool[:, EVEN], query.pool[:, ODD], 50))
        assert row["al/racing"] == pytest.approx(float(query.pool[:, FINISHED].mean()))
        assert (row["al/racing"] < 1) is options.get("racing", False)
        said = f"passes {report['passes']:.4g}, confidence {report['confidence']:.4g}, racing {report['racing']:.4g};"
        assert re.search(r"Spy: labeled 50 of \d+ candidates in \d+\.\d s, " + re.escape(said), caplog.text)


# ---------------------------------------------------------------- method, compile


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_derivatives_pick_by_the_first_order_term(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run = fit(Spy(80, passes=4, method="jvp"), **DOUBLE)
    assert "Noise stability by derivatives: rank agreement" in caplog.text
    (query,) = Spy.queries
    images = digits().tensors[0].double()[torch.tensor(query.indices)]
    seeds = [(Stream.NOISE, 0, 0, step) for step in range(4)]
    # a thousandth of the noise leaves next to nothing but the first order
    scores = 1e6 * twin(run.model, [images], seeds=seeds, magnitude=1e-6)
    torch.testing.assert_close(query.pool[:, SCORE], scores.float(), rtol=1e-3, atol=1e-12)
    assert set(run.picks) == {query.indices[row] for row in scores.argsort(descending=True)[:80].tolist()}


def test_compiled_passes_pick_the_same(monkeypatch):
    expected = fit(Spy(50, passes=3, racing=True)).picks
    compiled = []

    def compile_eagerly(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    assert fit(Spy(50, passes=3, racing=True, compile=True)).picks == expected
    assert compiled == [{"mode": None, "dynamic": None}]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "options",
    [
        {"passes": 3},
        {"passes": 4, "racing": True},
        {"passes": "auto", "max_passes": 4},
        {"passes": 3, "selection": "k-center"},
        {"passes": 3, "modules": ["net.2"]},
    ],
)
def test_a_cycle_survives_a_lack_of_memory_with_the_same_picks(monkeypatch, caplog, options):
    expected = fit(Spy(60, **options), data=make_data(candidates=300), **DOUBLE)
    original, tried = FiniteDifferences.deviations, []

    def short(self: FiniteDifferences, chunk: Any, seeds: Any, clean: Any = None) -> Any:
        tried.append(sum(len(images) for images, _ in chunk))
        for number, deviation in enumerate(original(self, chunk, seeds, clean)):
            if tried[-1] > 50 and number:  # in the second pass or batch, under perturbed weights
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more.")
            yield deviation

    monkeypatch.setattr(FiniteDifferences, "deviations", short)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        found = fit(Spy(60, **options), data=make_data(candidates=300), **DOUBLE)
    assert max(tried) > 50 > min(tried)
    line = "CUDA out of memory. Tried to allocate 2.00 GiB. Scoring goes on with half as many samples at a time;"
    assert line in caplog.text
    assert "And more" not in caplog.text
    assert found.picks == expected.picks
    torch.testing.assert_close(torch.tensor(found.query.scores), torch.tensor(expected.query.scores), rtol=1e-5, atol=0)
    one, other = (copy.deepcopy(run.model).state_dict() for run in (found, expected))
    assert all(torch.equal(one[name], other[name]) for name in one)
