import json
import multiprocessing
import pickle
import re
from array import array
from collections import Counter

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    TensorDataset,
    default_collate,
    random_split,
)
from torchvision import transforms as T
from torchvision.datasets import FakeData

from lightning_al import ActiveLearningDataModule, Pool
from lightning_al.data.dataloaders import PoolBatch
from lightning_al.data.fingerprint import fingerprint
from lightning_al.functional import noise_stability
from lightning_al.testing import ToyDataset
from tests.image_files import write_cifar10, write_image_folder, write_mnist

STAGES = ("fit", "validate", "test", "predict")


class Numbers(Dataset):
    """Samples that tell their own number, for plain integers and for nothing else."""

    def __init__(self, size=20, first=0):
        self.numbers = range(first, first + size)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        if type(index) is not int:
            raise TypeError(f"plain integers only, got {type(index).__name__}")
        return torch.tensor([float(self.numbers[index]), 1.0]), index % 4


class Probe(LightningModule):
    """Remember which numbers came in which stage."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 4)
        self.seen = {stage: [] for stage in STAGES}

    def forward(self, points):
        return self.net(points)

    def remember(self, stage, batch):
        points, labels = batch
        self.seen[stage] += points[:, 0].int().tolist()
        return nn.functional.cross_entropy(self(points), labels)

    def training_step(self, batch, batch_idx):
        return self.remember("fit", batch)

    def test_step(self, batch, batch_idx):
        self.remember("test", batch)

    def predict_step(self, batch, batch_idx):
        return self.remember("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class ValidatingProbe(Probe):
    """For data with a validation part, without which Lightning warns."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.remember("validate", batch)


class NumbersModule(LightningDataModule):
    """Every loader a datamodule can have, over numbers that tell which one they came from."""

    def setup(self, stage):
        self.train = Numbers(20)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4, shuffle=True)

    def val_dataloader(self):
        return [DataLoader(Numbers(3, first=100), batch_size=2), DataLoader(Numbers(2, first=200), batch_size=2)]

    def test_dataloader(self):
        return DataLoader(Numbers(4, first=300), batch_size=3)

    def predict_dataloader(self):
        return DataLoader(Numbers(5, first=400), batch_size=3)


class TrainOnly(LightningDataModule):
    """A datamodule of nothing but the given training loader."""

    def __init__(self, **options):
        super().__init__()
        self.options = {"dataset": Numbers(), "batch_size": 4, **options}

    def train_dataloader(self):
        return DataLoader(**self.options)


def make_trainer(folder, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", default_root_dir=folder, **{"max_epochs": 1, **quiet, **options})


def ready(*args, **options):
    data = ActiveLearningDataModule(*args, **{"initial_size": 6, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def numbers_of(loader):
    return [int(number) for points, _ in loader for number in points[:, 0]]


def pool_numbers(data, **options):
    batches = list(data.pool_dataloader(**options))
    assert all(type(batch) is PoolBatch for batch in batches)
    indices = [index for batch in batches for index in batch.indices]
    assert {type(index) for index in indices} <= {int}
    return indices, [int(number) for batch in batches for number in batch.batch[0][:, 0]]


# ---------------------------------------------------------------- a datamodule, wrapped


class Recording(NumbersModule):
    """Which hooks were called, in which stage of which trainer."""

    def __init__(self):
        super().__init__()
        self.calls, self.counter = [], 0
        self.prepare_data_per_node = False
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def record(self, name):
        self.calls.append((name, self.trainer.state.fn.value))

    def prepare_data(self):
        self.record("prepare_data")

    def setup(self, stage):
        super().setup(stage)
        self.record("setup " + stage)

    def teardown(self, stage):
        self.record("teardown " + stage)

    def on_exception(self, exception):
        self.record(f"on_exception {exception}")

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.record("on_before_batch_transfer")
        return batch[0] + 1000, batch[1]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.record("transfer_batch_to_device")
        assert batch[0].min() >= 1000
        return super().transfer_batch_to_device((batch[0] + 1000, batch[1]), device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.record("on_after_batch_transfer")
        assert batch[0].min() >= 2000
        return batch[0] + 1000, batch[1]

    def state_dict(self):
        return {"counter": self.counter}

    def load_state_dict(self, state_dict):
        self.counter = state_dict["counter"]


def run_all_stages(data, folder):
    model = ValidatingProbe()
    make_trainer(folder).fit(model, data)
    for stage in ("validate", "test", "predict"):
        getattr(make_trainer(folder), stage)(model, datamodule=data)
    return {stage: sorted(numbers) for stage, numbers in model.seen.items()}


def test_a_wrapped_datamodule_works_as_it_did_alone(tmp_path):
    alone, wrapped = Recording(), Recording()
    seen_alone = run_all_stages(alone, tmp_path)
    seen = run_all_stages(ActiveLearningDataModule(wrapped, initial_size=1.0), tmp_path)
    assert seen == seen_alone
    assert seen["fit"] == list(range(3000, 3020))
    assert set(seen["validate"]) == {3100, 3101, 3102, 3200, 3201}
    assert seen["test"] == [3300, 3301, 3302, 3303]
    assert seen["predict"] == [3400, 3401, 3402, 3403, 3404]
    assert wrapped.calls == alone.calls
    assert {("prepare_data", "fit"), ("setup fit", "fit"), ("teardown predict", "predict")} < set(wrapped.calls)


def test_only_the_labeled_part_is_trained_on(tmp_path):
    data, model = ActiveLearningDataModule(NumbersModule(), initial_size=6), ValidatingProbe()
    make_trainer(tmp_path, max_epochs=2).fit(model, data)
    assert Counter(model.seen["fit"]) == dict.fromkeys(data.pool.labeled, 2)
    assert data.pool.num_labeled == 6
    data.pool.label([data.pool.unlabeled[0]], strategy="me")
    again = ValidatingProbe()
    make_trainer(tmp_path).fit(again, data)
    assert sorted(again.seen["fit"]) == sorted(data.pool.labeled)
    assert len(again.seen["fit"]) == 7


def test_an_exception_reaches_the_wrapped_datamodule(tmp_path):
    class Failing(ValidatingProbe):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("on purpose")

    recording = Recording()
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(tmp_path).fit(Failing(), ActiveLearningDataModule(recording, initial_size=6))
    assert ("on_exception on purpose", "fit") in recording.calls


def test_the_flags_of_the_wrapped_datamodule_carry_over():
    data = ActiveLearningDataModule(Recording(), initial_size=6)
    assert data.prepare_data_per_node is False
    assert data.allow_zero_length_dataloader_with_multiple_devices is True
    data = ActiveLearningDataModule(NumbersModule(), initial_size=6)
    assert data.prepare_data_per_node is True
    assert data.allow_zero_length_dataloader_with_multiple_devices is False


HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
LOADERS = ("val_dataloader", "test_dataloader", "predict_dataloader")


@pytest.mark.parametrize(
    ("wrapped", "options", "present"),
    [
        (Recording(), {}, {*HOOKS, *LOADERS}),
        (NumbersModule(), {}, set(LOADERS)),
        (TrainOnly(), {}, set()),
        (Numbers(), {}, set()),
        (Numbers(), {"val_dataset": Numbers()}, {"val_dataloader"}),
        (Numbers(), {"test_dataset": Numbers()}, {"test_dataloader"}),
    ],
)
def test_only_what_the_user_wrote_looks_overridden(wrapped, options, present):
    data = ActiveLearningDataModule(wrapped, initial_size=6, **options)
    assert {name for name in (*HOOKS, *LOADERS) if is_overridden(name, data)} == present


def test_an_absent_loader_is_absent_to_the_trainer(tmp_path):
    data, model = ActiveLearningDataModule(Numbers(), initial_size=6), ValidatingProbe()
    with pytest.warns(UserWarning, match="You defined a `validation_step` but have no `val_dataloader`"):
        make_trainer(tmp_path).fit(model, data)
    for stage, name in (("validate", "val"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(MisconfigurationException, match=f"`{name}_dataloader` must be implemented"):
            getattr(make_trainer(tmp_path), stage)(model, datamodule=data)


def test_the_transfer_hooks_of_the_module_work_where_the_datamodule_has_none(tmp_path):
    class Transferring(ValidatingProbe):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch[0].to(device) + 1000, batch[1].to(device)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + 1000, batch[1]

    model = Transferring()
    data = ActiveLearningDataModule(NumbersModule(), initial_size=6)
    with pytest.warns(UserWarning, match="It will use the implementation from `LightningModule` instance"):
        make_trainer(tmp_path).fit(model, data)
    assert sorted(model.seen["fit"]) == sorted(2000 + index for index in data.pool.labeled)


# ---------------------------------------------------------------- every kind of data


def hugging_face(size=20):
    from datasets import Dataset as HuggingFaceDataset

    columns = {"points": [[float(number), 1.0] for number in range(size)], "label": [0, 1, 2, 3] * (size // 4)}
    return HuggingFaceDataset.from_dict(columns).with_format("torch")


POINTS, LABELS = torch.stack([torch.arange(20.0), torch.ones(20)], 1), torch.arange(20) % 4
DATA = {
    "strict": Numbers,
    "tensors": lambda: TensorDataset(POINTS, LABELS),
    "dicts": lambda: StackDataset(points=POINTS, label=LABELS),
    "hugging face": hugging_face,
    "concatenated": lambda: ConcatDataset([Numbers(12), Numbers(8, first=12)]),
    "list": lambda: list(zip(POINTS, LABELS.tolist(), strict=True)),
}


class ProbeAny(ValidatingProbe):
    def remember(self, stage, batch):
        return super().remember(stage, (batch["points"], batch["label"]) if isinstance(batch, dict) else batch)


@pytest.mark.parametrize(("kind", "num_workers"), [*((kind, 0) for kind in DATA), ("strict", 2), ("hugging face", 2)])
def test_every_kind_of_data_is_split_and_trained_on(tmp_path, kind, num_workers):
    dataset = DATA[kind]()
    data = ActiveLearningDataModule(
        dataset, initial_size=0.3, batch_size=4, pool_batch_size=5, num_workers=num_workers, val_dataset=dataset
    )
    model = ProbeAny()
    make_trainer(tmp_path, limit_val_batches=0).fit(model, data)
    assert sorted(model.seen["fit"]) == sorted(data.pool.labeled)
    batches = list(data.pool_dataloader())
    assert [len(batch.indices) for batch in batches] == [5, 5, 4]
    for indices, batch in batches:
        points = batch["points"] if isinstance(batch, dict) else batch[0]
        assert points[:, 0].int().tolist() == indices
        assert {type(index) for index in indices} == {int}
    assert [index for batch in batches for index in batch.indices] == list(data.pool.unlabeled)


@pytest.mark.parametrize("kind", ["MNIST", "CIFAR10", "ImageFolder"])
def test_torchvision_data_trains_and_gives_its_pool(tmp_path, kind):
    cls = {"MNIST": write_mnist, "CIFAR10": write_cifar10, "ImageFolder": write_image_folder}[kind](tmp_path)
    splits = [{}, {}] if kind == "ImageFolder" else [{"train": True}, {"train": False}]
    augment, evaluate = T.Compose([T.RandomCrop(8), T.ToTensor()]), T.Compose([T.CenterCrop(8), T.ToTensor()])
    train, val = (cls(tmp_path, transform=t, **split) for t, split in zip((augment, evaluate), splits, strict=True))
    data = ready(train, val_dataset=val, initial_size=4, balanced_start=True, batch_size=4, num_workers=0)
    plain = cls(tmp_path, **splits[0])
    assert len({int(train.targets[index]) for index in data.pool.labeled}) == (3 if kind == "ImageFolder" else 4)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, *evaluate(plain[0][0]).shape)
    assert sorted(labels.tolist()) == sorted(int(train.targets[index]) for index in data.pool.labeled)
    for indices, (images, labels) in data.pool_dataloader():
        for index, image, label in zip(indices, images, labels, strict=True):
            assert torch.equal(image, evaluate(plain[index][0]))
            assert label == plain[index][1]


class Splitting(LightningDataModule):
    """Draws its split in `setup`, or even in the hook, without a seed."""

    def __init__(self, in_hook=False):
        super().__init__()
        self.in_hook = in_hook

    def setup(self, stage):
        if not self.in_hook:
            self.train, self.val = random_split(Numbers(40), [0.5, 0.5])

    def train_dataloader(self):
        train = random_split(Numbers(40), [0.5, 0.5])[0] if self.in_hook else self.train
        return DataLoader(train, batch_size=8, shuffle=True)


def describe_split(data):
    """What another process sees: the split, the labeled samples and the fingerprint."""
    torch.randn(3)
    data.setup("fit")
    indices, numbers = pool_numbers(data)
    return sorted(numbers_of(data.train_dataloader())), indices, numbers, data.pool.fingerprint


@pytest.mark.parametrize("in_hook", [False, True])
def test_an_unseeded_split_is_the_same_in_every_setup(in_hook):
    data = ActiveLearningDataModule(Splitting(in_hook), initial_size=6)
    torch.manual_seed(1)
    first = describe_split(data)
    before = torch.get_rng_state()
    data.setup("fit")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert describe_split(data) == first
    assert describe_split(ActiveLearningDataModule(Splitting(in_hook), initial_size=6)) == first
    assert describe_split(ActiveLearningDataModule(Splitting(in_hook), initial_size=6, seed=1)) != first
    assert set(first[0]).isdisjoint(first[2])
    assert len(first[0]) + len(first[2]) == 20


def test_another_process_sees_the_same_split_and_pool():
    data = ActiveLearningDataModule(Splitting(), initial_size=6)
    expected = describe_split(data)
    data.pool.label([data.pool.unlabeled[0]], strategy="me")
    fresh = ActiveLearningDataModule(Splitting(), initial_size=6)
    with multiprocessing.get_context("fork").Pool(1) as process:
        assert process.apply(describe_split, (fresh,)) == expected
        labeled, indices, *_ = process.apply(describe_split, (data,))
    assert indices == list(data.pool.unlabeled) == expected[1][1:]
    assert len(labeled) == 7


@pytest.mark.parametrize("wrapped", [NumbersModule(), Numbers()])
def test_a_pickled_datamodule_stands_alone(wrapped):
    options = {} if isinstance(wrapped, LightningDataModule) else {"val_dataset": Numbers(3, first=100)}
    data = ready(wrapped, **options)
    copied = pickle.loads(pickle.dumps(data))
    assert copied.pool.history == data.pool.history
    assert is_overridden("val_dataloader", copied)
    assert copied.val_dataloader.__self__ is copied.datamodule is not data.datamodule
    copied.pool.label([copied.pool.unlabeled[0]], strategy="me")
    assert (copied.pool.num_labeled, data.pool.num_labeled) == (7, 6)
    assert sorted(numbers_of(copied.train_dataloader())) == sorted(copied.pool.labeled)
    assert not pickle.loads(pickle.dumps(ActiveLearningDataModule(wrapped, initial_size=6, **options)))._pool


# ---------------------------------------------------------------- the first labeled part


@pytest.mark.parametrize(
    ("initial_size", "count"), [(6, 6), (0.3, 6), (1.0, 20), (20, 20), ((3, 1, 7), 3), (np.int64(6), 6), (range(4), 4)]
)
def test_every_form_of_an_initial_size(initial_size, count):
    data = ready(Numbers(), initial_size=initial_size)
    assert data.pool.num_labeled == count
    assert data.pool.history[0].strategy == "initial"
    assert (data.pool.cycle, len(data.pool.history)) == (0, 1)
    if not isinstance(initial_size, (int, float, np.integer)):
        assert list(data.pool.labeled) == list(initial_size)
    assert sorted(numbers_of(data.train_dataloader())) == sorted(data.pool.labeled)


def test_the_initial_draw_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = ready(Numbers()).pool.labeled
    torch.manual_seed(2)
    assert ready(Numbers()).pool.labeled == first
    assert ready(Numbers(), seed=1).pool.labeled != first
    assert ready(NumbersModule()).pool.labeled == first


@pytest.mark.parametrize("initial_size", [0, -1, 0.0, 1.5, True, "6", None])
def test_an_initial_size_that_is_none_is_refused_at_once(initial_size):
    with pytest.raises(
        ValueError, match=re.escape(f"`ActiveLearningDataModule(initial_size={initial_size!r})`: expec")
    ):
        ActiveLearningDataModule(Numbers(), initial_size=initial_size)


@pytest.mark.parametrize(
    ("initial_size", "error", "message"),
    [
        (21, ValueError, r"initial_size=21\)`: the dataset has 20 samples"),
        ([3, 20], ValueError, r"index 20 out of range; dataset indices run from 0 to 19"),
        ([3, 3], ValueError, r"index 3 came more than once"),
        ([0.5], TypeError, r"expected a flat sequence of integers, got 0\.5 \(float\)"),
        ([], ValueError, r"at least one index"),
    ],
)
def test_a_first_part_that_does_not_fit_the_data_is_refused_each_time(tmp_path, initial_size, error, message):
    data = ActiveLearningDataModule(Numbers(), initial_size=initial_size, pool_file=tmp_path / "pool.json")
    for _ in range(2):  # no empty pool stays behind
        with pytest.raises(error, match=message):
            data.setup("fit")
        with pytest.raises(MisconfigurationException, match=r'is made in `setup\("fit"\)`'):
            _ = data.pool
    assert not (tmp_path / "pool.json").exists()


def test_a_balanced_start_has_every_class():
    rare = [(torch.tensor([float(index), 1.0]), int(index == 17) + 2 * int(index == 4)) for index in range(40)]
    for seed in range(5):
        labels = Counter(rare[index][1] for index in ready(rare, balanced_start=True, seed=seed).pool.labeled)
        assert labels == {0: 4, 1: 1, 2: 1}
    unlabeled = TensorDataset(torch.zeros(9, 2))
    with pytest.raises(ValueError, match=r"Found no target in tuple.*leave `balanced_start` off"):
        ready(unlabeled, balanced_start=True)
    assert ready(unlabeled).pool.num_labeled == 6


@pytest.mark.parametrize("name", ["batch_size", "pool_batch_size", "candidates"])
def test_a_size_below_one_is_refused(name):
    for value in (0, -2):
        with pytest.raises(
            ValueError, match=rf"`ActiveLearningDataModule\({name}={value}\)`: `{name}` must be at least"
        ):
            ActiveLearningDataModule(Numbers(), initial_size=6, **{name: value})


@pytest.mark.parametrize("name", ["val_dataset", "test_dataset"])
def test_a_datamodule_brings_its_own_evaluation_data(name):
    with pytest.raises(ValueError, match=r"go with a training dataset; a LightningDataModule brings its own `val_data"):
        ActiveLearningDataModule(NumbersModule(), initial_size=6, **{name: Numbers()})


# ---------------------------------------------------------------- what cannot be split


class RandomStream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


def test_data_without_indices_is_refused():
    with pytest.raises(
        TypeError, match=r"`ActiveLearningDataModule\(RandomStream\)`: expected a LightningDataModule or a map"
    ):
        ActiveLearningDataModule(RandomStream(), initial_size=6)
    with pytest.raises(TypeError, match=r"`ActiveLearningDataModule\(DataLoader\)`: expected a LightningDataModule"):
        ActiveLearningDataModule(DataLoader(Numbers()), initial_size=6)
    with pytest.raises(
        TypeError, match=r"`TrainOnly.train_dataloader\(\)` returned a RandomStream; .*materialize a stream"
    ):
        ready(TrainOnly(dataset=RandomStream()))


@pytest.mark.parametrize("container", [list, dict])
def test_several_training_loaders_are_refused(container):
    class Several(LightningDataModule):
        def train_dataloader(self):
            loaders = [("a", DataLoader(Numbers())), ("b", DataLoader(Numbers()))]
            return dict(loaders) if container is dict else [loader for _, loader in loaders]

    with pytest.raises(
        TypeError, match=rf"`Several.train_dataloader\(\)` returned a {container.__name__}; .*ConcatDataset"
    ):
        ready(Several())


def test_a_batch_sampler_of_its_own_needs_a_batch_size():
    wrapped = TrainOnly(batch_sampler=BatchSampler(RandomSampler(Numbers()), 4, False), batch_size=1)
    with pytest.raises(MisconfigurationException, match=r"Pass `ActiveLearningDataModule\(batch_size=\.\.\.\)`"):
        ready(wrapped).train_dataloader()
    data = ready(wrapped, batch_size=4)
    assert isinstance(data.train_dataloader().sampler, RandomSampler)
    assert sorted(numbers_of(data.train_dataloader())) == sorted(data.pool.labeled)


def test_what_needs_setup_says_so():
    data = ActiveLearningDataModule(Numbers(), initial_size=6)
    for ask in (lambda: data.pool, lambda: data.cycle, data.candidate_indices, data.train_dataloader):
        with pytest.raises(MisconfigurationException, match=r"`prepare_data\(\)` and `setup\(\"fit\"\)`, first"):
            ask()
    for stage in ("validate", "test", "predict"):
        data.setup(stage)
        assert data._pool is None


# ---------------------------------------------------------------- loaders


def collate_and_mix(samples):
    return default_collate([(points + 1000, label) for points, label in samples])


def test_the_loaders_keep_the_options_of_the_user():
    data = ready(TrainOnly(batch_size=4, shuffle=False, drop_last=True, collate_fn=collate_and_mix))
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, SequentialSampler)
    assert (loader.batch_size, loader.drop_last, len(loader)) == (4, True, 1)
    assert numbers_of(loader) == [1000 + index for index in data.pool.labeled[:4]]
    assert next(iter(data.pool_dataloader())).batch[0].shape == (4, 2)


def test_the_arguments_replace_the_options():
    data = ready(TrainOnly(num_workers=2), batch_size=3, num_workers=0, pool_batch_size=7)
    assert (data.train_dataloader().batch_size, data.train_dataloader().num_workers) == (3, 0)
    assert [len(batch.indices) for batch in data.pool_dataloader()] == [7, 7]
    assert [len(batch.indices) for batch in ready(Numbers(), batch_size=5).pool_dataloader()] == [5, 5, 4]
    assert ready(Numbers()).train_dataloader().batch_size == 32


def test_a_small_start_survives_drop_last(tmp_path):
    model = Probe()
    data = ActiveLearningDataModule(TrainOnly(batch_size=8, shuffle=True, drop_last=True), initial_size=6)
    make_trainer(tmp_path, limit_val_batches=0).fit(model, data)
    assert sorted(model.seen["fit"]) == sorted(data.pool.labeled)


def test_the_pool_is_collated_as_for_validation():
    class Mixing(NumbersModule):
        def train_dataloader(self):
            return DataLoader(self.train, batch_size=4, collate_fn=collate_and_mix)

    data = ready(Mixing())
    assert min(numbers_of(data.train_dataloader())) >= 1000
    indices, numbers = pool_numbers(data)
    assert numbers == indices == list(data.pool.unlabeled)


def test_any_samples_can_be_shown():
    data = ready(Numbers())
    for shown in ([5, 3], (19,), array("q", [0, 1, 2]), data.pool.labeled, []):
        assert pool_numbers(data, indices=shown, shard=False) == (list(shown), list(shown))


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_gets_its_share_of_the_batches_and_the_first_saves(tmp_path, monkeypatch, rank):
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which the trainer changes, and monkeypatch restores
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    data = ready(Numbers(), batch_size=4, pool_file=tmp_path / "pool.json")
    alone = [batch.indices for batch in data.pool_dataloader()]
    data.trainer = make_trainer(tmp_path, devices=2, strategy="ddp")
    assert (data.trainer.global_rank, data.trainer.world_size) == (rank, 2)
    assert [batch.indices for batch in data.pool_dataloader()] == alone[rank::2]
    assert [batch.indices for batch in data.pool_dataloader(shard=False)] == alone
    data.pool.label([data.pool.unlabeled[0]], strategy="me")
    data.save_pool()
    assert Pool.load(tmp_path / "pool.json").cycle == (1 if rank == 0 else 0)


# ---------------------------------------------------------------- candidates


def test_candidates_are_fixed_within_a_cycle_and_change_with_it():
    data = ready(Numbers(200), candidates=20)
    drawn = [data.candidate_indices()]
    torch.randn(3)
    assert data.candidate_indices() == drawn[0]
    assert ready(Numbers(200), candidates=20).candidate_indices() == drawn[0]
    assert ready(Numbers(200), candidates=20, seed=1).candidate_indices() != drawn[0]
    for _ in range(3):
        data.pool.label([data.pool.unlabeled[-1]], strategy="me")
        drawn.append(data.candidate_indices())
    for indices in drawn:
        assert (len(indices), type(indices), indices.typecode) == (20, array, "q")
        assert list(indices) == sorted(set(indices))
        assert set(indices) <= set(range(200)) - set(data.pool.labeled_by(0))
    assert len(set(map(tuple, drawn))) == 4
    assert pool_numbers(data)[0] == list(drawn[-1])
    at_once = ready(Numbers(200), candidates=20)
    at_once.pool.label(data.pool.labeled[6:], strategy="me")  # the same pool, but in cycle 1
    assert at_once.pool.unlabeled == data.pool.unlabeled
    assert at_once.candidate_indices() != drawn[-1]


@pytest.mark.parametrize("candidates", [None, 14, 100])
def test_all_of_the_pool_are_candidates_where_there_are_not_more(candidates):
    data = ready(Numbers(), candidates=candidates)
    assert data.candidate_indices() == data.pool.unlabeled
    assert len(data.candidate_indices()) == 14


def test_every_sample_is_a_candidate_equally_often():
    data = ready(Numbers(10), initial_size=[0], candidates=3)
    counts = Counter()
    for seed in range(600):
        data.seed = seed
        counts.update(data.candidate_indices())
    assert sorted(counts) == list(range(1, 10))
    assert all(abs(count - 200) < 5 * (600 * 1 / 3 * 2 / 3) ** 0.5 for count in counts.values())


# ---------------------------------------------------------------- evaluation transforms

AUGMENT = T.Compose([T.RandomCrop(8), T.ToTensor()])
EVALUATE = T.Compose([T.CenterCrop(8), T.ToTensor()])


def images(transform=None):
    return FakeData(12, (3, 10, 12), 4, transform=transform)


def pool_images(data):
    return {
        index: image
        for indices, (batch, _) in data.pool_dataloader()
        for index, image in zip(indices, batch, strict=True)
    }


def assert_evaluated(data):
    shown = pool_images(data)
    assert list(shown) == list(data.pool.unlabeled)
    assert all(torch.equal(image, EVALUATE(images()[index][0])) for index, image in shown.items())


def test_a_pool_dataset_shows_the_pool():
    train = images(AUGMENT)
    assert_evaluated(ready(train, pool_dataset=images(EVALUATE)))
    # it comes before the transforms of the validation data
    flipped = T.Compose([EVALUATE, T.RandomVerticalFlip(1.0)])
    assert_evaluated(ready(train, pool_dataset=images(EVALUATE), val_dataset=images(flipped)))


def test_the_transforms_of_the_validation_data_show_the_pool():
    data = ready(images(AUGMENT), val_dataset=images(EVALUATE))
    assert_evaluated(data)
    assert data.datamodule.train.transform is AUGMENT


def test_a_split_of_one_augmented_dataset_is_shown_with_other_transforms():
    class Cifar(LightningDataModule):
        def setup(self, stage):
            self.train, _ = random_split(images(AUGMENT), [8, 4])
            _, self.val = random_split(images(EVALUATE), [8, 4])

        def train_dataloader(self):
            return DataLoader(self.train, batch_size=4)

        def val_dataloader(self):
            return DataLoader(self.val, batch_sampler=BatchSampler(range(4), 2, False))

    data = ready(Cifar(), initial_size=2)
    for index, image in pool_images(data).items():
        assert torch.equal(image, EVALUATE(images()[data.datamodule.train.indices[index]][0]))


def test_a_random_pool_is_warned_about_once():
    torch.manual_seed(0)
    data = ActiveLearningDataModule(images(AUGMENT), initial_size=6)
    message = r"Reading samples \[0, 4, 7, 11\] of the pool twice gave different values.*Pass `pool_dataset="
    with pytest.warns(UserWarning, match=message):
        data.setup("fit")
    data.setup("fit")  # a second warning would be an error here
    with pytest.warns(UserWarning, match=message):
        ready(images(AUGMENT), val_dataset=images(AUGMENT))
    assert_evaluated(ready(images(EVALUATE)))


def test_a_pool_dataset_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"pool_dataset=\.\.\.\)`: expected the 12 training samples .*, got 20\."):
        ready(images(EVALUATE), pool_dataset=Numbers())


# ---------------------------------------------------------------- cycles


def test_an_earlier_cycle_can_be_trained_again():
    data = ready(Numbers())
    initial = data.pool.labeled
    data.pool.label([data.pool.unlabeled[3]], strategy="me")
    assert data.cycle == 1
    data.begin_cycle(0)
    assert data.cycle == 0
    assert sorted(numbers_of(data.train_dataloader())) == sorted(initial)
    assert len(data.candidate_indices()) == 13  # what is labeled is never a candidate
    data.begin_cycle(None)
    assert data.cycle == 1
    assert len(numbers_of(data.train_dataloader())) == 7


def test_data_that_changes_between_cycles_is_refused():
    wrapped = TrainOnly()
    data = ready(wrapped)
    wrapped.options["dataset"] = Numbers()
    data.setup("fit")
    for other, message in (
        (Numbers(21), "it has 20 samples, this dataset has 21"),
        (Numbers(20, 1), "its fingerprint"),
    ):
        wrapped.options["dataset"] = other
        with pytest.raises(ValueError, match=f"^The pool belongs to other data: {message}"):
            data.setup("fit")
    wrapped.options["dataset"] = Numbers()
    data.setup("fit")
    assert data.pool.num_labeled == 6


# ---------------------------------------------------------------- checkpoints


def fit(data, folder, model=None, **options):
    model = model or ValidatingProbe()
    trainer = make_trainer(folder, limit_val_batches=0, **options.pop("trainer", {}))
    trainer.fit(model, data, weights_only=True if "ckpt_path" in options else None, **options)
    return trainer, model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of cycle 0 and of cycle 1 of the same run, and the labels of both."""
    folder = tmp_path_factory.mktemp("checkpoints")
    data = ActiveLearningDataModule(NumbersModule(), initial_size=6)
    for cycle in range(2):
        trainer, _ = fit(data, folder)
        trainer.save_checkpoint(folder / f"cycle-{cycle}.ckpt")
        if cycle == 0:
            data.pool.label([data.pool.unlabeled[2], data.pool.unlabeled[0]], strategy="me", scores=[0.5, 0.25])
    return folder, data.pool


def test_a_new_run_resumes_with_the_labels_of_the_checkpoint(tmp_path, checkpoints):
    folder, pool = checkpoints
    data = ActiveLearningDataModule(NumbersModule(), initial_size=6)
    _, model = fit(data, tmp_path, ckpt_path=folder / "cycle-1.ckpt", trainer={"max_epochs": 2})
    assert data.pool.history == pool.history
    assert sorted(model.seen["fit"]) == sorted(pool.labeled)
    assert len(model.seen["fit"]) == 8


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_every_other_stage_takes_the_labels_of_the_checkpoint(tmp_path, checkpoints, stage):
    folder, pool = checkpoints
    data = ActiveLearningDataModule(NumbersModule(), initial_size=6)
    model = ValidatingProbe()
    getattr(make_trainer(tmp_path), stage)(model, datamodule=data, ckpt_path=folder / "cycle-1.ckpt", weights_only=True)
    assert model.seen[stage]
    assert data.pool.history == pool.history
    _, model = fit(data, tmp_path)  # a fit after it goes on from there
    assert sorted(model.seen["fit"]) == sorted(pool.labeled)


@pytest.mark.parametrize("stage", STAGES)
def test_an_older_checkpoint_never_takes_labels_away(tmp_path, checkpoints, stage):
    folder, pool = checkpoints
    data = ready(NumbersModule())
    data.pool.label(pool.history[1].indices, strategy="me")
    data.pool.label([data.pool.unlabeled[0]], strategy="later")
    before = data.pool.history
    model, options = ValidatingProbe(), {"ckpt_path": folder / "cycle-0.ckpt", "weights_only": True}
    getattr(make_trainer(tmp_path, max_epochs=2), stage)(model, datamodule=data, **options)
    assert data.pool.history == before
    assert stage != "fit" or sorted(model.seen["fit"]) == sorted(data.pool.labeled)


def test_a_newer_checkpoint_extends_the_labels(tmp_path, checkpoints):
    folder, pool = checkpoints
    data = ready(NumbersModule())
    assert data.pool.num_labeled == 6
    make_trainer(tmp_path).test(Probe(), data, ckpt_path=folder / "cycle-1.ckpt", weights_only=True)
    assert data.pool.history == pool.history


@pytest.mark.parametrize("stage", STAGES)
def test_another_history_is_refused(tmp_path, checkpoints, stage):
    folder, _ = checkpoints
    data = ready(NumbersModule())
    data.pool.label([data.pool.unlabeled[5]], strategy="someone else")
    before = data.pool.history
    message = (
        r"The checkpoint's pool and the current pool were labeled differently \(Pool\(8 of 20 labeled, cycle 1\) "
        r"and Pool\(7 of 20 labeled, cycle 1\)\), and neither may lose its labels"
    )
    with pytest.raises(ValueError, match=message):
        getattr(make_trainer(tmp_path), stage)(
            ValidatingProbe(), datamodule=data, ckpt_path=folder / "cycle-1.ckpt", weights_only=True
        )
    assert data.pool.history == before


def test_a_first_draw_gives_way_unless_a_file_keeps_it(tmp_path, checkpoints):
    folder, pool = checkpoints
    options = {"ckpt_path": folder / "cycle-1.ckpt", "weights_only": True}
    data = ready(NumbersModule(), seed=1)
    assert not pool.extends(data.pool)
    make_trainer(tmp_path).test(Probe(), data, **options)
    assert data.pool.history == pool.history
    data = ready(NumbersModule(), seed=1, pool_file=tmp_path / "pool.json")
    with pytest.raises(ValueError, match=r"The checkpoint's pool and the current pool were labeled differently"):
        make_trainer(tmp_path).test(Probe(), data, **options)
    assert Pool.load(tmp_path / "pool.json").history == data.pool.history


def test_a_checkpoint_of_other_data_is_refused(tmp_path, checkpoints):
    folder, _ = checkpoints
    options = {"ckpt_path": folder / "cycle-1.ckpt", "weights_only": True}
    for other, message in (
        (Numbers(21), "it has 20 samples, this dataset has 21"),
        (Numbers(20, 1), "its fingerprint"),
    ):
        data = ready(TrainOnly(dataset=other))
        with pytest.raises(ValueError, match=f"The checkpoint's pool belongs to other data: {message}"):
            make_trainer(tmp_path, limit_val_batches=0).fit(Probe(), data, **options)
        assert data.pool.num_labeled == 6


def test_the_state_of_the_wrapped_datamodule_is_kept(tmp_path):
    recording = Recording()
    recording.counter = 41
    trainer, _ = fit(ActiveLearningDataModule(recording, initial_size=6), tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    restored = Recording()
    fit(ActiveLearningDataModule(restored, initial_size=6), tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert restored.counter == 41


def test_a_state_before_setup_holds_no_pool():
    data = ActiveLearningDataModule(NumbersModule(), initial_size=6)
    assert data.state_dict() == {"datamodule": {}}
    data.load_state_dict(data.state_dict())
    assert data._pool is None


# ---------------------------------------------------------------- the pool file


def test_the_pool_file_is_written_and_read(tmp_path):
    path = tmp_path / "run" / "pool.json"
    data = ready(Numbers(), pool_file=str(path))
    assert Pool.load(path).history == data.pool.history
    assert json.loads(path.read_text())["fingerprint"] == fingerprint(Numbers())
    data.pool.label([data.pool.unlabeled[4]], strategy="me")
    assert Pool.load(path).cycle == 0  # labeling is the pool's business, saving is the caller's
    data.save_pool()
    again = ready(Numbers(), pool_file=path, seed=5)  # what the file says counts, not a new draw
    assert again.pool.history == data.pool.history
    assert sorted(numbers_of(again.train_dataloader())) == sorted(data.pool.labeled)


def test_without_a_pool_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ready(Numbers())
    data.save_pool()
    data.reload_pool()
    assert list(tmp_path.iterdir()) == []


def test_labels_of_another_process_are_read_from_the_file(tmp_path):
    path = tmp_path / "pool.json"
    data, other = ready(Numbers(), pool_file=path), ready(Numbers(), pool_file=path)
    other.pool.label([other.pool.unlabeled[0]], strategy="someone else")
    other.save_pool()
    data.setup("fit")
    assert data.pool.history == other.pool.history
    other.pool.label([other.pool.unlabeled[0]], strategy="someone else")
    other.save_pool()
    data.reload_pool()
    assert data.pool.history == other.pool.history
    data.pool.label([data.pool.unlabeled[0]], strategy="me")
    data.reload_pool()  # the file is behind
    assert data.pool.cycle == 3
    other.pool.label([other.pool.unlabeled[5]], strategy="someone else")
    other.save_pool()
    with pytest.raises(ValueError, match=rf"Pool file {re.escape(str(path))} and the current pool were labeled diff"):
        data.reload_pool()


def test_a_pool_file_of_other_data_is_refused(tmp_path):
    path = tmp_path / "pool.json"
    ready(Numbers(), pool_file=path)
    before = path.read_bytes()
    for other, message in (
        (Numbers(19), "it has 20 samples, this dataset has 19"),
        (Numbers(20, first=1), f"its fingerprint is {fingerprint(Numbers())}"),
    ):
        with pytest.raises(ValueError, match=f"^Pool file {re.escape(str(path))} belongs to other data: {message}"):
            ready(other, pool_file=path)
    assert path.read_bytes() == before


def test_a_broken_pool_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "pool.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"pool\.json is not valid JSON"):
        ready(Numbers(), pool_file=path)
    assert path.read_text() == "{"


def test_the_pool_cannot_be_read_before_the_setup():
    data = ActiveLearningDataModule(ToyDataset(), initial_size=10)
    with pytest.raises(MisconfigurationException, match=r"`pool_dataloader\(\)` needs the data: call `setup"):
        data.pool_dataloader([0, 1])


def test_setup_reads_a_dataset_once_to_identify_it_and_at_first_to_see_whether_reads_differ():
    reads = Counter()

    class Counting(Numbers):
        def __getitem__(self, index):
            reads[index] += 1
            return super().__getitem__(index)

    wrapped = TrainOnly(dataset=Counting(size=1000))
    data = ActiveLearningDataModule(wrapped, initial_size=10)
    for dataset, most in ((Counting(size=1000), 3 * 4 + 2 * 32), (None, 0), (Counting(size=1000), 2 * 32)):
        wrapped.options["dataset"] = dataset or wrapped.options["dataset"]
        reads.clear()
        data.setup("fit")
        assert 0.9 * most <= sum(reads.values()) <= most
    reads.clear()
    data.setup("test")
    assert not reads


def test_a_pool_with_the_fingerprint_of_an_earlier_version_is_taken_over_with_one_warning(tmp_path):
    path = tmp_path / "pool.json"
    data = ready(Numbers(), pool_file=path)
    text = path.read_text()
    path.write_text(text.replace(fingerprint(Numbers()), "2ade2be17853a528"))
    with pytest.raises(ValueError, match="it has 20 samples, this dataset has 21"):
        ready(Numbers(21), pool_file=path)
    with pytest.warns(UserWarning, match=r"pool\.json was written by an earlier version, .* only the number of sampl"):
        again = ready(Numbers(), pool_file=path)
    assert path.read_text() == text
    assert again.pool.digest() == data.pool.digest()
    ready(Numbers(), pool_file=path)  # a second warning would be an error
    with pytest.raises(ValueError, match="its fingerprint"):
        ready(Numbers(first=1), pool_file=path)


# ---------------------------------------------------------------- attributes and loaders of the wrapped datamodule


class Described(NumbersModule):
    """With attributes, a failing property and a count of the loaders it built."""

    def __init__(self):
        super().__init__()
        self.num_classes, self._secret, self.built = 4, 1, Counter()

    @property
    def class_names(self):
        return ["a", "b", "c", "d"]

    def train_dataloader(self):
        self.built["train"] += 1
        return DataLoader(
            self.train, batch_size=4, collate_fn=lambda samples: default_collate(samples)
        )  # not picklable

    def val_dataloader(self):
        self.built["val"] += 1
        return super().val_dataloader()


def test_attributes_of_the_wrapped_datamodule_are_those_of_the_wrapper():
    data = ActiveLearningDataModule(Described(), initial_size=6)
    assert (data.num_classes, data.class_names) == (4, ["a", "b", "c", "d"])
    assert not any(hasattr(data, name) for name in ("pool", "num_labels", "_secret"))
    with pytest.raises(AttributeError, match="Neither `ActiveLearningDataModule` nor Described has 'num_labels'"):
        _ = data.num_labels
    data.num_classes = 5
    assert data.datamodule.num_classes == 4
    assert not is_overridden("predict_dataloader", ActiveLearningDataModule(TrainOnly(), initial_size=6))


@pytest.mark.parametrize(("options", "builds"), [({}, 1), ({"reload_dataloaders_every_n_epochs": 1}, 3)])
def test_loaders_are_built_once_a_fit_and_anew_where_they_are_reloaded(tmp_path, options, builds):
    wrapped = Described()
    data = ActiveLearningDataModule(wrapped, initial_size=6)

    class Scoring(ValidatingProbe):
        def on_fit_end(self):
            for _ in range(3):
                data.pool_dataloader()

    for _ in range(2):
        wrapped.built.clear()
        make_trainer(tmp_path, max_epochs=3, num_sanity_val_steps=0, **options).fit(Scoring(), data)
        assert wrapped.built == {"train": builds, "val": 1 + builds}  # Lightning builds its validation loaders itself


def test_a_pickled_datamodule_leaves_the_loaders_behind():
    data = ready(Described())
    assert len(pickle.loads(pickle.dumps(data)).pool_dataloader()) == len(data.pool_dataloader())


def test_the_tuner_finds_batch_size_and_learning_rate_through_the_wrapper(tmp_path):
    class Tuned(ValidatingProbe):
        lr = 1e-3

    described = Described()
    described.batch_size = 4
    given = {"val_dataset": Numbers(3), "batch_size": 4}
    for wrapped, options in ((described, {}), (Numbers(), given)):
        data, model = ActiveLearningDataModule(wrapped, initial_size=16, **options), Tuned()
        tuner = Tuner(make_trainer(tmp_path, max_epochs=40, limit_val_batches=0))
        assert tuner.scale_batch_size(model, datamodule=data, max_trials=3, steps_per_trial=1) == data.batch_size == 8
        assert data.train_dataloader().batch_size == 8
        finder = tuner.lr_find(model, datamodule=data, num_training=40, early_stop_threshold=None)
        assert finder.suggestion() == model.lr != 1e-3
        assert data.pool.num_labeled == 16


def test_batches_of_the_pool_are_scored_by_functions():
    data, net = ready(Numbers()), nn.Linear(2, 4)
    batches = [part.batch for part in data.pool_dataloader()]
    assert torch.equal(noise_stability(net, data.pool_dataloader()), noise_stability(net, batches))
