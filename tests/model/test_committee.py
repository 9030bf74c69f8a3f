import copy
import logging
import signal
import threading
import warnings
from functools import partial, update_wrapper
from types import MethodType

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.compile import from_compiled
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_al import ActiveLearningDataModule, RandomAcquisition
from lightning_al.model.committee import copy_untrained, reinitialize, train_member
from lightning_al.model.weight_swap import copy_weights
from lightning_al.numerics.seeding import seeded
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.runs import make_trainer
from tests.snapshot import module_picture, random_picture

ENTROPY = (4, 0, 0, 1)


class Plain(LightningModule):
    """Its training draws no random numbers, and notes what it goes through in a list that copies share."""

    def __init__(self, notes=None):
        super().__init__()
        with seeded(0):
            self.net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self.notes = Shared() if notes is None else notes

    def forward(self, points):
        return self.net(points)

    def on_train_start(self):
        self.notes.append({"trainer": self.trainer, "start": copy_weights(self), "points": [], "epochs": 0})

    def training_step(self, batch, batch_idx):
        self.notes[-1]["points"].append(batch[0])
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        self.notes[-1]["epochs"] += 1

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Shared(list):
    def __deepcopy__(self, memo):
        return self


class Data(LightningDataModule):
    """Loaders without a shuffle, and a hook that asks the trainer what it does."""

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.seen = []

    def train_dataloader(self):
        return DataLoader(ToyDataset(), batch_size=8, **self.options)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.seen.append((self.trainer, self.trainer.training))
        return batch


class Train(Callback):
    """Trains one more member at fit end, and keeps it."""

    def __init__(self, entropy=ENTROPY, **options):
        self.entropy = entropy
        self.options = {"fresh": False, **options}

    def setup(self, trainer, pl_module, stage):
        self.start = copy_untrained(pl_module)

    def on_fit_end(self, trainer, pl_module):
        with torch.no_grad():  # as while scoring
            self.weights = train_member(self.start, trainer, self.entropy, **self.options)
            assert not torch.is_grad_enabled()


def fit(*callbacks, model=None, data=None, **options):
    model = Plain() if model is None else model
    data = ActiveLearningDataModule(Data(), initial_size=20) if data is None else data
    with seeded(0):
        trainer = make_trainer(*callbacks, **{"max_epochs": 3, **options})
        trainer.fit(model, data)
    return model, data, trainer


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def labeled_points(data):
    return ToyDataset().points[sorted(data.pool.labeled)]


# ---------------------------------------------------------------- what a member goes through


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, 3),
        ({"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}, 3),
        ({"gradient_clip_val": 1e-3}, 3),
        ({"accumulate_grad_batches": 2}, 3),
        ({"limit_train_batches": 1}, 3),
        ({"max_epochs": -1, "max_steps": 5}, 2),
        ({"precision": "64-true"}, 3),
        ({"precision": "bf16-mixed", "max_epochs": 1}, 1),
        ({"precision": "bf16-true", "max_epochs": 1}, 1),
        ({"callbacks": [EarlyStopping("train/loss", stopping_threshold=100.0)]}, 1),
        ({"fast_dev_run": True}, 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),  # no object's address in a name
)
def test_without_randomness_a_member_becomes_bit_for_bit_what_the_outer_module_became(options, epochs):
    callbacks = options.pop("callbacks", []) if "callbacks" in (options := dict(options)) else []
    train = Train()
    model, _, trainer = fit(*callbacks, train, **options)
    first, second = model.notes
    assert first["epochs"] == second["epochs"] == epochs
    assert equal(train.weights, copy_weights(model))
    assert not equal(train.weights, second["start"])
    assert second["trainer"] is not trainer
    assert (second["trainer"].max_epochs, second["trainer"].max_steps) == (trainer.max_epochs, trainer.max_steps)


def test_the_same_seed_gives_the_same_member_and_another_one_another():
    weights = []
    for entropy in (ENTROPY, ENTROPY, (4, 0, 0, 2)):
        train = Train(entropy, fresh=True)
        model, _, _ = fit(train)
        weights.append(train.weights)
        first, second = model.notes
        assert not torch.equal(first["start"]["net.0.weight"], second["start"]["net.0.weight"])
    assert equal(weights[0], weights[1])
    assert not torch.equal(weights[0]["net.0.weight"], weights[2]["net.0.weight"])


def test_a_member_sees_the_labeled_part_once_per_epoch():
    data = ActiveLearningDataModule(ToyDataset(), initial_size=20, batch_size=8)
    model, data, _ = fit(Train(), data=data, max_epochs=2)
    expected = labeled_points(data)
    seen = torch.cat(model.notes[1]["points"])
    for epoch in seen.split(20):
        assert torch.equal(epoch.unique(dim=0), expected.unique(dim=0))
    assert not torch.equal(seen[:20], torch.cat(model.notes[0]["points"])[:20]), "in an order of its own"


def test_a_bootstrap_sees_one_resample_in_all_epochs():
    resamples = []
    for entropy in (ENTROPY, ENTROPY, (4, 0, 0, 2)):
        model, data, _ = fit(Train(entropy, bootstrap=True), max_epochs=2)
        first, second = torch.cat(model.notes[1]["points"]).split(20)
        assert torch.equal(first, second)
        kinds = first.unique(dim=0)
        assert 8 <= len(kinds) < 20  # 63 % of 20, in expectation
        expected = labeled_points(data)
        assert all((expected == point).all(1).any() for point in kinds)
        resamples.append(first)
    assert torch.equal(resamples[0], resamples[1])
    assert not torch.equal(resamples[0], resamples[2])


def test_a_member_on_one_device_sees_all_that_a_distributed_sampler_shares_out():
    sampler = DistributedSampler(ToyDataset(), num_replicas=2, rank=1, shuffle=False)
    data = ActiveLearningDataModule(Data(sampler=sampler), initial_size=20)
    model, data, _ = fit(Train(), data=data, max_epochs=1, use_distributed_sampler=False)
    outer, member = (torch.cat(notes["points"]) for notes in model.notes)
    assert (len(outer), len(member)) == (10, 20)
    assert torch.equal(member.unique(dim=0), labeled_points(data).unique(dim=0))
    assert (sampler.num_replicas, sampler.rank) == (2, 1)


def test_hooks_of_the_data_see_the_members_trainer_training():
    model, data, trainer = fit(Train(), max_epochs=1)
    trainers = list(dict.fromkeys(seen for seen, _ in data.datamodule.seen))
    assert trainers == [trainer, model.notes[1]["trainer"]]
    assert all(training for _, training in data.datamodule.seen)
    assert model.notes[1]["trainer"].datamodule.pool is data.pool


# ---------------------------------------------------------------- what stays as it was


class Picture(Callback):
    def on_fit_end(self, trainer, pl_module):
        data = trainer.datamodule
        self.taken = {
            "module": module_picture(pl_module),
            "random numbers": random_picture(),
            "trainers": [owner.trainer is trainer for owner in (pl_module, data, data.datamodule)],
            "trainer": {name: id(value) for name, value in vars(trainer).items()},
            "state": (copy.copy(trainer.state), trainer.current_epoch, trainer.global_step, trainer.should_stop),
            "metrics": (str(trainer.callback_metrics), str(trainer.logged_metrics)),
            "optimizer": str(trainer.optimizers[0].state_dict()),
            "datamodules": [{key: id(value) for key, value in vars(part).items()} for part in (data, data.datamodule)],
            "pool": repr(data.pool.history),
            "generator": data.datamodule.options["generator"].get_state().tolist(),
            "process": (rank_zero_only.rank, torch.get_default_dtype(), torch.is_grad_enabled()),
            "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
            "filters": [list(logging.getLogger(name).filters) for name in logging.root.manager.loggerDict],
        }


@pytest.mark.parametrize("options", [{}, {"fresh": True, "bootstrap": True}])
def test_the_outer_run_is_left_as_it_was(options, tmp_path):
    before, after = Picture(), Picture()
    generator = torch.Generator().manual_seed(3)
    data = ActiveLearningDataModule(Data(shuffle=True, generator=generator), initial_size=20)
    fit(before, Train(**options), after, data=data, default_root_dir=tmp_path)
    assert all(before.taken["trainers"])
    for part, value in before.taken.items():
        assert after.taken[part] == value, part
    assert not list(tmp_path.iterdir())


def test_after_a_failed_training_too():
    class Failing(Plain):
        def on_train_epoch_end(self):
            if len(self.notes) > 1:
                raise ZeroDivisionError

    class Guarded(Train):
        def on_fit_end(self, trainer, pl_module):
            with pytest.raises(ZeroDivisionError):
                super().on_fit_end(trainer, pl_module)

    before, after = Picture(), Picture()
    data = ActiveLearningDataModule(Data(generator=torch.Generator()), initial_size=20)
    fit(before, Guarded(), after, model=Failing(), data=data)
    for part, value in before.taken.items():
        assert after.taken[part] == value, part


def test_the_start_can_be_used_again():
    train = Train(fresh=True)
    fit(train)
    assert equal(copy_weights(train.start), copy_weights(Plain()))


def test_callbacks_and_loggers_stay_with_the_outer_trainer(tmp_path, caplog):
    class Own(Plain):
        def configure_callbacks(self):
            return [RandomAcquisition(3)]

        def training_step(self, batch, batch_idx):
            self.logger.experiment.log_metrics({"step": batch_idx})
            return super().training_step(batch, batch_idx)

    model, _, trainer = fit(Train(), model=Own(), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert any(isinstance(callback, RandomAcquisition) for callback in trainer.callbacks)
    inner = model.notes[1]["trainer"]
    assert [type(callback).__name__ for callback in inner.callbacks] == ["_SameLength"]
    assert inner.log_dir is None
    assert caplog.text.count("stopped") == caplog.text.count("GPU available") == 1, "said once, by the outer trainer"


def test_advice_is_given_once():
    data = ActiveLearningDataModule(ToyDataset(), val_dataset=ToyDataset(8), initial_size=20, batch_size=8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(Train(), data=data, max_epochs=1)
    advice = [str(warning.message) for warning in said if "validation_step" in str(warning.message)]
    assert len(advice) == 1


def test_a_schedule_that_waits_for_a_plateau_gets_its_validation():
    class Plateau(Plain):
        validations = 0

        def validation_step(self, batch, batch_idx):
            type(self).validations += 1
            self.log("val/loss", 1.0)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss"}}

    def data():
        return ActiveLearningDataModule(ToyDataset(), val_dataset=ToyDataset(8), initial_size=20, batch_size=8)

    model, *_ = fit(Train(), model=Plateau(), data=data())
    rates = [notes["trainer"].optimizers[0].param_groups[0]["lr"] for notes in model.notes]
    assert rates == [pytest.approx(0.05 * 0.1**2)] * 2

    class Validated(Plateau):
        validations = 0
        configure_optimizers = Plain.configure_optimizers

    fit(Train(), model=Validated(), data=data(), num_sanity_val_steps=0)
    assert Validated.validations == 3, "one per epoch of the outer fit"


# ---------------------------------------------------------------- copies


def test_an_optimizer_that_lightning_cli_made_is_copied_with_the_module():
    model = Plain()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    # as `LightningCLI._add_configure_optimizers_method_to_model` does
    configure = partial(LightningCLI.configure_optimizers, optimizer=optimizer, lr_scheduler=None)
    update_wrapper(configure, LightningCLI.configure_optimizers)
    model.configure_optimizers = MethodType(configure, model)
    train = Train()
    fit(train, model=model)
    assert equal(train.weights, copy_weights(model))


def test_an_optimizer_of_another_module_is_refused():
    model = Plain()
    parameters = list(model.parameters())
    model.configure_optimizers = lambda: torch.optim.Adam(parameters, lr=0.05)
    with pytest.raises(MisconfigurationException, match=r"optimizer of a copy of Plain holds parameters of another"):
        fit(Train(), model=model)


def test_a_copy_is_independent_and_trains_in_its_own_precision():
    model = Plain().bfloat16()
    model.net[0].weight.requires_grad_(False)
    model.net[1].eval()
    before = module_picture(model)
    copied = copy_untrained(model)
    assert module_picture(copied)["state"] == before["state"]
    assert [child.training for child in copied.modules()] == [child.training for child in model.modules()]
    assert not copied.net[0].weight.requires_grad
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.fill_(7)
    assert module_picture(model) == before


def test_a_copy_of_a_compiled_module_calls_itself():
    model = ToyClassifier().eval()
    plain = copy.deepcopy(model)
    copied = copy_untrained(from_compiled(torch.compile(model, backend="eager")))
    with torch.no_grad():
        copied.net[4].bias.add_(1)
        torch.testing.assert_close(copied(torch.ones(4, 3)), plain(torch.ones(4, 3)) + 1)


def test_a_module_that_cannot_be_copied_is_refused_with_the_reason():
    model = Plain()
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"Plain cannot be copied for a committee \(TypeError: cannot pickle.*checkpo"):
        copy_untrained(model)


# ---------------------------------------------------------------- fresh weights


def test_fresh_weights_are_those_of_new_layers():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 4))
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.fill_(7)
        net[1].running_mean.fill_(7)
    again = copy.deepcopy(net)
    with seeded(0):
        reinitialize(net)
    assert all((tensor != 7).all() for tensor in net.parameters())
    assert net[1].running_mean.tolist() == [0] * 4
    assert net[1].weight.tolist() == [1] * 4
    bound = 3**-0.5
    assert 0 < net[0].weight.abs().max() <= bound
    with seeded(0):
        reinitialize(again)
    assert equal(copy_weights(net), copy_weights(again))


def test_attention_gets_fresh_weights_too():
    attention = nn.MultiheadAttention(4, 2)
    before = attention.in_proj_weight.detach().clone()
    reinitialize(attention)
    assert not torch.equal(attention.in_proj_weight, before)


def test_what_is_frozen_stays():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[:2].requires_grad_(False)
    net[1].running_mean.fill_(7)
    before = copy_weights(net)
    reinitialize(net)
    after = copy_weights(net)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"2.weight", "2.bias"}


def test_a_reset_of_the_users_own_has_the_last_word():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def reset_parameters(self):
            nn.init.constant_(self.layer.weight, 0.25)

    net = Net()
    reinitialize(net)
    assert net.layer.weight.unique().tolist() == [0.25]


class Token(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 3))


def test_what_no_module_can_draw_anew_is_named():
    net = nn.Sequential(nn.Linear(3, 2), Token())
    before = net[0].weight.detach().clone()
    with pytest.warns(
        UserWarning, match=r"start with the same values there: no module of Sequential has.*draws 1\.tok"
    ):
        reinitialize(net)
    assert not torch.equal(net[0].weight, before)
    with pytest.raises(ValueError, match=r"no module of Token has a `reset_parameters` that draws token anew.*=False"):
        reinitialize(Token())
