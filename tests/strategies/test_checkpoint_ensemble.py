import copy
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import TensorDataset

from lightning_al import ActiveLearningDataModule, EntropyAcquisition, run_cycles
from lightning_al.numerics.seeding import seeded
from lightning_al.strategies.checkpoint_ensemble import CheckpointEnsembleAcquisition
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.runs import make_trainer


class Epochs(Callback):
    """Keeps a whole copy of the module, in double precision, at the end of each epoch."""

    def __init__(self):
        self.modules = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.modules.append(copy.deepcopy(pl_module).double().eval())


class StopAfter(Callback):
    """What early stopping does, without a metric."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def fit(acquisition, *callbacks, model=None, data=None, **options):
    """Return the datamodule after a fit, and the module as it was at the end of each epoch."""
    data = ActiveLearningDataModule(ToyDataset(), initial_size=20, batch_size=8) if data is None else data
    epochs = Epochs()
    with seeded(0):
        trainer = make_trainer(acquisition, *callbacks, epochs, **{"max_epochs": 4, **options})
        trainer.fit(ToyClassifier() if model is None else model, data)
    return data, epochs.modules


def information(modules, inputs):
    """The mutual information between the label and which module predicts, in NumPy; (K, N, C, positions)."""
    with torch.no_grad():
        logits = torch.stack(
            [
                module(inputs.double()).flatten(2) if inputs.ndim > 2 else module(inputs.double())[..., None]
                for module in modules
            ]
        )
    probs_kncp = logits.softmax(2).numpy()
    entropy = -(probs_kncp * np.log(probs_kncp)).sum(2).mean(0)
    consensus = probs_kncp.mean(0)
    return (-(consensus * np.log(consensus)).sum(1) - entropy).mean(1)


def check(data, modules, inputs):
    """Compare the last query with scores by hand."""
    taken = set(data.pool.labeled_by(data.pool.cycle - 1))
    candidates = [index for index in range(data.pool.size) if index not in taken]
    expected = dict(zip(candidates, information(modules, inputs[candidates]), strict=True))
    query = data.pool.history[-1]
    # differences of entropies near 1, in single precision
    np.testing.assert_allclose(query.scores, [expected[index] for index in query.indices], rtol=1e-4, atol=2e-6)
    assert min(query.scores) >= sorted(expected.values())[-len(query.indices)] - 2e-6
    assert max(query.scores) > 1e-3


@pytest.mark.parametrize(("epochs", "used"), [(2, 2), (3, 3), (10, 4)])
def test_scores_are_the_information_over_the_last_epochs(epochs, used):
    data, modules = fit(CheckpointEnsembleAcquisition(7, epochs=epochs))
    assert len(modules) == 4
    check(data, modules[-used:], ToyDataset().points)


def test_low_precision_weights_are_compared_in_single_precision():
    data, modules = fit(CheckpointEnsembleAcquisition(7), precision="bf16-true", max_epochs=2)
    check(data, modules, ToyDataset().points)


class Dense(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def test_dense_scores_are_means_over_the_positions():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(30, 2, 5, 6, generator=generator)
    dataset = TensorDataset(images, torch.randint(3, (30, 5, 6), generator=generator))
    data, modules = fit(
        CheckpointEnsembleAcquisition(4),
        model=Dense(),
        data=ActiveLearningDataModule(dataset, initial_size=12, batch_size=6),
    )
    check(data, modules, images)


def test_a_routine_that_nobody_here_wrote(tmp_path):
    from torch_uncertainty.routines import ClassificationRoutine

    net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
    routine = ClassificationRoutine(
        model=net, num_classes=4, loss=nn.CrossEntropyLoss(), optim_recipe=torch.optim.Adam(net.parameters(), 0.02)
    )
    dataset = ToyDataset()
    data = ActiveLearningDataModule(dataset, initial_size=20, batch_size=8, val_dataset=dataset)
    _, modules = fit(
        CheckpointEnsembleAcquisition(7), model=routine, data=data, num_sanity_val_steps=0, logger=CSVLogger(tmp_path)
    )
    check(data, modules, dataset.points)


def test_every_cycle_starts_its_collection_afresh(tmp_path):
    acquisition, recorders = CheckpointEnsembleAcquisition(6), []
    data = ActiveLearningDataModule(ToyDataset(), initial_size=20, batch_size=8)

    def make(cycle):
        recorders.append(Epochs())
        return make_trainer(acquisition, recorders[-1], max_epochs=3), ToyClassifier()

    records = run_cycles(make, data, cycles=3, run_dir=tmp_path, config={})
    assert [record["queried"] for record in records] == [6, 6, 6]
    assert len(recorders[-1].modules) == 3
    check(data, recorders[-1].modules, ToyDataset().points)


class AtFitEnd(Callback):
    def __init__(self, acquisition):
        self.acquisition = acquisition

    def on_train_end(self, trainer, pl_module):
        self.held = len(pickle.dumps(self.acquisition))


def test_it_is_small_again_after_the_fit():
    acquisition, plain = CheckpointEnsembleAcquisition(7), EntropyAcquisition(7)
    held = AtFitEnd(acquisition)
    fit(acquisition, held, max_epochs=2)
    fit(plain, max_epochs=2)  # Lightning leaves something on every callback
    allowed = len(pickle.dumps(plain)) + 200
    assert held.held > allowed
    assert len(pickle.dumps(acquisition)) < allowed
    assert pickle.loads(pickle.dumps(acquisition)).epochs == 10


def test_weights_of_a_failed_fit_are_not_compared_with_those_of_the_next():
    acquisition = CheckpointEnsembleAcquisition(7)

    class Failing(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(acquisition, Failing())
    data, modules = fit(
        acquisition, data=ActiveLearningDataModule(ToyDataset(), initial_size=30, batch_size=8), max_epochs=2
    )
    check(data, modules, ToyDataset().points)


def test_one_epoch_is_refused_before_it_is_trained():
    with pytest.raises(MisconfigurationException, match=r"at least 2 epochs of one fit, but this fit has max_epochs=1"):
        fit(CheckpointEnsembleAcquisition(7), max_epochs=1)


@pytest.mark.parametrize("options", [{"callbacks": [StopAfter(1)]}, {"max_epochs": -1, "max_steps": 2}])
def test_a_fit_that_ends_in_its_first_epoch_is_refused(options):
    callbacks = options.pop("callbacks", [])
    with pytest.raises(MisconfigurationException, match=r"but this fit finished 1\. Train for longer \(`Trainer\(max"):
        fit(CheckpointEnsembleAcquisition(7), *callbacks, **options)


def test_a_fit_that_was_stopped_early_counts_as_long_as_it_was():
    data, modules = fit(CheckpointEnsembleAcquisition(7, epochs=3), StopAfter(2), max_epochs=50)
    assert len(modules) == 2
    check(data, modules, ToyDataset().points)


@pytest.mark.parametrize("batches", [True, 3])
def test_a_trial_run_scores_though_it_has_one_epoch_only(batches):
    data, _ = fit(CheckpointEnsembleAcquisition(7), fast_dev_run=batches)
    assert data.pool.cycle == 0


@pytest.mark.parametrize("epochs", [1, 0, -3])
def test_refuses_less_than_two_epochs(epochs):
    with pytest.raises(ValueError, match=rf"`CheckpointEnsembleAcquisition\(epochs={epochs}\)`: expected at least 2"):
        CheckpointEnsembleAcquisition(7, epochs=epochs)
