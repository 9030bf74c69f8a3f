import copy
import csv
import logging
import math
import re
from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import Dataset

from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition, Query, functional, run_cycles
from lightning_al.numerics.seeding import RandomStream, make_generator
from lightning_al.perturbation.deviations import EVEN, ODD, SCORE
from lightning_al.perturbation.finite_differences import FiniteDifferences
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.digits import LABELED, DigitsClassifier, digits, fit, make_data
from tests.noise_stability_twin import twin
from tests.strategies.spy import Spy

pytestmark = pytest.mark.usefixtures("unrehearsed")

DOUBLE = {"precision": "64-true"}


@pytest.fixture(autouse=True)
def forget():
    Spy.forget()


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": "many"}, "`passes='many'`: expected at least one pass"),
        ({"passes": 0}, "`passes=0`: expected at least one pass"),
        ({"directions": 0}, "`directions=0`: expected a number of backward passes"),
        ({"passes": "inf", "norm": "l2"}, "the expected length has none"),
        ({"passes": "inf", "method": "jvp"}, "runs no perturbed passes"),
        ({"passes": "inf", "compile": True}, "runs no perturbed passes"),
        (
            {"passes": "inf", "selection": "k-center"},
            r"selection='k-center'\)`: this selection compares",
        ),
        ({"passes": "inf", "selection": "kmeans++"}, r"selection='kmeans\+\+'\).*the closed form has none"),
        ({"passes": math.inf, "selection": "lcmd"}, r"selection='lcmd'\).*or one of \('topk', 'power'\)"),
        ({"selection": "random"}, r"\(selection='random'\)`: expected one of \('topk', 'k-center', 'kmeans\+\+'"),
        ({"method": "auto"}, r"`method='auto'`: expected one of \('finite_difference', 'jvp', 'jvp_bf16'\)"),
    ],
)
def test_impossible_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseStabilityAcquisition(5, **options)


# ---------------------------------------------------------------- scores and picks


def twin_scores(run: Any, query: Query, passes: int) -> Tensor:
    images = digits().tensors[0].double()[torch.tensor(query.indices)]
    return twin(run.model, [images], seeds=[(RandomStream.NOISE, 0, 0, step) for step in range(passes)])


@pytest.mark.parametrize("options", [{}, {"selection": "power"}])
def test_power_is_the_default_and_draws_by_the_seed_of_the_query(options):
    run = fit(Spy(80, passes=4, **options), **DOUBLE)
    (query,) = Spy.queries
    scores = twin_scores(run, query, 4)
    torch.testing.assert_close(query.pool[:, SCORE], scores.float(), rtol=1e-4, atol=0)
    generator = make_generator(RandomStream.SELECTION, 0, 0)
    rows = functional.power(query.pool[:, SCORE], 80, generator=generator)
    assert run.picks == [query.indices[row] for row in rows.tolist()]
    assert set(run.picks) != {query.indices[row] for row in scores.argsort(descending=True)[:80].tolist()}


def test_topk_labels_the_largest_scores():
    run = fit(Spy(80, passes=4, selection="topk"), **DOUBLE)
    (query,) = Spy.queries
    scores = twin_scores(run, query, 4)
    assert run.picks == [query.indices[row] for row in scores.argsort(descending=True)[:80].tolist()]


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


@pytest.mark.parametrize("options", [{}, {"selection": "topk"}, {"selection": "k-center"}])
def test_every_candidate_is_read_once_and_runs_all_passes(options):
    dataset = NumberedDigits()
    data = make_data(dataset, candidates=None, pool_batch_size=50)
    run = fit(Reset(dataset.reads, Numbered.ran), Spy(150, passes=6, **options), model=Numbered(), data=data)
    (query,) = Spy.queries
    examples = Counter(query.indices[:50])  # a batch of which `prepare` sees before
    assert dataset.reads == Counter(query.indices) + examples
    assert all(Numbered.ran[index] == 6 + 1 for index in query.indices if index not in examples)
    assert len(run.picks) == 150


@pytest.mark.parametrize("candidates", [2, 90])
def test_a_query_of_all_candidates_but_one_leaves_the_most_stable_one(candidates):
    run = fit(Spy(candidates - 1, passes=4, selection="topk"), data=make_data(candidates=candidates), **DOUBLE)
    (query,) = Spy.queries
    assert set(query.indices) - set(run.picks) == {query.indices[int(query.pool[:, SCORE].argmin())]}
    assert Spy.reports[0]["confidence"] >= (candidates - 2) / (candidates - 1)


def test_another_cycle_draws_other_noise():
    acquisition, data = Spy(30, passes=4), make_data(candidates=None)
    picks = [fit(acquisition, data=data, model=DigitsClassifier()).picks for _ in range(2)]
    assert not set(picks[0]) & set(picks[1])
    first, second = Spy.queries
    assert set(second.indices) == set(first.indices) - set(picks[0])
    before, after = (
        [float(query.pool[query.indices.index(index), SCORE]) for index in second.indices] for query in Spy.queries
    )
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_fast_dev_run_labels_nothing(caplog):
    data = make_data(initial_size=LABELED)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run = fit(Spy(9, passes=3), data=data, fast_dev_run=True)
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


def test_batches_that_cannot_be_split_are_labeled():
    data = ActiveLearningDataModule(Lists(), initial_size=20, batch_size=32)
    fit(NoiseStabilityAcquisition(5, passes=3), model=Reader(), data=data)
    assert data.pool.num_labeled == 25


# ---------------------------------------------------------------- metrics


def test_the_confidence_is_the_agreement_of_even_and_odd_passes():
    run = fit(Spy(80, passes=6), **DOUBLE)
    (query,), (report,) = Spy.queries, Spy.reports
    images = digits().tensors[0].double()[torch.tensor(query.indices)]
    seeds = [(RandomStream.NOISE, 0, 0, step) for step in range(6)]
    even, odd = (twin(run.model, [images], seeds=half) for half in (seeds[::2], seeds[1::2]))
    best = [set(half.argsort(descending=True)[:80].tolist()) for half in (even, odd)]
    assert report == {"passes": 6, "confidence": len(best[0] & best[1]) / 80}
    assert 0.2 < report["confidence"] < 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"passes": 1}, {"passes"}),  # one pass has no halves
        ({"passes": 2}, {"passes", "confidence"}),
        ({"passes": 3, "selection": "topk"}, {"passes", "confidence"}),
        ({"passes": 3, "selection": "k-center"}, {"passes"}),
        ({"passes": 3, "selection": "kmeans++"}, {"passes"}),
    ],
)
def test_what_is_reported_depends_on_what_is_known(options, expected):
    fit(Spy(20, **options), data=make_data(candidates=120))
    assert set(Spy.reports[0]) == expected
    assert Spy.reports[0]["passes"] == options["passes"]


def test_the_shortlists_of_some_processes_hold_the_picks_and_the_confidence():
    acquisition = NoiseStabilityAcquisition(6, selection="topk")
    fit(acquisition, data=make_data(candidates=20))  # after which it knows its passes
    for seed in range(20):
        rows = torch.rand(90, 3, generator=torch.Generator().manual_seed(seed))
        parts = torch.arange(90).split((40, 30, 20))
        kept = [part[acquisition.rows_to_gather(rows[part], 6)] for part in parts]
        assert all(len(one) <= 3 * 6 for one in kept)
        assert all(one.tolist() == sorted(one.tolist()) for one in kept)
        whole, short = (
            Query(rows[own], own.tolist(), 6, torch.Generator()) for own in (torch.arange(90), torch.cat(kept))
        )
        assert acquisition.select(short) == acquisition.select(whole)
        assert acquisition.metrics(short) == acquisition.metrics(whole)


@pytest.mark.parametrize("selection", ["k-center", "kmeans++", "power"])
def test_selections_that_look_at_all_rows_make_no_shortlist(selection):
    assert NoiseStabilityAcquisition(6, selection=selection).rows_to_gather(torch.rand(9, 3), 6) is None


def read_figures(folder: Any) -> list[dict[str, float]]:
    """Return the metrics of each query from the files of a logger, in the order of the labeled samples."""
    rows = []
    for path in folder.rglob("metrics.csv"):
        with path.open() as file:
            rows += [row for row in csv.DictReader(file) if row.get("al/passes")]
    metrics = [{name: float(value) for name, value in row.items() if value} for row in rows]
    return sorted(metrics, key=lambda row: row["al/labeled"])


@pytest.mark.parametrize("options", [{"passes": 4}, {"passes": 3, "selection": "topk"}])
def test_passes_and_confidence_are_logged_in_every_cycle(tmp_path, caplog, options):
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
        assert row["al/passes"] == report["passes"] == options["passes"]
        even, odd = (set(functional.top_k(query.pool[:, half], 50).tolist()) for half in (EVEN, ODD))
        assert row["al/confidence"] == pytest.approx(len(even & odd) / 50)
        said = f"passes {report['passes']:.4g}, confidence {report['confidence']:.4g};"
        assert re.search(r"Spy: labeled 50 of \d+ candidates in \d+\.\d s, " + re.escape(said), caplog.text)


# ---------------------------------------------------------------- method, compile


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_derivatives_pick_by_the_first_order_term(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run = fit(Spy(80, passes=4, method="jvp", selection="topk"), **DOUBLE)
    assert "Noise stability by derivatives: rank agreement" in caplog.text
    (query,) = Spy.queries
    images = digits().tensors[0].double()[torch.tensor(query.indices)]
    seeds = [(RandomStream.NOISE, 0, 0, step) for step in range(4)]
    # a thousandth of the noise leaves next to nothing but the first order
    scores = 1e6 * twin(run.model, [images], seeds=seeds, magnitude=1e-6)
    torch.testing.assert_close(query.pool[:, SCORE], scores.float(), rtol=1e-3, atol=1e-12)
    assert set(run.picks) == {query.indices[row] for row in scores.argsort(descending=True)[:80].tolist()}


def test_compiled_passes_pick_the_same(monkeypatch):
    expected = fit(Spy(50, passes=3)).picks
    compiled = []

    def compile_eagerly(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    assert fit(Spy(50, passes=3, compile=True)).picks == expected
    assert compiled == [{"mode": None, "dynamic": None}]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "options",
    [
        {"passes": 3},
        {"passes": 3, "selection": "topk"},
        {"passes": 3, "selection": "k-center"},
        {"passes": 3, "modules": ["net.2"]},
    ],
)
def test_a_cycle_survives_a_lack_of_memory_with_the_same_picks(monkeypatch, caplog, options):
    expected = fit(Spy(60, **options), data=make_data(candidates=300), **DOUBLE)
    original, tried = FiniteDifferences.deviations, []

    def short(self: FiniteDifferences, chunk: Any, seeds: Any) -> Any:
        tried.append(sum(len(images) for images, _ in chunk))
        for number, deviation in enumerate(original(self, chunk, seeds)):
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
