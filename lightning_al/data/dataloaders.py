"""Loaders over a part of the data that keep the options of the user's own loader."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


CARRIED_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)


class PoolBatch(NamedTuple):
    """A batch of the pool together with the dataset index of each of its samples."""

    indices: list[int]
    batch: Any


class PoolView(Dataset[tuple[int, Any]]):
    """Some samples of a dataset, each with its dataset index.

    Args:
        dataset: Any map-style dataset; it is indexed by plain Python integers only.
        indices: Dataset indices to read, in this order.

    """

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        index = int(self.indices[position])
        return index, self.dataset[index]

    def __getitems__(self, positions: list[int]) -> list[tuple[int, Any]]:
        """Read several samples at once, which datasets such as Hugging Face's do much faster."""
        indices = [int(self.indices[position]) for position in positions]
        if callable(getattr(self.dataset, "__getitems__", None)):
            return list(zip(indices, self.dataset.__getitems__(indices), strict=True))
        return [(index, self.dataset[index]) for index in indices]


@dataclass(frozen=True)
class CollateWithIndices:
    """A collate function for `PoolView` around the user's own one; a class, so that workers can pickle it."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[tuple[int, Any]]) -> PoolBatch:
        """Collate samples by the user's function, and return them with their indices."""
        return PoolBatch([index for index, _ in items], self.collate([sample for _, sample in items]))


class ShardedBatchSampler(Sampler[list[int]]):
    """The batches of one rank: whole batches are distributed, without padding and without a shuffle.

    A batch has the same samples on any number of processes. Kernels may round differently for another batch size,
    so this makes scores, and with them the picks, bit-identical on any number of processes.

    Args:
        size: Number of samples over all ranks.
        batch_size: Samples per batch; the last batch may be smaller.
        rank: This process.
        world_size: Number of processes.

    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.starts = range(rank * batch_size, size, world_size * batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self.starts:
            yield list(range(start, min(start + self.batch_size, self.size)))

    def __len__(self) -> int:
        return len(self.starts)


def check_loader(loader: Any, source: str) -> DataLoader[Any]:
    """Return a training loader if its samples have indices.

    Args:
        loader: The result of a datamodule's `train_dataloader()`.
        source: The call that returned it, for the message.

    Returns:
        The loader.

    Raises:
        TypeError: If it is not one `DataLoader`, or its dataset is a stream.
        MisconfigurationException: If its sampler may keep a part of the dataset out of training.

    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        kind = type(loader.dataset if isinstance(loader, DataLoader) else loader).__name__
        raise TypeError(
            f"`{source}` returned a {kind}; expected one DataLoader over a map-style dataset, whose samples have "
            "indices. Join several datasets with `ConcatDataset`; materialize a stream."
        )
    sampler = getattr(loader.batch_sampler, "sampler", None)
    size = len(loader.dataset)  # type: ignore[arg-type]
    if loader.batch_sampler is not None and not _draws_from_all(sampler, size):
        kind = type(sampler if sampler is not None else loader.batch_sampler).__name__
        raise MisconfigurationException(
            f"`{source}` samples by a {kind}, which may leave out some of the {size} samples, such as validation data, "
            "but all of them would become the pool. Expected a sequential, random or weighted sampler of the whole "
            "dataset: use `shuffle=True`, and `Subset(dataset, indices)` for a part of it."
        )
    return loader


def _draws_from_all(sampler: Any, size: int) -> bool:
    """Return whether a sampler is known to draw from every sample of the dataset."""
    # exactly these classes, since one derived from them may draw from less
    if type(sampler) in (SequentialSampler, RandomSampler):
        return len(sampler.data_source) == size
    if type(sampler) is DistributedSampler:
        return len(sampler.dataset) == size  # type: ignore[arg-type]
    if type(sampler) is WeightedRandomSampler:
        return len(sampler.weights) == size and bool((sampler.weights > 0).all())
    return False


def first_loader(loaders: Any) -> DataLoader[Any] | None:
    """Return the first loader of what an evaluation hook gave, or None if there is none that collates samples."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.iterables
    while isinstance(loaders, (list, tuple, Mapping)) and loaders:
        loaders = next(iter(loaders.values())) if isinstance(loaders, Mapping) else loaders[0]
    return loaders if isinstance(loaders, DataLoader) and loaders.batch_sampler is not None else None


def labeled_loader(
    wrapped: DataLoader[Any], labeled: Subset[Any], batch_size: int | None, num_workers: int | None
) -> DataLoader[Any]:
    """Make a training loader over the labeled samples with the options of another loader.

    Args:
        wrapped: The user's training loader.
        labeled: The labeled part.
        batch_size: Samples per batch; None for that of `wrapped`.
        num_workers: Worker processes; None for those of `wrapped`.

    Returns:
        A loader with the options of `wrapped`. It shuffles unless `wrapped` is sequential; an incomplete last batch
        is kept in any case while it is the only one.

    """
    size = resolve_batch_size(wrapped, batch_size)
    options = {**_carried_options(wrapped, num_workers), "drop_last": wrapped.drop_last and len(labeled) >= size}
    if isinstance(wrapped.sampler, DistributedSampler):
        original = wrapped.sampler
        sampler: DistributedSampler[Any] = DistributedSampler(
            labeled, original.num_replicas, original.rank, original.shuffle, original.seed, original.drop_last
        )
        return DataLoader(labeled, size, sampler=sampler, **options)
    sequential = isinstance(wrapped.sampler, SequentialSampler)
    if not sequential and not _is_plain_shuffle(wrapped.sampler):
        rank_zero_warn(
            f"The training loader's {type(wrapped.sampler).__name__} draws from the whole dataset, so the labeled part "
            "is shuffled uniformly instead. Weigh classes in the loss if that matters."
        )
    # with a batch sampler by the user, the loader's own sampler is a sequential one that torch sets and never uses
    shuffle = wrapped.batch_size is None or not sequential
    return DataLoader(labeled, size, shuffle=shuffle, generator=wrapped.generator, **options)


def _is_plain_shuffle(sampler: Any) -> bool:
    if not isinstance(sampler, RandomSampler) or sampler.replacement:
        return False
    return sampler.num_samples == len(sampler.data_source)


def pool_loader(
    view: PoolView,
    wrapped: DataLoader[Any],
    collate_fn: Callable[[list[Any]], Any],
    batch_size: int | None,
    num_workers: int | None,
    rank: int,
    world_size: int,
    pinned: bool = False,
) -> DataLoader[PoolBatch]:
    """Make one process's loader over samples with their indices: never shuffled, never padded.

    Args:
        view: The samples to read.
        wrapped: The user's training loader.
        collate_fn: The user's collate function for evaluation.
        batch_size: Samples per batch; None for that of `wrapped`.
        num_workers: Worker processes; None for those of `wrapped`.
        rank: This process.
        world_size: Number of processes.
        pinned: Pin the batches in memory even if `wrapped` does not, so that they are copied while a GPU computes.

    Returns:
        A loader of `PoolBatch(indices, batch)`.

    """
    sampler = ShardedBatchSampler(len(view), resolve_batch_size(wrapped, batch_size), rank, world_size)
    options = _carried_options(wrapped, num_workers)
    options.update(collate_fn=CollateWithIndices(collate_fn), persistent_workers=False)  # it is read only once
    options["pin_memory"] |= pinned
    return DataLoader[Any](view, batch_sampler=sampler, **options)


def local_indices(loader: DataLoader[PoolBatch]) -> list[int]:
    """Return the dataset indices that a process's pool loader will read, in order."""
    view: Any = loader.dataset
    return [int(view.indices[position]) for positions in loader.batch_sampler or () for position in positions]


def resolve_batch_size(wrapped: DataLoader[Any], batch_size: int | None) -> int:
    """Return `batch_size`, or that of the wrapped loader.

    Raises:
        MisconfigurationException: If neither defines it, or the wrapped loader makes no batches.

    """
    if wrapped.batch_sampler is None:
        raise MisconfigurationException(
            "The training loader does not batch (`batch_size=None`), so an item of its "
            f"{type(wrapped.dataset).__name__} is a whole batch. Give it single samples and a `batch_size`."
        )
    size = batch_size or wrapped.batch_size
    if size is None:
        raise MisconfigurationException(
            f"The training loader batches by a {type(wrapped.batch_sampler).__name__} of its own, which covers the "
            "whole dataset. Pass `ActiveLearningDataModule(batch_size=...)` to batch the labeled part."
        )
    return size


def _carried_options(wrapped: DataLoader[Any], num_workers: int | None) -> dict[str, Any]:
    options = {name: getattr(wrapped, name) for name in CARRIED_OPTIONS}
    if num_workers is not None:
        options["num_workers"] = num_workers
    if options["num_workers"] == 0:  # DataLoader raises for options that only workers use
        options.update(prefetch_factor=None, persistent_workers=False, multiprocessing_context=None, timeout=0)
    return options
