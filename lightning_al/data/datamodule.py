"""The datamodule that splits any data into a labeled and an unlabeled part."""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from lightning_al.data.answered_dataset import answered_part, open_labels
from lightning_al.data.dataloaders import TRANSFER_HOOKS, PoolBatch, PoolView, labeled_loader, pool_loader
from lightning_al.data.datasets_module import to_datamodule
from lightning_al.data.draw import draw_part
from lightning_al.data.evaluation_view import evaluation_dataset
from lightning_al.data.fingerprint import fingerprint, warn_if_reads_differ
from lightning_al.data.initial_labels import check_initial_size, draw_initial
from lightning_al.data.pool import Pool
from lightning_al.data.sizes import check_counts
from lightning_al.data.stored_pool import check_identity, merge_pools
from lightning_al.data.targets import LabelKey
from lightning_al.data.wrapped_loaders import WrappedLoaders
from lightning_al.numerics.seeding import RandomStream, make_generator, seeded
from lightning_al.storage.labels_file import Labels

PASSED_THROUGH = ("val_dataloader", "test_dataloader", "predict_dataloader", *TRANSFER_HOOKS)


class NoPoolError(MisconfigurationException, AttributeError):
    """The pool was read before `setup("fit")`; an `AttributeError`, so that `hasattr` returns False."""


class ActiveLearningDataModule(LightningDataModule):
    """Train on the labeled part of any data, and provide the rest to an acquisition.

    The wrapped datamodule or dataset is used as it is: its loaders' batch size, workers, collate function and
    pinned memory carry over, and its validation, test and predict loaders pass through. An index always means a
    position in the dataset of its `train_dataloader`. Attributes that this class lacks are the wrapped datamodule's.

    Pool samples are read with evaluation transforms: from `pool_dataset`; else from the training data with the
    transforms of the validation data; else from the training data itself, with a warning if two reads differ.

    Args:
        datamodule_or_train_dataset: A `LightningDataModule`, or any map-style dataset.
        initial_size: The first labeled part: a number of samples, a share of the dataset in (0, 1], or indices.
        pool_dataset: The training samples under evaluation transforms, in the same order; other samples are refused
            where names, raw data or positions show them.
        val_dataset: Validation data, where a dataset is wrapped.
        test_dataset: Test data, where a dataset is wrapped.
        batch_size: Samples per training batch; by default that of the wrapped loader, 32 for a dataset.
        num_workers: Worker processes per loader; by default those of the wrapped loader, 0 for a dataset.
        pool_batch_size: Samples per batch while scoring; by default the training batch size.
        candidates: Score only this many unlabeled samples per cycle, drawn at random; by default all.
        balanced_start: Draw the initial samples evenly from the classes (needs every label: for experiments).
        seed: Seed of the initial draw, of the candidates, of `setup` (so that a `random_split` in it is the same
            in every process) and of acquisitions that have no seed of their own.
        pool_file: JSON file that keeps the pool; read if it exists, written after each labeling.
        label_key: Where a sample has its target: a position, or a key; by default the second of two entries, or the
            only one with a usual name (`label`, `target`, `y`, ...). Classes are counted by it, and it is no part of
            the identity of the data.
        labels: What people answer, a `Labels` or the path of its file: every target comes from there, and samples
            without a label are not trained on. None: the dataset has all targets.

    Raises:
        TypeError: If the data is neither a datamodule nor a map-style dataset.
        ValueError: If a size is out of range.

    Cost: one 32-bit integer per sample. A dataset is identified once, by names, by 256 rows of an array, or by 32
    samples that are each read twice. The first `setup("fit")` also reads 4 samples three times, to see whether reads
    or collated batches differ, and every label if `balanced_start`.

    Example:
        >>> from lightning_al.testing import ToyDataset
        >>> data = ActiveLearningDataModule(ToyDataset(), initial_size=10, batch_size=5)
        >>> data.setup("fit")
        >>> data.pool, len(data.train_dataloader()), data.candidate_indices()[:3]
        (Pool(10 of 120 labeled, cycle 0), 2, array('q', [0, 1, 2]))

    """

    def __init__(
        self,
        datamodule_or_train_dataset: LightningDataModule | Dataset,  # type: ignore[type-arg]  # YAML needs a class
        *,
        initial_size: int | float | Sequence[int],
        pool_dataset: Dataset | None = None,  # type: ignore[type-arg]
        val_dataset: Dataset | None = None,  # type: ignore[type-arg]
        test_dataset: Dataset | None = None,  # type: ignore[type-arg]
        batch_size: int | None = None,
        num_workers: int | None = None,
        pool_batch_size: int | None = None,
        candidates: int | None = None,
        balanced_start: bool = False,
        seed: int = 0,
        pool_file: str | os.PathLike[str] | None = None,
        label_key: LabelKey | None = None,
        labels: Labels | str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        check_counts(batch_size=batch_size, pool_batch_size=pool_batch_size, candidates=candidates)
        datasets = (datamodule_or_train_dataset, val_dataset, test_dataset)
        self.datamodule = to_datamodule(*datasets, batch_size=batch_size, num_workers=num_workers)
        self.initial_size = check_initial_size(initial_size)
        self.pool_dataset = pool_dataset
        self._batch_size, self.num_workers = batch_size, num_workers
        self.pool_batch_size = pool_batch_size
        self.candidates, self.balanced_start = candidates, balanced_start
        self.seed = seed
        self.pool_file = None if pool_file is None else Path(pool_file)
        self.label_key = label_key
        self.labels = open_labels(labels, balanced_start)
        for flag in ("prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices"):
            setattr(self, flag, getattr(self.datamodule, flag))
        for name in PASSED_THROUGH:
            # Lightning checks whether a datamodule overrides a hook, so only those that the user wrote are set
            if is_overridden(name, self.datamodule):
                setattr(self, name, getattr(self.datamodule, name))
        self._pool: Pool | None = None
        self._train_dataset: Any = None
        self._fingerprint = ""  # of that dataset
        self._evaluation_dataset: Any = None
        self._cycle: int | None = None
        self._loaders = WrappedLoaders(self.datamodule, seed)

    if not TYPE_CHECKING:  # where mypy would accept any attribute

        def __getattr__(self, name: str) -> Any:
            """Return an attribute of the wrapped datamodule that this one lacks."""
            if hasattr(type(self), name):  # a property that raised
                return object.__getattribute__(self, name)
            wrapped = self.__dict__.get("datamodule")
            if not name.startswith("_") and hasattr(wrapped, name):
                return getattr(wrapped, name)
            raise AttributeError(f"Neither `ActiveLearningDataModule` nor {type(wrapped).__name__} has {name!r}.")

    @property
    def batch_size(self) -> int | None:
        """Samples per training batch: as given or set, else as the wrapped datamodule has it under this name."""
        return getattr(self.datamodule, "batch_size", None) if self._batch_size is None else self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int | None) -> None:
        self._batch_size = batch_size

    @property
    def pool(self) -> Pool:
        """The labeled and unlabeled indices, from `setup("fit")` on."""
        if self._pool is None:
            raise NoPoolError(
                '`ActiveLearningDataModule.pool` is made in `setup("fit")`, when the size of the dataset is known: '
                'call `trainer.fit`, or `prepare_data()` and `setup("fit")`, first.'
            )
        return self._pool

    @property
    def cycle(self) -> int:
        """The cycle whose labels `train_dataloader` uses: the pool's, unless `begin_cycle` set another."""
        return self.pool.cycle if self._cycle is None else self._cycle

    def is_queried(self, cycle: int) -> bool:
        """Return whether the query at the end of a cycle is finished, in this process or an earlier one."""
        return self._pool is not None and self._pool.cycle > cycle

    def begin_cycle(self, cycle: int | None) -> None:
        """Set the cycle whose labels are used, even if later ones exist; None uses that of the pool."""
        self._cycle = cycle

    def prepare_data(self) -> None:
        """Run `prepare_data` of the wrapped datamodule, on one process."""
        self.datamodule.trainer = self.trainer
        self.datamodule.prepare_data()

    def setup(self, stage: str) -> None:
        """Set the wrapped datamodule up; before a fit, check the training data and make or load the pool.

        Args:
            stage: `"fit"`, `"validate"`, `"test"` or `"predict"`.

        Raises:
            TypeError: If the training loader is not one map-style `DataLoader`.
            ValueError: If the dataset differs from the one of an earlier cycle or of the pool file.

        """
        self.datamodule.trainer = self.trainer
        with seeded(RandomStream.SETUP, self.seed):
            self.datamodule.setup(stage)
        if stage != "fit":
            return
        first_time = self._train_dataset is None
        self._loaders.clear()
        training, evaluation = self._loaders.get()
        self._evaluation_dataset = evaluation_dataset(training.dataset, self.pool_dataset, evaluation)
        if first_time:
            warn_if_reads_differ(self._evaluation_dataset, (evaluation or training).collate_fn, self.label_key)
        if training.dataset is not self._train_dataset:
            self._train_dataset, self._fingerprint = training.dataset, fingerprint(training.dataset, self.label_key)
        self._refresh_pool()

    def teardown(self, stage: str) -> None:
        """Run `teardown` of the wrapped datamodule."""
        self.datamodule.teardown(stage)
        if stage == "fit":
            self._loaders.clear()

    def on_exception(self, exception: BaseException) -> None:
        """Run `on_exception` of the wrapped datamodule."""
        self.datamodule.on_exception(exception)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader over the labeled part, with the options of the wrapped training loader."""
        wrapped, indices = self._loaders.for_training(), self.labeled_indices(self.cycle)
        labeled = answered_part(wrapped.dataset, indices, self.labels, self.label_key)
        return labeled_loader(wrapped, labeled, self._batch_size, self.num_workers)

    def labeled_indices(self, cycle: int) -> "array[int]":
        """Return the dataset indices that a cycle trains on, without those that people have not labeled."""
        indices, labels = self.pool.labeled_by(cycle), self.labels
        return indices if labels is None else array("q", [i for i in indices if labels.get(i) is not None])

    def candidate_indices(self) -> "array[int]":
        """Return the unlabeled dataset indices that this cycle can pick from, ascending."""
        unlabeled = self.pool.unlabeled
        if self.candidates is None or self.candidates >= len(unlabeled):
            return unlabeled
        generator = make_generator(RandomStream.CANDIDATES, self.seed, self.pool.cycle)
        return array("q", draw_part(unlabeled, self.candidates, generator))

    def pool_dataloader(self, indices: Sequence[int] | None = None, *, shard: bool = True) -> DataLoader[PoolBatch]:
        """Return this process's share of a loader over samples under evaluation transforms.

        Args:
            indices: Dataset indices to read; by default `candidate_indices()`.
            shard: Distribute the batches over the processes; False gives all of them to each.

        Returns:
            A loader of `PoolBatch(indices, batch)`, never shuffled and never padded; processes share whole batches.

        """
        if self._evaluation_dataset is None:
            raise MisconfigurationException('`pool_dataloader()` needs the data: call `setup("fit")` first.')
        view = PoolView(self._evaluation_dataset, self.candidate_indices() if indices is None else indices)
        training, evaluation = self._loaders.get()
        # the training loader's collate function may augment (mixup), the validation loader's should not
        collate_fn = (evaluation or training).collate_fn
        batch_size = self.pool_batch_size or self._batch_size
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer and shard else (0, 1)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return pool_loader(view, training, collate_fn, batch_size, self.num_workers, rank, world_size, pinned=on_gpu)

    @rank_zero_only
    def save_pool(self) -> None:
        """Write the pool file, if there is one, from the first process."""
        if self.pool_file is not None:
            self.pool.save(self.pool_file)

    def state_dict(self) -> dict[str, Any]:
        """Return the pool and the wrapped datamodule's state for a checkpoint."""
        state = {} if self._pool is None else {"pool": self._pool.state_dict()}
        return {**state, "datamodule": self.datamodule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from a checkpoint; labels that came after it was written are kept.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: If the checkpoint's pool belongs to other data or has another history.

        """
        self.datamodule.load_state_dict(state_dict["datamodule"])
        if "pool" in state_dict:
            source = "The checkpoint's pool"
            self._merge(Pool.from_state_dict(state_dict["pool"], source), source)

    def reload_pool(self) -> None:
        """Read the pool file again, after other processes (`ddp_spawn`) or a person may have labeled."""
        if self.pool_file is not None and self.pool_file.exists():
            self._merge(Pool.load(self.pool_file), f"Pool file {self.pool_file}")

    def _merge(self, stored: Pool, source: str) -> None:
        self._pool = merge_pools(self._pool, stored, source, kept_in_file=self.pool_file is not None)

    def _refresh_pool(self) -> None:
        self.reload_pool()
        size, before = len(self._train_dataset), self._pool and self._pool.fingerprint
        if self._pool is None:
            pool, generator = Pool(size, self._fingerprint), make_generator(RandomStream.INITIAL, self.seed)
            drawn = draw_initial(self._train_dataset, self.initial_size, generator, self.balanced_start, self.label_key)
            pool.label(drawn, strategy="initial")
            self._pool = pool
        source = "The pool" if self.pool_file is None else f"Pool file {self.pool_file}"
        check_identity(self._pool, size, self._fingerprint, source)
        if self._pool.fingerprint != before:
            self.save_pool()
