"""Modules that nobody here wrote, through real fits: the promise is that they need no change."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.demos.lstm import LightningLSTM, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.models import VisionTransformer, mobilenet_v2, resnet18
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition
from lightning_al.numerics.seeding import RandomStream, make_generator
from tests.noise_stability_twin import twin
from tests.snapshot import module_picture

SIZE, START, PICKS = 21, 12, 4  # 9 candidates in batches of 6: the last one is partial


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=make_generator(seed))


def classes(*shape: int, below: int = 3) -> Tensor:
    return torch.randint(below, shape, generator=make_generator(1))


@pytest.fixture(autouse=True)
def one_thread():
    """Keep many small convolutions from waiting for each other where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def torch_uncertainty() -> ModuleType:
    from torch_uncertainty import routines  # where tests are only collected, its import would take as long as they do

    return routines


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., ActiveLearningDataModule]:
    return partial(run, tmp_path)


def run(
    folder: Path,
    model: LightningModule,
    dataset: Dataset,
    val_dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> ActiveLearningDataModule:
    data = ActiveLearningDataModule(dataset, initial_size=START, batch_size=6, val_dataset=val_dataset)
    acquisition = NoiseStabilityAcquisition(PICKS, **{"passes": 2, "selection": "topk", **options})
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks[:1], acquisition, *callbacks[1:]],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer.fit(model, data)
    return data


def check(data: ActiveLearningDataModule) -> None:
    first, query = data.pool.history
    assert len(set(query.indices)) == PICKS
    assert not set(query.indices) & set(first.indices)
    assert all(0 <= index < SIZE for index in query.indices)
    assert all(math.isfinite(score) and score > 0 for score in query.scores)
    assert query.scores == sorted(query.scores, reverse=True)
    assert len(set(query.scores)) > 1


def by_hand(
    data: ActiveLearningDataModule,
    model: nn.Module,
    inputs: Tensor,
    call: Callable[[nn.Module, Tensor], Tensor] = lambda model, inputs: model(inputs),
    **options: Any,
) -> None:
    """Check the picks against the naive twin on the trained module, and every score within float32's reach."""
    labeled = set(data.pool.history[0].indices)
    indices = [index for index in range(SIZE) if index not in labeled]
    exact = [batch.double() if batch.is_floating_point() else batch for batch in inputs[indices].split(6)]
    expected = twin(model, exact, seeds=[(RandomStream.NOISE, 0, 0, k) for k in range(2)], call=call, **options)
    scores = torch.tensor(data.pool.history[1].scores, dtype=torch.float64)
    rows = [indices.index(index) for index in data.pool.history[1].indices]
    torch.testing.assert_close(scores, expected[rows], rtol=0.05, atol=0)
    others = [row for row in range(len(indices)) if row not in rows]
    assert expected[rows].min() > 0.95 * expected[others].max()


# ---------------------------------------------------------------- Lightning's own demos


def test_boring_model(fit):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, dataset = BoringModel(), RandomDataset(32, SIZE)
    data = fit(model, dataset, val_dataset=RandomDataset(32, 4), output="identity")
    check(data)
    by_hand(data, model, dataset.data, output="identity")


class Offline:
    """The demos download WikiText-2 in `prepare_data`, which Lightning calls whatever the data."""

    def prepare_data(self) -> None:
        pass


class Transformer(Offline, LightningTransformer):
    pass


class LSTM(Offline, LightningLSTM):
    pass


def small(demo: type[LightningModule]) -> LightningModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = demo(vocab_size=11)
        # the demos' own networks, but not with their millions of weights
        kind, layers = type(model.model), {"ninp": 8, "nhid": 8, "nlayers": 1}
        model.model = kind(vocab_size=11, dropout=0.2 if kind is not SimpleLSTM else 0.0, **layers)
    return model


def text() -> TensorDataset:
    ids = classes(SIZE, 6, below=11)
    return TensorDataset(ids[:, :-1], ids[:, 1:])


def test_a_language_model_that_takes_targets_is_shown_three_ways_out(fit):
    # its forward takes the targets, which are the labels of the pool
    with pytest.raises(
        TypeError, match=r"labels of the pool are never passed.*Three ways out: \(1\) define `acquisition_step"
    ):
        fit(small(Transformer), text())


def test_a_language_model_without_forward_is_shown_three_ways_out(fit):
    with pytest.raises(TypeError, match=r"LSTM defines no `forward`. Three ways out: \(1\) define `acquisition_step"):
        fit(small(LSTM), text())


class SteppingTransformer(Transformer):
    def acquisition_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return self(inputs, targets).view(*inputs.shape, -1)


class SteppingLSTM(LSTM):
    def acquisition_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, _ = batch
        outputs, _ = self.model(inputs, self.model.init_hidden(len(inputs)))
        return outputs.view(*inputs.shape, -1)


@pytest.mark.parametrize("demo", [SteppingTransformer, SteppingLSTM])
def test_an_acquisition_step_is_all_that_a_language_model_needs(fit, demo):
    data = fit(small(demo), text())
    check(data)


def test_a_language_model_is_scored_as_by_hand(fit):
    model, dataset = small(SteppingLSTM), text()
    data = fit(model, dataset)
    # (B, T, C) of log-probabilities to (B, C, T)
    by_hand(data, model, dataset.tensors[0], lambda model, ids: model.acquisition_step((ids, ids)).permute(0, 2, 1))


# ---------------------------------------------------------------- torchvision


class Bare(LightningModule):
    """The least that a LightningModule can be."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # statistics are the mean over all batches: two of them must do

    def forward(self, images: Tensor) -> Any:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        return nn.functional.cross_entropy(outputs["out"] if isinstance(outputs, dict) else outputs, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def vit(num_classes: int) -> VisionTransformer:
    return VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=num_classes
    )


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(resnet18, marks=pytest.mark.sweep),
        pytest.param(partial(mobilenet_v2, width_mult=0.25), marks=pytest.mark.sweep),
        vit,
    ],
    ids=["resnet", "mobilenet", "vit"],
)
def test_torchvision_classifiers(fit, make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Bare(make(num_classes=3))
    images = normal(SIZE, 3, 32, 32)
    data = fit(model, TensorDataset(images, classes(SIZE)), magnitude=1e-2)
    check(data)
    if make is not resnet18:  # eleven million weights make the twin slow
        by_hand(data, model, images, magnitude=1e-2)


@pytest.mark.sweep
def test_torchvision_segmentation(fit):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Bare(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3))
    images = normal(SIZE, 3, 32, 32)
    data = fit(model, TensorDataset(images, classes(SIZE, 32, 32)), magnitude=1e-2)
    check(data)
    by_hand(data, model, images, lambda model, images: model(images)["out"], magnitude=1e-2)


def test_confined_noise_and_a_frozen_backbone(fit):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frozen = Bare(vit(num_classes=3))
    confined = copy.deepcopy(frozen)
    for name, parameter in frozen.net.named_parameters():
        parameter.requires_grad_(name.startswith("heads"))
    dataset = TensorDataset(normal(SIZE, 3, 32, 32), classes(SIZE))
    # the head starts at zero: noise of a thousandth of that would move nothing that float32 can see
    data = fit(frozen, dataset, magnitude=1.0)
    check(data)
    by_hand(data, frozen, dataset.tensors[0], magnitude=1.0, noisy=["net.heads.head.weight", "net.heads.head.bias"])
    data = fit(confined, dataset, modules=["heads"], magnitude=1.0)
    check(data)
    by_hand(data, confined, dataset.tensors[0], magnitude=1.0, noisy=["net.heads.head.weight", "net.heads.head.bias"])


# ---------------------------------------------------------------- torch-uncertainty


def mlp(outputs: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, outputs))


def test_torch_uncertainty_classification_routine(fit, torch_uncertainty):
    net = mlp(10)
    routine = torch_uncertainty.ClassificationRoutine(
        model=net, num_classes=10, loss=nn.CrossEntropyLoss(), optim_recipe=torch.optim.Adam(net.parameters(), 1e-2)
    )
    points, labels = normal(SIZE, 5), classes(SIZE, below=10)
    data = fit(routine, TensorDataset(points, labels), TensorDataset(points, labels))
    check(data)
    by_hand(data, net, points)


def test_torch_uncertainty_regression_routine(fit, torch_uncertainty):
    net = mlp(1)
    routine = torch_uncertainty.RegressionRoutine(
        model=net, output_dim=1, loss=nn.MSELoss(), optim_recipe=torch.optim.Adam(net.parameters(), 1e-2)
    )
    points = normal(SIZE, 5)
    dataset = TensorDataset(points, points.sum(1))
    assert routine(points).shape == (SIZE,)
    with pytest.raises(ValueError, match=r'RegressionRoutine has one output per sample.*output="identity"'):
        fit(copy.deepcopy(routine), dataset, dataset)
    data = fit(routine, dataset, dataset, output="identity")
    check(data)
    by_hand(data, net, points, output="identity")


def test_an_ensemble_routine_is_shown_three_ways_out(fit, torch_uncertainty):
    # an ensemble's forward stacks the answers of its members along the batch
    class Members(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([mlp(10), mlp(10)])

        def forward(self, points: Tensor) -> Tensor:
            return torch.cat([member(points) for member in self.members])

    class Averaged(torch_uncertainty.ClassificationRoutine):
        def acquisition_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self(batch[0]).unflatten(0, (2, -1)).log_softmax(-1).mean(0)

    points, labels = normal(SIZE, 5), classes(SIZE, below=10)
    dataset = TensorDataset(points, labels)

    def routine(kind: type[LightningModule]) -> LightningModule:
        net = Members()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        model = kind(model=net, num_classes=10, loss=nn.CrossEntropyLoss(), is_ensemble=True, optim_recipe=optimizer)
        model.format_batch_fn = Repeat()
        return model

    with pytest.raises(ValueError, match=r"got \(16, 3\) for 8 samples.*Three ways out"):
        fit(routine(torch_uncertainty.ClassificationRoutine), dataset, dataset)
    check(fit(routine(Averaged), dataset, dataset))


class Repeat(nn.Module):
    """Repeat the targets for both members, as torch-uncertainty's own transforms do; the inputs stay."""

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return batch[0], batch[1].repeat(2)


class Witness(Callback):
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen = module_picture(pl_module)


def test_the_module_is_bit_identical_where_metrics_and_buffers_are_many(fit, torch_uncertainty):
    net = mlp(10)
    routine = torch_uncertainty.ClassificationRoutine(
        model=net, num_classes=10, loss=nn.CrossEntropyLoss(), optim_recipe=torch.optim.Adam(net.parameters(), 1e-2)
    )
    points, labels = normal(SIZE, 5), classes(SIZE, below=10)
    dataset = TensorDataset(points, labels)
    before, after = Witness(), Witness()
    check(fit(routine, dataset, dataset, callbacks=[before, after]))
    assert before.seen == after.seen
