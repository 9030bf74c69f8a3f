import copy
import logging
import math
import pickle
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_al import (
    Acquisition,
    ActiveLearningDataModule,
    EntropyAcquisition,
    LeastConfidenceAcquisition,
    MarginAcquisition,
    NoiseStabilityAcquisition,
    Query,
    RandomAcquisition,
    functional,
)
from lightning_al.acquisition.checks import check_before_training
from lightning_al.acquisition.query import QueryContext
from lightning_al.acquisition.query_options import QueryOptions
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.float32 import true_float32
from lightning_al.numerics.seeding import RandomStream, make_generator
from lightning_al.perturbation.deviations import deviation_sizes
from lightning_al.perturbation.finite_differences import FiniteDifferences
from lightning_al.perturbation.noise import Noise
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.noise_stability_twin import twin, twin_outputs
from tests.snapshot import module_picture, picture, random_picture

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def make_data(initial_size: Any = 20, **options: Any) -> ActiveLearningDataModule:
    return ActiveLearningDataModule(ToyDataset(), initial_size=initial_size, **{"batch_size": 32, **options})


def make_model(seed: int = 0) -> ToyClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ToyClassifier()


def fit(
    *callbacks: Callback,
    model: LightningModule | None = None,
    data: ActiveLearningDataModule | None = None,
    **options: Any,
) -> SimpleNamespace:
    """Run one real fit, and return what the assertions look at."""
    model, data = model or make_model(), data or make_data()
    trainer = Trainer(callbacks=list(callbacks), **{"max_epochs": 2, **QUIET, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the shuffle and of dropout
        trainer.fit(model, data)
    return SimpleNamespace(trainer=trainer, model=model, data=data, pool=data.pool, query=data.pool.history[-1])


def candidates_of(run: SimpleNamespace) -> list[int]:
    """Return the indices that were unlabeled before the last query, ascending."""
    return sorted(set(range(run.pool.size)) - set(run.pool.labeled_by(run.pool.cycle - 1)))


def inputs_of(indices: list[int], batch_size: int = 32) -> list[Tensor]:
    """Return the toy inputs in the batches in which the engine reads them."""
    return list(ToyDataset().points[torch.tensor(indices)].split(batch_size))


def largest(scores: Tensor, indices: list[int], count: int) -> list[int]:
    return [indices[row] for row in scores.sort(descending=True, stable=True).indices[:count].tolist()]


# ---------------------------------------------------------------- the right samples


@pytest.mark.parametrize(
    ("strategy", "formula"),
    [
        (EntropyAcquisition, functional.entropy),
        (MarginAcquisition, functional.margin),
        (LeastConfidenceAcquisition, functional.least_confidence),
    ],
)
def test_a_fit_labels_the_most_uncertain_samples_of_the_trained_model(strategy, formula):
    run = fit(strategy(7))
    indices, trained = candidates_of(run), copy.deepcopy(run.model).eval()
    with torch.no_grad():
        scores = torch.cat([formula(trained(points).softmax(1)) for points in inputs_of(indices)])
    assert run.query.indices == largest(scores, indices, 7)
    assert run.query.scores == [float(scores[indices.index(index)]) for index in run.query.indices]
    assert run.query.strategy == strategy.__name__
    assert run.pool.cycle == 1
    assert run.pool.num_labeled == 27


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"passes": 3, "magnitude": 0.01, "relative": False, "distribution": "laplace", "norm": "l2"},
        {"scope": "tensor", "distribution": "uniform", "output": "identity", "seed": 11},
    ],
)
def test_a_fit_labels_the_least_stable_samples_of_the_trained_model(options):
    run = fit(NoiseStabilityAcquisition(7, selection="topk", **options), precision="64-true")
    indices = candidates_of(run)
    seeds = [(RandomStream.NOISE, options.get("seed", 0), 0, k) for k in range(options.get("passes", 10))]
    expected = {name: value for name, value in options.items() if name not in ("passes", "seed")}
    points = [points.double() for points in inputs_of(indices)]
    scores = twin(run.model, points, seeds=seeds, **expected)
    assert run.query.indices == largest(scores, indices, 7)
    found = torch.tensor(run.query.scores, dtype=torch.float64)
    torch.testing.assert_close(found, scores.sort(descending=True).values[:7], rtol=1e-6, atol=0)


def test_modules_confine_the_noise_of_the_callback():
    run = fit(NoiseStabilityAcquisition(7, passes=4, modules=["net.4"], selection="topk"), precision="64-true")
    indices = candidates_of(run)
    points = [points.double() for points in inputs_of(indices)]
    noisy = ["net.4.weight", "net.4.bias"]
    scores = twin(run.model, points, seeds=[(RandomStream.NOISE, 0, 0, k) for k in range(4)], noisy=noisy)
    assert run.query.indices == largest(scores, indices, 7)


@pytest.mark.parametrize("selection", ["k-center", "kmeans++", "power"])
def test_other_selections_see_the_deviations_of_the_trained_model(selection):
    run = fit(NoiseStabilityAcquisition(9, passes=3, selection=selection), precision="64-true")
    indices = candidates_of(run)
    points, seeds = (
        [points.double() for points in inputs_of(indices)],
        [(RandomStream.NOISE, 0, 0, k) for k in range(3)],
    )
    pairs = twin_outputs(run.model, points, seeds=seeds)
    generator = make_generator(RandomStream.SELECTION, 0, 0)
    if selection == "power":
        scores = twin(run.model, points, seeds=seeds)
        rows = functional.power(scores.float(), 9, generator=generator)
    else:
        size = pairs[0][0].norm(dim=1, keepdim=True) if selection == "k-center" else 1
        deviations = torch.cat([(noised - clean) / size for clean, noised in pairs], 1).float()
        scores = deviations.square().sum(1) / 3
        if selection == "k-center":
            rows = functional.k_center(deviations, 9, centers=torch.zeros(1, 12))
        else:
            rows = functional.kmeans_plus_plus(deviations, 9, generator=generator)
    assert run.query.indices == [indices[row] for row in rows.tolist()]
    torch.testing.assert_close(torch.tensor(run.query.scores), scores[rows].float(), rtol=1e-5, atol=0)


def test_random_picks_come_from_seed_and_cycle():
    run = fit(RandomAcquisition(7))
    rows = torch.randperm(100, generator=make_generator(RandomStream.SELECTION, 0, 0))[:7].tolist()
    assert run.query.indices == [candidates_of(run)[row] for row in rows]
    assert run.query.scores is None
    second = fit(RandomAcquisition(7), data=fit(RandomAcquisition(7)).data)
    rows = torch.randperm(93, generator=make_generator(RandomStream.SELECTION, 0, 1))[:7].tolist()
    assert second.query.indices == [candidates_of(second)[row] for row in rows]
    assert fit(RandomAcquisition(7)).query.indices == run.query.indices
    assert fit(RandomAcquisition(7, seed=1)).query.indices != run.query.indices
    assert fit(RandomAcquisition(7), data=make_data(seed=1)).query.indices != run.query.indices


def test_cycles_grow_the_labeled_part_with_fresh_trainers():
    data = make_data()
    for cycle in range(3):
        run = fit(NoiseStabilityAcquisition(5, passes=2, selection="topk"), data=data, precision="64-true")
        indices = candidates_of(run)
        assert len(indices) == 100 - 5 * cycle
        points = [points.double() for points in inputs_of(indices)]
        scores = twin(
            run.model, points, seeds=[(RandomStream.NOISE, 0, cycle, k) for k in range(2)]
        )  # new noise in every cycle
        assert run.query.indices == largest(scores, indices, 5)
    assert [len(labeling.indices) for labeling in data.pool.history] == [20, 5, 5, 5]
    assert len(set(data.pool.labeled)) == 35


@pytest.mark.usefixtures("unrehearsed")
def test_only_the_candidates_are_scored():
    seen: list[int] = []

    class Spy(EntropyAcquisition):
        def select(self, query: Query) -> list[int]:
            seen.extend(query.indices)
            return super().select(query)

    data = make_data(candidates=30)
    run = fit(Spy(7), data=data)
    assert len(seen) == 30
    assert seen == sorted(set(candidates_of(run)) & set(seen))
    assert set(run.query.indices) <= set(seen)


def test_small_and_partial_batches_do_not_change_the_picks():
    picks = {
        size: fit(NoiseStabilityAcquisition(7), data=make_data(pool_batch_size=size), precision="64-true").query.indices
        for size in (1, 3, 100, 1000)
    }
    assert len({tuple(found) for found in picks.values()}) == 1


# ---------------------------------------------------------------- when nothing, or everything, is labeled


def test_a_fit_that_trains_nothing_labels_nothing_and_says_why():
    run = fit(EntropyAcquisition(5))
    with pytest.warns(
        UserWarning, match=r"`EntropyAcquisition` labels nothing: this fit trained no batch.*fresh Train"
    ):
        run.trainer.fit(run.model, run.data)
    assert run.pool.cycle == 1
    with pytest.warns(UserWarning, match="labels nothing"):
        empty = fit(EntropyAcquisition(5), limit_train_batches=0)
    assert empty.pool.cycle == 0


def test_an_empty_pool_is_left_in_peace(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run = fit(EntropyAcquisition(5), data=make_data(initial_size=1.0))
    assert "EntropyAcquisition: every sample is labeled; nothing is left to query." in caplog.text
    assert len(run.pool.history) == 1


class Unmeasurable(Acquisition):
    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        raise AssertionError("nothing was to be measured")


@pytest.mark.parametrize("query_size", [10, 50, 0.5])
def test_a_pool_no_larger_than_the_query_is_labeled_without_scoring(query_size):
    run = fit(Unmeasurable(query_size), data=make_data(initial_size=110))
    assert run.query.indices == candidates_of(run)
    assert len(run.query.indices) == 10
    assert run.query.scores is None
    assert run.pool.num_unlabeled == 0


def test_a_failed_fit_labels_nothing():
    class Failing(ToyClassifier):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("no training today")

    data = make_data()
    with pytest.raises(RuntimeError, match="no training today"):
        fit(EntropyAcquisition(5), model=Failing(), data=data)
    assert len(data.pool.history) == 1


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("steps", [True, 3])
@pytest.mark.parametrize("ckpt", ["last", "best"])
def test_fast_dev_run_scores_a_few_samples_and_labels_nothing(steps, ckpt, caplog, tmp_path):
    counts = []

    class Spy(EntropyAcquisition):
        def measure(self, predictor: Predictor, batch: Any) -> Tensor:
            counts.append(len(batch[0]))
            return super().measure(predictor, batch)

    options = QueryOptions(ckpt)  # of which fast_dev_run saves none
    checkpoint = ModelCheckpoint(tmp_path, monitor="train/loss")
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run = fit(Spy(40), options, checkpoint, fast_dev_run=steps, enable_checkpointing=True)
    assert counts == [32, 9]
    assert "Spy: `fast_dev_run` scored 41 samples, and labels nothing." in caplog.text
    assert len(run.pool.history) == 1


# ---------------------------------------------------------------- query_size


@pytest.mark.parametrize(
    ("query_size", "expected"), [(1, 1), (99, 99), (0.25, 30), (0.001, 1), (1 / 120, 1), (0.8, 96), (1.0, 100)]
)
def test_query_size_is_a_number_or_a_share_of_the_dataset(query_size, expected):
    run = fit(RandomAcquisition(query_size), max_epochs=1)
    assert len(run.query.indices) == expected


@pytest.mark.parametrize("query_size", [0, -1, 0.0, -0.1, 1.5, math.nan, math.inf, True, False])
def test_other_query_sizes_are_refused(query_size):
    message = (
        rf"`EntropyAcquisition\(query_size={re.escape(repr(query_size))}\)`: expected a number of samples \(int, at "
        r"least 1\) or a share of the dataset \(float in \(0, 1\]\)"
    )
    with pytest.raises(ValueError, match=message):
        EntropyAcquisition(query_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "top-k"}, r"NoiseStabilityAcquisition\(selection='top-k'\)`: expected one of \('topk', 'k-cent"),
        ({"passes": 0}, "`passes=0`: expected at least one pass"),
        ({"output": "logits"}, "`output='logits'`: expected one of"),
        ({"norm": "l1"}, "`norm='l1'`: expected one of"),
        ({"method": "vmap"}, "`method='vmap'`: expected one of"),
        ({"magnitude": 0.0}, r"`Noise\(magnitude=0.0\)`: must be positive"),
        ({"distribution": "cauchy"}, r"`Noise\(distribution='cauchy'\)`: expected one of"),
        ({"scope": "layer"}, r"`Noise\(scope='layer'\)`: expected one of"),
    ],
)
def test_impossible_noise_stability_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseStabilityAcquisition(5, **options)


# ---------------------------------------------------------------- setup


class Untrainable(ToyClassifier):
    """Fails the test if training begins although something could have been known to be wrong."""

    def training_step(self, batch, batch_idx):
        raise AssertionError("training began")


def test_an_ordinary_datamodule_is_refused():
    loader = DataLoader(ToyDataset(), batch_size=32)
    message = r"`EntropyAcquisition` needs an `ActiveLearningDataModule`, got NoneType: wrap your data, as in"
    with pytest.raises(MisconfigurationException, match=message):
        Trainer(max_epochs=1, callbacks=[EntropyAcquisition(5)], **QUIET).fit(Untrainable(), loader)
    plain = LightningDataModule.from_datasets(ToyDataset(), batch_size=32)
    with pytest.raises(MisconfigurationException, match="got LightningDataModule: wrap your data"):
        Trainer(max_epochs=1, callbacks=[EntropyAcquisition(5)], **QUIET).fit(Untrainable(), plain)


def test_two_acquisitions_are_refused():
    with pytest.raises(MisconfigurationException, match="Two acquisition callbacks would both label at fit end"):
        fit(EntropyAcquisition(5), RandomAcquisition(5), model=Untrainable())


def test_best_weights_without_a_checkpoint_are_refused():
    with pytest.raises(
        MisconfigurationException, match=r"`EntropyAcquisition` should score with the best weights.*Add "
    ):
        fit(EntropyAcquisition(5), QueryOptions("best"), model=Untrainable())


def test_a_sharded_strategy_is_refused():
    # a Trainer with FSDP needs a GPU, so a stand-in carries the real strategy
    trainer = SimpleNamespace(datamodule=make_data(), strategy=FSDPStrategy(), callbacks=[])
    message = r"`EntropyAcquisition` scores a clone of the whole module, which FSDPStrategy keeps in shards.*Use strat"
    with pytest.raises(MisconfigurationException, match=message):
        EntropyAcquisition(5).setup(trainer, ToyClassifier(), "fit")


def test_processes_of_their_own_need_a_pool_file(tmp_path):
    acquisition = EntropyAcquisition(5)
    trainer = Trainer(strategy="ddp_spawn", devices=2, callbacks=[acquisition], **QUIET)
    trainer.datamodule = make_data()
    message = r"labels come back only through a file. Pass `ActiveLearningDataModule\(pool_file="
    with pytest.raises(MisconfigurationException, match=message):
        acquisition.setup(trainer, ToyClassifier(), "fit")
    trainer.datamodule = make_data(pool_file=tmp_path / "pool.json")
    trainer.datamodule.setup("fit")
    check_before_training(acquisition, trainer, 1)


def test_other_stages_ask_for_nothing():
    model = ToyClassifier()
    trainer = Trainer(callbacks=[EntropyAcquisition(5), RandomAcquisition(5)], **QUIET)
    trainer.test(model, DataLoader(ToyDataset(), batch_size=64), verbose=False)


# ---------------------------------------------------------------- precision


def scores_by_hand(model: nn.Module, points: list[Tensor], passes: int) -> Tensor:
    """Score as the callback should: its noise, in eval mode, in the precision of the weights, without autocast."""
    trained = copy.deepcopy(model).eval()
    parameters = list(trained.parameters())
    with torch.no_grad(), true_float32(torch.device("cpu")):
        seeds = [(RandomStream.NOISE, 0, 0, k) for k in range(passes)]
        backend = FiniteDifferences(Predictor(trained).probabilities, parameters, Noise())
        return deviation_sizes(backend, points, seeds).mean(1).float()


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_scores_are_taken_in_true_precision_whatever_the_training_was_in(precision):
    types = []

    class Spy(NoiseStabilityAcquisition):
        def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
            types.append((next(predictor.module.parameters()).dtype, chunk[0][0].dtype, predictor(chunk[0]).dtype))
            return super().measure_chunk(predictor, chunk)

    run = fit(Spy(7, selection="topk"), precision=precision)
    trained = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    scored = torch.float64 if precision == "64-true" else torch.float32
    assert next(run.model.parameters()).dtype == trained
    assert types == [(scored, scored, scored)]
    indices = candidates_of(run)
    weights = copy.deepcopy(run.model).to(scored)
    points = [points.to(scored) for points in inputs_of(indices)]
    scores = scores_by_hand(weights, points, passes=10)
    assert run.query.indices == largest(scores, indices, 7)
    assert run.query.scores == scores.sort(descending=True).values[:7].tolist()
    exact = twin(
        weights, [points.double() for points in points], seeds=[(RandomStream.NOISE, 0, 0, k) for k in range(10)]
    )
    if scored == torch.float64:
        torch.testing.assert_close(scores.double(), exact, rtol=1e-6, atol=0)
    else:
        # float32 outputs of at most 1 are off by some 1e-6 (see the bound in test_noise_stability.py), deviations by
        # twice that, hence R = d^2 by 2 d * 2e-6
        assert ((scores - exact).abs() <= 2 * exact.sqrt() * 2e-6 + 4e-12).all()


@pytest.mark.usefixtures("unrehearsed")
def test_a_fit_inside_autocast_and_with_fast_matrix_products_is_scored_without_them():
    seen = []

    class Spy(NoiseStabilityAcquisition):
        def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
            seen.append((torch.is_autocast_enabled("cpu"), predictor(chunk[0]).dtype, products_are_exact()))
            return super().measure_chunk(predictor, chunk)

    def products_are_exact() -> bool:
        if hasattr(torch.backends.cudnn, "conv"):  # torch 2.9
            return torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        return torch.get_float32_matmul_precision() == "highest"

    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run = fit(Spy(7, selection="topk"))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [(False, torch.float32, True)]
    scores = scores_by_hand(run.model, inputs_of(candidates_of(run)), passes=10)
    assert run.query.indices == largest(scores, candidates_of(run), 7)


def test_autocast_would_have_picked_other_samples():
    # what the test above would miss if it could not tell: the same weights scored the way bf16-mixed computes
    run = fit(NoiseStabilityAcquisition(7, selection="topk"), precision="bf16-mixed")
    indices = candidates_of(run)
    trained = copy.deepcopy(run.model).eval()
    parameters, seeds = list(trained.parameters()), [(RandomStream.NOISE, 0, 0, k) for k in range(10)]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        backend = FiniteDifferences(Predictor(trained).probabilities, parameters, Noise())
        rounded = deviation_sizes(backend, inputs_of(indices), seeds).mean(1)
    assert set(largest(rounded, indices, 7)) != set(run.query.indices)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_entropy_does_not_depend_on_the_training_precision_either(precision):
    run = fit(EntropyAcquisition(7), precision=precision)
    scored = torch.float64 if precision == "64-true" else torch.float32
    indices, trained = candidates_of(run), copy.deepcopy(run.model).to(scored).eval()
    with torch.no_grad():
        scores = torch.cat([functional.entropy(trained(points.to(scored)).softmax(1)) for points in inputs_of(indices)])
    assert run.query.indices == largest(scores, indices, 7)
    assert run.query.scores == [float(scores[indices.index(index)]) for index in run.query.indices]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_a_forward_may_make_tensors_of_its_own(precision):
    class Recurrent(ToyClassifier):
        def __init__(self) -> None:
            super().__init__()
            # not an LSTM, which a processor without units for bfloat16 cannot even train in it
            self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 4)

        def forward(self, points: Tensor) -> Tensor:
            state = torch.zeros(1, len(points), 4, device=points.device)  # of the default type, as everybody writes it
            return self.head(self.rnn(points.unsqueeze(1), state)[0][:, -1])

    run = fit(NoiseStabilityAcquisition(7), model=Recurrent(), precision=precision)
    assert len(set(run.query.indices)) == 7
    assert torch.get_default_dtype() == torch.float32


# ---------------------------------------------------------------- nothing else changes


class UsersData(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.calls = {"setup": 0}
        self.mean = torch.tensor([0.25])

    def setup(self, stage: str) -> None:
        self.calls["setup"] += 1
        self.dataset = ToyDataset()
        self.shuffled = torch.randperm(120)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=16, shuffle=True)


def data_picture(data: ActiveLearningDataModule) -> dict[str, Any]:
    users = data.datamodule
    return {
        "calls": dict(users.calls),
        "tensors": [picture(t) for t in (users.mean, users.shuffled, users.dataset.points, users.dataset.targets)],
        "attributes": sorted(vars(users)),
        "same": [id(value) for value in (users.trainer, users.dataset, data.trainer)],
        "ours": sorted(vars(data)),
    }


class Witness(Callback):
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen = {
            "module": module_picture(pl_module),
            "trainer": (id(pl_module.trainer), trainer.state.stage, trainer.state.fn, trainer.global_step),
            "data": data_picture(trainer.datamodule),
            "random": random_picture(),
            "device": pl_module.device,
            "precision": (torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.is_grad_enabled()),
            "logged": dict(trainer.callback_metrics),
        }


class Particular(Callback):
    """Leaves training flags, frozen parameters and gradients behind that no rule could guess."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.train()
        pl_module.net[1].eval()
        pl_module.net[4].weight.requires_grad_(False)
        pl_module.net[0].weight.grad = torch.full_like(pl_module.net[0].weight, math.nan)


@pytest.mark.parametrize(
    "acquisition",
    [
        NoiseStabilityAcquisition(7),
        NoiseStabilityAcquisition(7, selection="kmeans++"),
        EntropyAcquisition(7),
        RandomAcquisition(7),
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_module_data_and_random_numbers_are_bit_identical_after_the_query(acquisition, precision):
    before, after = Witness(), Witness()
    data = ActiveLearningDataModule(UsersData(), initial_size=20)
    torch.set_float32_matmul_precision("high")
    try:
        fit(Particular(), before, acquisition, after, data=data, precision=precision)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert before.seen == after.seen
    assert data.pool.cycle == 1  # a query did happen in between
    flags = after.seen["module"]["training"]
    assert (flags["net.0"], flags["net.1"]) == (True, False)


def test_a_fit_without_the_callback_trains_the_same_weights():
    with_one, without = fit(NoiseStabilityAcquisition(7)), fit()
    assert all(map(torch.equal, with_one.model.state_dict().values(), without.model.state_dict().values()))


# ---------------------------------------------------------------- ckpt


class Waning(ToyClassifier):
    """Best after the first of three epochs."""

    def on_train_epoch_end(self) -> None:
        self.log("quality", float(-self.current_epoch))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_best_checkpoint_scores_if_asked_to(tmp_path, precision):
    picks = {}
    for ckpt in ("last", "best"):
        acquisition = EntropyAcquisition(7)
        checkpoint = ModelCheckpoint(tmp_path / ckpt, monitor="quality", mode="max")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Waning()
        run = fit(
            acquisition,
            QueryOptions(ckpt),
            checkpoint,
            model=model,
            max_epochs=3,
            enable_checkpointing=True,
            precision=precision,
        )
        last = copy.deepcopy(run.model)
        weights = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
        assert not torch.equal(weights["net.0.weight"], last.net[0].weight)
        if ckpt == "best":
            last.load_state_dict(weights)
        scoring = last.float().eval()
        indices = candidates_of(run)
        with torch.no_grad():
            scores = torch.cat([functional.entropy(scoring(points).softmax(1)) for points in inputs_of(indices)])
        picks[ckpt] = run.query.indices
        assert run.query.indices == largest(scores, indices, 7)
    assert picks["last"] != picks["best"]


def test_a_checkpoint_callback_that_saved_nothing_is_reported(tmp_path):
    acquisition, data = EntropyAcquisition(5), make_data()
    with pytest.raises(MisconfigurationException, match=r"no `ModelCheckpoint` saved any. Add one with `monitor=`"):
        fit(
            acquisition,
            QueryOptions("best"),
            ModelCheckpoint(tmp_path, every_n_epochs=50),
            data=data,
            enable_checkpointing=True,
        )
    assert len(data.pool.history) == 1


# ---------------------------------------------------------------- strategies of one's own


class Features(Acquisition):
    """Measures the inputs themselves, so that every row says whose it is."""

    needs_labeled = True

    def __init__(self, query_size: int, queries: list[Query]) -> None:
        super().__init__(query_size)
        self.queries = queries

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        return batch[0]

    def select(self, query: Query) -> list[int]:
        self.queries.append(query)
        return query.pick(torch.arange(query.budget))


@pytest.mark.usefixtures("unrehearsed")
def test_a_strategy_gets_the_rows_of_the_pool_and_of_the_labeled_part():
    queries: list[Query] = []
    data, points = make_data(initial_size=[90, 3, 57, 4], pool_batch_size=3), ToyDataset().points
    run = fit(Features(5, queries), data=data, max_epochs=1)
    (query,) = queries
    assert list(query.indices) == candidates_of(run)
    assert torch.equal(query.pool, points[torch.tensor(query.indices)])
    assert torch.equal(query.labeled, points[[3, 4, 57, 90]])  # in dataset order, not in that of the labeling
    assert query.budget == 5
    assert (
        torch.rand(3, generator=query.generator).tolist()
        == torch.rand(3, generator=make_generator(RandomStream.SELECTION, 0, 0)).tolist()
    )
    assert run.query.indices == [0, 1, 2, 5, 6]
    assert all(type(index) is int for index in run.query.indices)
    assert run.query.scores is None  # rows of features are no scores
    with pytest.raises(AttributeError, match="cannot assign to field"):
        query.budget = 6


@pytest.mark.usefixtures("unrehearsed")
def test_a_strategy_that_does_not_ask_for_the_labeled_part_gets_none_of_it():
    seen = []

    class Spy(EntropyAcquisition):
        def measure(self, predictor: Predictor, batch: Any) -> Tensor:
            seen.append(len(batch[0]))
            return super().measure(predictor, batch)

        def select(self, query: Query) -> list[int]:
            assert query.labeled is None
            return super().select(query)

    fit(Spy(5))
    assert sum(seen) == 100


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            lambda query: list(query.indices)[:4],
            r"dataset indices of the query, got 4 \(4 distinct, 0 not in",
        ),
        (lambda query: [query.indices[0]] * 5, r"got 5 \(1 distinct, 0 not in the query\)"),
        (lambda query: [*query.indices[:4], 10_000], r"got 5 \(5 distinct, 1 not in the query\).*`query.pick\(rows\)`"),
        (lambda query: [], r"got 0 \(0 distinct"),
        (lambda query: list(query.indices)[:6], r"got 6 \(6 distinct"),
    ],
)
def test_wrong_picks_are_refused(select, message):
    class Wrong(EntropyAcquisition):
        def select(self, query: Query) -> list[int]:
            return select(query)

    data = make_data()
    with pytest.raises(RuntimeError, match=r"`Wrong.select` must return 5 distinct .*" + message):
        fit(Wrong(5), data=data)
    assert len(data.pool.history) == 1


def test_labeled_samples_are_no_picks():
    class Again(EntropyAcquisition):
        def select(self, query: Query) -> list[int]:
            return [3, *query.indices[:4]]

    with pytest.raises(RuntimeError, match=r"got 5 \(5 distinct, 1 not in the query\)"):
        fit(Again(5), data=make_data(initial_size=[3, 4, 5, 6]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_measurements_name_the_samples(value):
    class Broken(Acquisition):
        def measure(self, predictor: Predictor, batch: Any) -> Tensor:
            points = ToyDataset().points
            broken = (batch[0] == points[17]).all(1) | (batch[0] == points[64]).all(1)
            return batch[0].sum(1).masked_fill(broken, value)

    data = make_data(initial_size=[0, 1, 2, 3])
    message = r"`Broken`: 2 of 116 samples have NaN or infinite measurements, first \[17, 64\] \(dataset indices\)"
    with pytest.raises(ValueError, match=message):
        fit(Broken(5), data=data)
    assert len(data.pool.history) == 1


def test_a_diverged_model_is_told_so_and_its_module_stays_as_it_was():
    class Diverged(ToyClassifier):
        def on_train_end(self) -> None:
            self.net[4].bias.data.fill_(math.nan)

    model, data = Diverged(), make_data()
    with pytest.raises(ValueError, match=r"`NoiseStabilityAcquisition`: .* cycle 0 diverged, .* 1 of 9 .*'net.4.bias'"):
        fit(NoiseStabilityAcquisition(5), model=model, data=data)
    assert model.training
    assert model.net[4].bias.isnan().all()
    assert len(data.pool.history) == 1


def test_constant_measurements_are_refused():
    class Constant(Acquisition):
        def measure(self, predictor: Predictor, batch: Any) -> Tensor:
            return torch.zeros(len(batch[0]))

    with pytest.raises(ValueError, match=r"`Constant`: all 100 samples have the same measurement, so none comes first"):
        fit(Constant(5))


def test_measurements_of_another_length_are_refused():
    class Mean(Acquisition):
        def measure(self, predictor: Predictor, batch: Any) -> Tensor:
            return predictor(batch).mean(0)

    with pytest.raises(ValueError, match=r"Expected one row per sample, got \(4,\) for 8 samples"):
        fit(Mean(5))


def test_prepare_comes_once_per_query_and_leaves_nothing_behind():
    contexts: list[QueryContext] = []

    class Prepared(EntropyAcquisition):
        def prepare(self, context: QueryContext) -> None:
            assert not hasattr(self, "direction")  # nothing of the cycle before, nor of the rehearsal
            if not context.rehearsal:
                contexts.append(context)
            self.direction = torch.ones(4)

        def measure(self, predictor: Predictor, batch: Any) -> Tensor:
            return predictor(batch) @ self.direction

    acquisition, data = Prepared(5), make_data(seed=3)
    attributes = {*vars(acquisition), "log", "log_dict"}  # the last two are Lightning's gift to every callback
    for cycle in range(2):
        # another trainer may well share the callback, even if `run_cycles` makes a fresh one
        run = fit(acquisition, data=data)
        context = contexts[cycle]
        assert (context.seed, context.cycle) == (3, cycle)
        assert (context.num_candidates, context.budget) == (len(candidates_of(run)), 5)
        first = next(iter(run.data.pool_dataloader(candidates_of(run)[:64])))  # a batch at most
        assert torch.equal(context.batch[0], first.batch[0])
        assert context.predictor.module is not run.model
        assert set(vars(acquisition)) == attributes
    assert len(contexts) == 2


def test_an_acquisition_is_abstract():
    with pytest.raises(TypeError, match=r"abstract method '?measure"):
        Acquisition(5)


# ---------------------------------------------------------------- the module's own ways


class Transferring(ToyClassifier):
    """Augments on the device while it trains, as a user would."""

    seen: list[tuple[str, bool, bool]]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.seen.append((self.trainer.state.stage.value, self.trainer.training, self.training))
        points, labels = batch
        return (points + 100 if self.trainer.training else points - 1), labels


@pytest.mark.usefixtures("unrehearsed")
def test_transfer_hooks_know_that_nobody_trains_while_scoring():
    model = make_model()
    model.__class__ = Transferring
    Transferring.seen = []
    with pytest.warns(UserWarning, match="You have overridden `on_after_batch_transfer` in `LightningModule`"):
        run = fit(EntropyAcquisition(7), model=model, max_epochs=1)
    assert Transferring.seen[0] == ("train", True, True)
    scoring = Transferring.seen[1:]
    assert len(scoring) == 5  # the examples for `prepare`, then four batches
    assert set(scoring) == {("predict", False, False)}
    assert run.trainer.state.stage != "predict"
    indices, trained = candidates_of(run), copy.deepcopy(run.model).eval()
    with torch.no_grad():
        scores = torch.cat([functional.entropy(trained(points - 1).softmax(1)) for points in inputs_of(indices)])
    assert run.query.indices == largest(scores, indices, 7)


def test_the_transfer_hooks_of_the_datamodule_come_first():
    class Shifted(UsersData):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 2, batch[1]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return (batch[0] if self.trainer.training else batch[0] + 3), batch[1]

    run = fit(EntropyAcquisition(7), data=ActiveLearningDataModule(Shifted(), initial_size=20, pool_batch_size=32))
    indices, trained = candidates_of(run), copy.deepcopy(run.model).eval()
    with torch.no_grad():
        scores = torch.cat([functional.entropy(trained(2 * points + 3).softmax(1)) for points in inputs_of(indices)])
    assert run.query.indices == largest(scores, indices, 7)


def test_a_compiled_module_is_scored_and_left_alone():
    class Silent(ToyClassifier):
        def training_step(self, batch, batch_idx):  # without `self.log`, which dynamo warns about
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    before, after, model = Witness(), Witness(), Silent()
    data = ActiveLearningDataModule(UsersData(), initial_size=20, pool_batch_size=32)
    callbacks = [before, NoiseStabilityAcquisition(7, selection="topk"), after]
    trainer = Trainer(max_epochs=1, callbacks=callbacks, **QUIET)
    trainer.fit(torch.compile(model, backend="eager"), data)
    run = SimpleNamespace(pool=data.pool, query=data.pool.history[-1])
    assert before.seen == after.seen
    weights = make_model()
    weights.load_state_dict(model.state_dict())
    scores = scores_by_hand(weights, inputs_of(candidates_of(run)), passes=10)
    assert run.query.indices == largest(scores, candidates_of(run), 7)


def test_an_acquisition_step_comes_before_everything():
    class Stepping(ToyClassifier):
        def acquisition_step(self, batch):
            return self(batch[0]) * torch.tensor([1.0, 0, 0, 0])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Stepping()
    run = fit(EntropyAcquisition(7), model=model)
    indices, trained = candidates_of(run), copy.deepcopy(run.model).eval()
    with torch.no_grad():
        logits = torch.cat([trained(points) * torch.tensor([1.0, 0, 0, 0]) for points in inputs_of(indices)])
    assert run.query.indices == largest(functional.entropy(logits.softmax(1)), indices, 7)


def test_tokens_and_dictionaries_go_through_a_fit():
    class Tokens(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            ids = torch.randint(9, (5,), generator=make_generator(index))
            return {"input_ids": ids, "labels": ids[0] % 3}

    class Model(ToyClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3))

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(input_ids)}

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch["input_ids"])["logits"], batch["labels"])

    run = fit(NoiseStabilityAcquisition(5), model=Model(), data=ActiveLearningDataModule(Tokens(), initial_size=10))
    assert len(set(run.query.indices)) == 5
    assert all(score > 0 for score in run.query.scores)


# ---------------------------------------------------------------- bookkeeping


@pytest.mark.parametrize("strategy", [NoiseStabilityAcquisition, EntropyAcquisition, RandomAcquisition])
def test_an_acquisition_pickles_before_and_after_a_fit(strategy):
    acquisition = strategy(5)
    settings = vars(acquisition).copy()
    assert vars(pickle.loads(pickle.dumps(acquisition))) == settings
    first = fit(acquisition)
    again = pickle.loads(pickle.dumps(acquisition))
    # a fit leaves behind that it trained; and Lightning gives every callback the `log` of its module
    assert {name: value for name, value in vars(again).items() if name not in ("log", "log_dict")} == {
        **settings,
        "_trained": True,
    }
    assert fit(again).query.indices == first.query.indices


def test_the_query_is_timed_saved_and_announced(tmp_path, caplog):
    data = make_data(pool_file=tmp_path / "pool.json")
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        run = fit(EntropyAcquisition(5), data=data)
    assert set(run.query.seconds) == {"score", "select", "track"}
    assert all(0 <= seconds < 60 for seconds in run.query.seconds.values())
    assert re.search(r"EntropyAcquisition: labeled 5 of 100 candidates in \d+\.\d s; Pool\(25 of 120", caplog.text)
    reloaded = make_data(pool_file=tmp_path / "pool.json")
    reloaded.setup("fit")
    assert reloaded.pool.history == run.pool.history


def test_a_cycle_that_was_queried_before_is_not_queried_again(caplog):
    data = make_data()
    fit(EntropyAcquisition(5), data=data)
    data.begin_cycle(0)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(EntropyAcquisition(5), data=data)
    assert "EntropyAcquisition: cycle 0 was queried before; nothing is labeled again." in caplog.text
    assert data.pool.cycle == 1


def test_the_tensor_dataset_of_everybody_works():
    data = ActiveLearningDataModule(
        TensorDataset(ToyDataset().points, ToyDataset().targets), initial_size=0.1, test_dataset=ToyDataset(seed=1)
    )
    run = fit(NoiseStabilityAcquisition(0.1), data=data)
    assert run.pool.num_labeled == 24


def test_a_model_that_samples_in_eval_mode_is_refused():
    class Sampling(ToyClassifier):
        def forward(self, points: Tensor) -> Tensor:
            return super().forward(points) + 0.1 * torch.randn(len(points), 4)

    with pytest.raises(ValueError, match=r"Two clean passes .* differ by up to 0\.\d+: the model draws random numbers"):
        fit(NoiseStabilityAcquisition(7, passes=2), model=Sampling())
