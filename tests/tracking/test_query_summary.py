import copy
import csv
import json
import logging
import math
from collections import Counter

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from lightning_al import (
    ActiveLearningDataModule,
    CoreSetAcquisition,
    EntropyAcquisition,
    MarginAcquisition,
    NoiseStabilityAcquisition,
    RandomAcquisition,
    run_cycles,
)
from lightning_al.acquisition.query_options import QueryOptions
from lightning_al.functional import redundancy
from lightning_al.numerics.seeding import seeded
from lightning_al.testing import ToyClassifier, ToyDataset
from lightning_al.tracking.summary_files import write_summary
from tests.digits import DigitsClassifier, digits, fit
from tests.runs import make_data, maker, weights_of


@pytest.fixture
def seen(monkeypatch):
    """Catch what every query tells."""
    summaries = []
    monkeypatch.setattr(
        "lightning_al.acquisition.run_query.track_query", lambda loggers, summary, folder: summaries.append(summary)
    )
    return summaries


def fit_with_preview(strategy, folder, **options):
    return fit(strategy, QueryOptions(preview_dir=folder / "picked"), **options)


def test_the_picks_of_digits(seen, tmp_path):
    done = fit_with_preview(EntropyAcquisition(40), tmp_path)
    (summary,) = seen
    images, classes = digits()[done.picks]
    net = done.model.net
    with torch.no_grad():
        logits, features = net(images), net[:2](images)
        candidates, _ = digits()[sorted({*done.pool.unlabeled, *done.picks})]
        probs = net(candidates).softmax(1)
    assert [pick.index for pick in summary.picks] == done.picks[:32]
    assert [pick.rank for pick in summary.picks] == list(range(32))
    assert [pick.predicted for pick in summary.picks] == logits.argmax(1).tolist()[:32]
    assert [pick.label for pick in summary.picks] == classes.tolist()[:32]
    assert [pick.score for pick in summary.picks] == done.query.scores[:32]
    assert summary.metrics["candidates"] == 800
    assert summary.metrics["redundancy"] == pytest.approx(float(redundancy(features)), abs=1e-5)
    counts = Counter(classes.tolist())
    assert {name: n for name, n in summary.metrics.items() if name.startswith("label/")} == {
        f"label/{label}": n for label, n in counts.items()
    }
    shares = np.array(list(counts.values())) / 40
    assert summary.metrics["label_entropy"] == pytest.approx(float(-(shares * np.log(shares)).sum()))
    assert len(summary.candidate_scores) == 800
    assert summary.candidate_scores.max() == pytest.approx(done.query.scores[0])
    assert summary.candidate_scores.max() <= torch.special.entr(probs).sum(1).max() + 1e-5


def test_quantiles_are_those_of_all_candidates(seen, tmp_path):
    fit_with_preview(EntropyAcquisition(40), tmp_path)
    (summary,) = seen
    expected = np.quantile(summary.candidate_scores.double().numpy(), np.linspace(0, 1, 21), method="nearest")
    np.testing.assert_allclose(summary.quantiles, expected, rtol=0.02)
    assert summary.quantiles[0] == summary.candidate_scores.min()
    assert summary.quantiles[-1] == summary.candidate_scores.max()


@pytest.mark.parametrize(
    "strategy",
    [
        RandomAcquisition(5),
        CoreSetAcquisition(5),
        NoiseStabilityAcquisition(5, passes=3, selection="kmeans++"),
        NoiseStabilityAcquisition(5, passes=10),
        MarginAcquisition(5),
    ],
    ids=["random", "core_set", "kmeans", "noise_stability", "margin"],
)
def test_looking_changes_nothing(strategy, seen, tmp_path):
    twin = copy.copy(strategy)  # without a folder, so nobody looks
    states, models = [], (DigitsClassifier(), DigitsClassifier())
    with seeded(0):
        done = fit_with_preview(strategy, tmp_path, model=models[0])
        states.append(torch.get_rng_state())
    with seeded(0):
        plain = fit(twin, model=models[1])
        states.append(torch.get_rng_state())
    assert plain.picks == done.picks
    assert torch.equal(*states)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(models[0]), weights_of(models[1]), strict=True))
    (summary,) = seen
    assert summary.candidate_scores is None or len(summary.candidate_scores) == 800


@pytest.mark.parametrize(
    ("targets", "label_key", "label", "counted"),
    [
        ((torch.ones(30).int(), torch.arange(30)), 1, 1, {"label/1"}),
        ((torch.ones(30).int(), torch.arange(30)), None, None, set()),  # either may be the target
        ((torch.tensor([[1, 0, 1]] * 30),), None, "0, 2", {"label/0", "label/2"}),
        ((torch.ones(30),), None, None, set()),  # a regression
    ],
)
def test_the_classes_of_the_picks_are_those_of_the_target(seen, tmp_path, caplog, targets, label_key, label, counted):
    class Model(ToyClassifier):
        def training_step(self, batch, batch_idx):
            return self(batch[0]).square().mean()

    caplog.set_level(logging.INFO)
    dataset = TensorDataset(torch.rand(30, 3), *targets)
    data = ActiveLearningDataModule(dataset, initial_size=6, batch_size=4, label_key=label_key)
    fit_with_preview(RandomAcquisition(15), tmp_path, data=data, model=Model())
    (summary,) = seen
    assert {name for name in summary.metrics if name.startswith("label/")} == counted
    assert summary.picks[0].label == label
    assert ("The classes of the picks are not counted." in caplog.text) is (len(targets) == 2 and label_key is None)


class NoLinear(ToyClassifier):
    """The end is an einsum, so there are no features to find."""

    def __init__(self):
        super().__init__()
        self.net = nn.Identity()
        self.weights = nn.Parameter(torch.randn(3, 4))

    def forward(self, points):
        return torch.einsum("bd,dc->bc", points, self.weights)


class Regressor(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, points):
        return self.net(points)

    def training_step(self, batch, batch_idx):
        points, values = batch
        return nn.functional.mse_loss(self(points)[:, 0], values)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def test_a_model_without_features_has_no_redundancy(seen, tmp_path):
    make = maker(lambda: EntropyAcquisition(5), model=NoLinear)
    run_cycles(make, make_data(), cycles=1, run_dir=tmp_path)
    assert "redundancy" not in seen[0].metrics
    assert {pick.predicted for pick in seen[0].picks} <= set(range(4))


def test_a_regression_has_values_and_no_classes(seen, tmp_path):
    points = ToyDataset().points
    data = ActiveLearningDataModule(TensorDataset(points, points.sum(1) + 0.5), initial_size=10, batch_size=8)
    make = maker(lambda: NoiseStabilityAcquisition(5, passes=2, output="identity"), model=Regressor)
    run_cycles(make, data, cycles=1, run_dir=tmp_path)
    (summary,) = seen
    assert [pick.label for pick in summary.picks] == [None] * 5
    assert all(isinstance(pick.predicted, float) for pick in summary.picks)
    assert not any(name.startswith("label") for name in summary.metrics)


def test_a_sample_that_cannot_be_drawn_costs_a_warning_and_no_label(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_al.tracking.failures._already_warned", set())

    def fail(sample):
        raise OSError("the picture is gone")

    monkeypatch.setattr("lightning_al.tracking.query_summary.media_of", fail)
    with pytest.warns(UserWarning, match="Summarizing the picks failed .OSError: the picture is gone.*labels are safe"):
        records = run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(), cycles=2, run_dir=tmp_path)
    assert [record["queried"] for record in records] == [5, 5]
    assert not (tmp_path / "cycle-00" / "picked").exists()


# ---------------------------------------------------------------- files


def test_a_run_keeps_what_was_picked(tmp_path):
    from examples.digits import DigitsClassifier as Classifier
    from examples.digits import DigitsDataModule

    data = ActiveLearningDataModule(DigitsDataModule(), initial_size=20, candidates=200)
    run_cycles(
        maker(lambda: MarginAcquisition(10), model=Classifier), data, cycles=2, run_dir=tmp_path, num_preview_samples=4
    )
    for cycle in (0, 1):
        folder, labeling = tmp_path / f"cycle-{cycle:02d}" / "picked", data.pool.history[cycle + 1]
        with (folder / "picked.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["index"]) for row in rows] == labeling.indices[:4]
        assert [float(row["score"]) for row in rows] == labeling.scores[:4]
        for row in rows:
            scan, label = data.datamodule.train[int(row["index"])]
            assert int(row["label"]) == int(label)
            with Image.open(folder / row["file"]) as picture:
                np.testing.assert_allclose(np.asarray(picture), scan[0] * 255, atol=0.51)
        query = json.loads((folder / "query.json").read_text())
        assert query["strategy"] == "MarginAcquisition"
        assert query["figures"]["candidates"] == 200
        assert query["quantiles"] == sorted(query["quantiles"])
        assert math.isclose(query["quantiles"][-1], labeling.scores[0], rel_tol=1e-6)
    assert not list(tmp_path.rglob("*.tmp"))


def test_texts_are_kept_and_an_old_folder_is_replaced(seen, tmp_path):
    fit_with_preview(EntropyAcquisition(3), tmp_path)
    (summary,) = seen
    picks = [type(pick)(pick.index, pick.rank, None, None, None, 'a, "b"\nc') for pick in summary.picks]
    (tmp_path / "picked").mkdir()
    (tmp_path / "picked" / "old.png").touch()
    write_summary(type(summary)(summary.pool, {}, None, picks), tmp_path / "picked")
    with (tmp_path / "picked" / "picked.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ['a, "b"\nc'] * 3
    assert {row["score"] for row in rows} == {""}
    assert sorted(path.name for path in (tmp_path / "picked").iterdir()) == ["picked.csv", "query.json"]


def test_no_previews_are_kept_if_none_are_asked_for(tmp_path):
    run_cycles(maker(lambda: EntropyAcquisition(5)), make_data(), cycles=1, run_dir=tmp_path, num_preview_samples=0)
    assert (tmp_path / "cycle-00" / "picked" / "picked.csv").read_text().splitlines() == [
        "index,rank,score,predicted,label,file,text"
    ]
    with pytest.raises(ValueError, match=r"`run_cycles\(num_preview_samples=-1\)`: expected a number of samples"):
        run_cycles(
            maker(lambda: EntropyAcquisition(5)), make_data(), cycles=1, run_dir=tmp_path / "x", num_preview_samples=-1
        )


def test_a_plain_trainer_without_loggers_looks_at_nothing(seen):
    fit(EntropyAcquisition(5))
    assert not seen
