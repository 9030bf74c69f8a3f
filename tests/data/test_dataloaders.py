import itertools
import pickle
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from lightning_al import ActiveLearningDataModule
from lightning_al.data.dataloaders import (
    CollateWithIndices,
    PoolBatch,
    PoolView,
    ShardedBatchSampler,
    check_loader,
    first_loader,
    labeled_loader,
    pool_loader,
    resolve_batch_size,
)
from lightning_al.data.datasets_module import DatasetsModule
from lightning_al.testing import ToyDataset

LABELED = [17, 3, 11, 5, 2]


class Squares(Dataset):
    """Square numbers for plain integers, and for nothing else."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if type(index) is not int:
            raise TypeError(f"plain integers only, got {type(index).__name__}")
        return index, index**2


class RandomStream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


def collate_to_lists(samples):
    return [list(column) for column in zip(*samples, strict=True)]


def start_worker(number):
    torch.set_num_threads(1)


def labeled(wrapped, indices=LABELED, batch_size=None, num_workers=None):
    return labeled_loader(wrapped, Subset(wrapped.dataset, list(indices)), batch_size, num_workers)


def positions(loader):
    return [indices.tolist() for indices, _ in loader]


def flat(batches):
    return list(itertools.chain(*batches))


def pooled(wrapped, indices=LABELED, batch_size=None, num_workers=None, rank=0, world_size=1, collate=default_collate):
    view = PoolView(wrapped.dataset, array("q", indices))
    return pool_loader(view, wrapped, collate, batch_size, num_workers, rank, world_size)


# ---------------------------------------------------------------- samples with their indices


def test_a_view_shows_samples_with_plain_indices():
    view = PoolView(Squares(), array("q", [7, 2, 19]))
    assert len(view) == 3
    assert [view[position] for position in range(3)] == [(7, (7, 49)), (2, (2, 4)), (19, (19, 361))]
    assert view.__getitems__([2, 0]) == [(19, (19, 361)), (7, (7, 49))]
    for kind in (torch.tensor, np.array, tuple):
        view = PoolView(Squares(), kind([7, 2, 19]))
        assert {type(index) for index, _ in [*view.__getitems__([0, 1, 2]), view[1]]} == {int}


def test_a_dataset_that_reads_several_samples_at_once_may_do_so():
    from datasets import Dataset as HuggingFaceDataset

    class Recording(Squares):
        asked: tuple = ()

        def __getitems__(self, indices):
            self.asked = (*self.asked, indices)
            return [self[index] for index in indices]

    dataset = Recording()
    (batch,) = pooled(DataLoader(dataset, batch_size=8))
    assert dataset.asked == (LABELED,)
    assert batch.indices == batch.batch[0].tolist() == LABELED
    view = PoolView(HuggingFaceDataset.from_dict({"text": list("abcde")}), array("q", [4, 0]))
    assert view.__getitems__([0, 1]) == [(4, {"text": "e"}), (0, {"text": "a"})] == [view[0], view[1]]


def test_the_collate_function_of_the_user_keeps_its_batch():
    collate = pickle.loads(pickle.dumps(CollateWithIndices(collate_to_lists)))
    assert collate([(7, ("a", 1)), (2, ("b", 2))]) == PoolBatch([7, 2], [["a", "b"], [1, 2]])


# ---------------------------------------------------------------- batches of a rank


@given(size=st.integers(0, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 8))
def test_the_ranks_share_the_batches_of_one_process(size, batch_size, world_size):
    single = list(ShardedBatchSampler(size, batch_size))
    assert [index for batch in single for index in batch] == list(range(size))
    assert all(len(batch) == batch_size for batch in single[:-1])
    samplers = [ShardedBatchSampler(size, batch_size, rank, world_size) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert sorted(itertools.chain(*shares)) == single  # every batch exactly once: no padding
    assert [share == single[rank::world_size] for rank, share in enumerate(shares)] == [True] * world_size
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_may_have_no_batch():
    shares = [list(ShardedBatchSampler(5, 4, rank, 3)) for rank in range(3)]
    assert shares == [[[0, 1, 2, 3]], [[4]], []]
    loaders = [pooled(DataLoader(Squares(), batch_size=4), rank=rank, world_size=3) for rank in range(3)]
    assert [len(loader) for loader in loaders] == [1, 1, 0]
    assert [[batch.indices for batch in loader] for loader in loaders] == [[LABELED[:4]], [LABELED[4:]], []]


# ---------------------------------------------------------------- the loader of the pool


def test_the_pool_is_neither_shuffled_nor_dropped_nor_padded():
    wrapped = DataLoader(Squares(), batch_size=2, shuffle=True, drop_last=True, collate_fn=collate_to_lists)
    batches = list(pooled(wrapped))
    assert [batch.indices for batch in batches] == [[17, 3], [11, 5], [2]]
    assert [batch.batch[1].tolist() for batch in batches] == [[289, 9], [121, 25], [4]]
    assert {type(index) for batch in batches for index in batch.indices} == {int}
    assert [len(batch.indices) for batch in pooled(wrapped, batch_size=4)] == [4, 1]
    assert next(iter(pooled(wrapped, collate=collate_to_lists))).batch == [[17, 3], [289, 9]]


def test_the_pool_is_read_by_workers_with_the_same_result():
    wrapped = DataLoader(
        Squares(), batch_size=2, num_workers=2, persistent_workers=True, prefetch_factor=3, worker_init_fn=start_worker
    )
    loader = pooled(wrapped)
    assert (loader.num_workers, loader.prefetch_factor, loader.worker_init_fn) == (2, 3, start_worker)
    assert not loader.persistent_workers
    alone = pooled(wrapped, num_workers=0)
    assert (alone.num_workers, alone.prefetch_factor) == (0, None)
    assert [batch.indices for batch in loader] == [batch.indices for batch in alone] == [[17, 3], [11, 5], [2]]


# ---------------------------------------------------------------- the loader of the labeled part


def test_the_options_of_the_user_carry_over():
    wrapped = DataLoader(
        Squares(),
        batch_size=3,
        shuffle=True,
        num_workers=2,
        collate_fn=collate_to_lists,
        pin_memory=True,
        timeout=7,
        worker_init_fn=start_worker,
        multiprocessing_context="spawn",
        generator=torch.Generator().manual_seed(1),
        prefetch_factor=5,
        persistent_workers=True,
    )
    for loader in (labeled(wrapped), pooled(wrapped, collate=collate_to_lists)):
        for name in ("num_workers", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor"):
            assert getattr(loader, name) == getattr(wrapped, name), name
        assert loader.multiprocessing_context.get_start_method() == "spawn"
    loader = labeled(wrapped)
    assert (loader.batch_size, loader.drop_last, loader.persistent_workers) == (3, False, True)
    assert loader.collate_fn is collate_to_lists
    assert loader.generator is wrapped.generator
    assert isinstance(loader.sampler, RandomSampler)
    assert isinstance(loader.dataset, Subset)
    assert loader.dataset.dataset is wrapped.dataset


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("pinned", [False, True])
def test_batches_are_pinned_where_the_user_or_the_caller_says_so(own, pinned):
    wrapped = DataLoader(Squares(), batch_size=5, pin_memory=own)
    view = PoolView(wrapped.dataset, LABELED)
    loader = pool_loader(view, wrapped, default_collate, None, None, 0, 1, pinned=pinned)
    assert loader.pin_memory is (own or pinned)
    assert pooled(wrapped).pin_memory is own
    assert wrapped.pin_memory is own


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("cuda:1", True), (None, False)])
def test_the_pool_is_pinned_for_a_gpu(device, pinned):
    data = ActiveLearningDataModule(Squares(), initial_size=3, batch_size=4)
    data.setup("fit")
    if device is not None:
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)
    assert data.pool_dataloader([4, 5, 6]).pin_memory is pinned


def test_batch_size_and_workers_can_be_replaced():
    wrapped = DataLoader(Squares(), batch_size=3, num_workers=2, prefetch_factor=5, persistent_workers=True, timeout=7)
    loader = labeled(wrapped, batch_size=4, num_workers=0)
    assert (loader.batch_size, loader.num_workers, loader.prefetch_factor) == (4, 0, None)
    assert (loader.persistent_workers, loader.timeout) == (False, 0)
    loader = labeled(DataLoader(Squares()), num_workers=2)
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 2, False)
    assert sorted(flat(positions(loader))) == sorted(LABELED)


def test_an_epoch_is_the_labeled_part_exactly_and_shuffled():
    torch.manual_seed(0)
    loader = labeled(DataLoader(Squares(), batch_size=2, shuffle=True), indices=range(1, 20, 2))
    epochs = [positions(loader) for _ in range(3)]
    assert [sorted(flat(epoch)) for epoch in epochs] == [list(range(1, 20, 2))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_sequential_loader_stays_sequential():
    assert positions(labeled(DataLoader(Squares(), batch_size=2))) == [[17, 3], [11, 5], [2]]


def test_the_generator_of_the_user_shuffles():
    def epoch(seed):
        generator = torch.Generator().manual_seed(seed)
        return positions(labeled(DataLoader(Squares(), 2, shuffle=True, generator=generator), indices=range(20)))

    assert epoch(1) == epoch(1) != epoch(2)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_distributed_sampler_stays_distributed(shuffle):
    loaders = []
    for rank in range(2):
        sampler = DistributedSampler(Squares(), 2, rank, shuffle=shuffle, seed=4)
        loader = labeled(DataLoader(Squares(), 3, sampler=sampler), indices=range(2, 14))
        ours = loader.sampler
        assert isinstance(ours, DistributedSampler)
        assert (ours.num_replicas, ours.rank, ours.shuffle, ours.seed, ours.drop_last) == (2, rank, shuffle, 4, False)
        loaders.append(loader)
    shares = [flat(positions(loader)) for loader in loaders]
    assert sorted(shares[0] + shares[1]) == list(range(2, 14))
    assert (shares == [list(range(2, 14, 2)), list(range(3, 14, 2))]) is not shuffle
    loaders[0].sampler.set_epoch(1)
    assert (flat(positions(loaders[0])) != shares[0]) is shuffle


@pytest.mark.parametrize(
    "sampler",
    [
        WeightedRandomSampler([1.0] * 20, 20),
        RandomSampler(Squares(), replacement=True),
        RandomSampler(Squares(), num_samples=10),
    ],
)
def test_a_sampler_of_its_own_is_replaced_with_a_warning(sampler):
    message = f"{type(sampler).__name__} draws from the whole dataset, so the labeled part is shuffled uniformly"
    with pytest.warns(UserWarning, match=message):
        loader = labeled(DataLoader(Squares(), batch_size=2, sampler=sampler))
    assert isinstance(loader.sampler, RandomSampler)
    assert sorted(flat(positions(loader))) == sorted(LABELED)


@pytest.mark.parametrize(("size", "lengths"), [(2, [2, 2]), (4, [4]), (5, [5]), (6, [5])])
def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one(size, lengths):
    loader = labeled(DataLoader(Squares(), batch_size=size, shuffle=True, drop_last=True))
    assert [len(batch) for batch in positions(loader)] == lengths
    assert loader.drop_last is (size <= 5)


def test_a_batch_sampler_of_its_own_needs_a_batch_size():
    batches = BatchSampler(RandomSampler(Squares()), 4, drop_last=False)
    wrapped = DataLoader(Squares(), batch_sampler=batches)
    message = r"batches by a BatchSampler of its own.*Pass `ActiveLearningDataModule\(batch_size=\.\.\.\)`"
    with pytest.raises(MisconfigurationException, match=message):
        labeled(wrapped)
    with pytest.raises(MisconfigurationException, match=message):
        pooled(wrapped)
    loader = labeled(wrapped, batch_size=2)
    assert isinstance(loader.sampler, RandomSampler)  # the sequential one that torch gave `wrapped` is no wish
    assert sorted(flat(positions(loader))) == sorted(LABELED)
    assert [batch.indices for batch in pooled(wrapped, batch_size=3)] == [LABELED[:3], LABELED[3:]]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_loader_that_does_not_batch_is_refused(batch_size):
    with pytest.raises(
        MisconfigurationException, match=r"does not batch \(`batch_size=None`\).* Squares is a whole batc"
    ):
        labeled(DataLoader(Squares(), batch_size=None), batch_size=batch_size)


def test_the_batch_size_is_that_of_the_argument_or_the_loader():
    assert resolve_batch_size(DataLoader(Squares(), batch_size=3), None) == 3
    assert resolve_batch_size(DataLoader(Squares(), batch_size=3), 7) == 7


# ---------------------------------------------------------------- what is a training loader


def test_one_loader_over_a_map_style_dataset_is_accepted():
    loader = DataLoader(ConcatDataset([Squares(), ToyDataset(3)]), shuffle=True)
    assert check_loader(loader, "source") is loader


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        ([DataLoader(Squares())], "list"),
        ({"a": DataLoader(Squares())}, "dict"),
        (None, "NoneType"),
        (DataLoader(RandomStream()), "RandomStream"),
    ],
)
def test_anything_else_is_refused_with_the_type(loader, found):
    with pytest.raises(
        TypeError, match=rf"`M\.train_dataloader\(\)` returned a {found}; expected one DataLoader over a map"
    ):
        check_loader(loader, "M.train_dataloader()")


class EveryOther(RandomSampler):
    def __iter__(self):
        return iter(range(0, 20, 2))


@pytest.mark.parametrize("own_batches", [True, False])
@pytest.mark.parametrize(
    "sampler",
    [
        SubsetRandomSampler(range(20)),
        list(range(15)),
        SequentialSampler(range(15)),
        RandomSampler(range(15)),
        WeightedRandomSampler([1.0] * 15, 20),
        WeightedRandomSampler([1.0] * 19 + [0.0], 20),
        DistributedSampler(range(15), 2, 0),
        EveryOther(Squares()),
    ],
)
def test_a_sampler_that_may_leave_samples_out_is_refused(sampler, own_batches):
    batches = {"batch_sampler": BatchSampler(sampler, 2, False)} if own_batches else {"sampler": sampler}
    message = rf"`here` samples by a {type(sampler).__name__}, which may leave out some of the 20 .*`Subset\(dataset"
    with pytest.raises(MisconfigurationException, match=message):
        check_loader(DataLoader(Squares(), **batches), "here")


def test_batches_of_unknown_origin_are_refused():
    with pytest.raises(MisconfigurationException, match="`here` samples by a list, which may leave out"):
        check_loader(DataLoader(Squares(), batch_sampler=[[0, 1], [2]]), "here")


def test_the_first_evaluation_loader_that_collates_is_found():
    loader, own = DataLoader(Squares()), DataLoader(Squares(), batch_sampler=BatchSampler(range(20), 4, False))
    assert first_loader(loader) is loader
    assert first_loader([(own, loader), loader]) is own
    for nothing in (None, [], [[]], {}, DataLoader(Squares(), batch_size=None)):
        assert first_loader(nothing) is None


# ---------------------------------------------------------------- datasets as a datamodule


def test_datasets_become_plain_loaders():
    module = DatasetsModule(Squares(), val=ToyDataset(40), test=ToyDataset(50))
    train, val, test = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    assert [loader.batch_size for loader in (train, val, test)] == [32, 32, 32]
    assert [len(loader.dataset) for loader in (train, val, test)] == [20, 40, 50]
    assert isinstance(train.sampler, RandomSampler)
    assert not isinstance(val.sampler, RandomSampler)
    assert next(iter(test))[1].tolist() == ToyDataset(50).targets[:32].tolist()


@pytest.mark.parametrize("given", [{}, {"val": ToyDataset(4)}, {"test": ToyDataset(4)}])
def test_absent_data_does_not_look_overridden(given):
    module = pickle.loads(pickle.dumps(DatasetsModule(Squares(), **given)))
    assert isinstance(module, LightningDataModule)
    assert is_overridden("train_dataloader", module)
    for name in ("val", "test"):
        assert is_overridden(f"{name}_dataloader", module) is (name in given)
        assert name not in given or len(getattr(module, f"{name}_dataloader")().dataset) == 4


@pytest.mark.parametrize(
    ("train", "found"),
    [(RandomStream(), "RandomStream"), (DataLoader(Squares()), "DataLoader"), (3, "int"), (iter([1]), "list_iterator")],
)
def test_training_data_without_indices_is_refused(train, found):
    with pytest.raises(TypeError, match=rf"`ActiveLearningDataModule\({found}\)`: expected .* map-style dataset"):
        DatasetsModule(train)


def test_any_sequence_is_a_map_style_dataset():
    assert positions(labeled(DatasetsModule([(torch.tensor(i), 0) for i in range(9)]).train_dataloader(), [4])) == [[4]]
    assert len(DatasetsModule(TensorDataset(torch.zeros(5))).train_dataloader().dataset) == 5


def test_the_first_loader_is_found_in_dicts_and_combined_loaders():
    first, second = DataLoader(ToyDataset(size=4)), DataLoader(ToyDataset(size=5))
    assert first_loader({"a": first, "b": second}) is first
    assert first_loader(CombinedLoader({"a": [first], "b": second})) is first
    assert first_loader(CombinedLoader([second, first])) is second
    assert first_loader({}) is None


def test_batch_size_and_workers_reach_all_loaders_of_datasets():
    data = ActiveLearningDataModule(
        ToyDataset(), initial_size=10, val_dataset=ToyDataset(), test_dataset=ToyDataset(), batch_size=7, num_workers=2
    )
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert (loader.batch_size, loader.num_workers) == (7, 2)


def test_hasattr_answers_before_the_pool_is_there():
    data = ActiveLearningDataModule(ToyDataset(), initial_size=10)
    assert not hasattr(data, "pool")
    data.setup("fit")
    assert hasattr(data, "pool")
