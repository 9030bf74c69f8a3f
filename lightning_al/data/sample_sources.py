"""Where samples come from: the innermost datasets, and the names, paths and arrays that they keep in attributes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_al.data.batch import LABEL_KEYS
from lightning_al.data.targets import INPUT_NAMES
from lightning_al.numerics.seeding import RandomStream, derive_seed

# Attributes that may hold one name per sample. Only attributes of the instance are read: a property may do anything.
NAME_ATTRIBUTES = (
    *("samples", "imgs", "paths", "files", "filenames", "file_names", "image_paths", "image_files", "_image_files"),
    *("images", "ids", "data"),
)


class Source(NamedTuple):
    """An innermost dataset.

    Attributes:
        dataset: It reads its samples itself.
        positions: (n,) the positions in it that are used.
        places: (n,) the positions that these samples have in the outermost dataset.

    """

    dataset: Any
    positions: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]

    def take(self, count: int) -> npt.NDArray[np.int64]:
        """Return at most `count` of the positions, a seeded draw that depends on their number only."""
        size = len(self.positions)
        if size <= count:
            return self.positions
        # numbers of `RandomState` are the same in all versions of NumPy
        random = np.random.RandomState(derive_seed(RandomStream.IDENTITY, size) % 2**32)
        drawn: npt.NDArray[np.int64] = self.positions[np.unique(random.randint(0, size, count, dtype=np.int64))]
        return drawn


def sources_of(dataset: Any) -> list[Source]:
    """Follow `Subset` and `ConcatDataset` down to the datasets that read samples."""
    everything = np.arange(len(dataset), dtype=np.int64)
    return _sources(dataset, everything, everything)


def _sources(dataset: Any, positions: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> list[Source]:
    if isinstance(dataset, Subset):
        return _sources(dataset.dataset, np.asarray(dataset.indices, dtype=np.int64)[positions], places)
    if isinstance(dataset, ConcatDataset):
        ends = np.asarray(dataset.cumulative_sizes)
        part_of = np.searchsorted(ends, positions, side="right")
        starts = np.append(0, ends[:-1])
        return [
            source
            for number, part in enumerate(dataset.datasets)
            if (inside := part_of == number).any()
            for source in _sources(part, positions[inside] - starts[number], places[inside])
        ]
    return [Source(dataset, positions, places)]


def find_names(source: Source, count: int) -> tuple[str, list[str]] | None:
    """Return the attribute that names the samples, and at most `count` of the names; None if there is none.

    Args:
        source: A dataset; the names are texts, paths or numbers, alone, first in a tuple or under the name of an input.
        count: How many names to look at.

    Returns:
        The attribute and the names, paths relative to the folder that has them all. Names that are not all different
        and numbers that just count the samples identify nothing.

    """
    attributes = getattr(source.dataset, "__dict__", {})
    rows = source.take(count)
    for attribute in NAME_ATTRIBUTES:
        entries = attributes.get(attribute)
        if not isinstance(entries, Sequence) or isinstance(entries, str) or len(entries) != len(source.dataset):
            continue
        names = [name for row in rows.tolist() if (name := _name_of(entries[row])) is not None]
        if len(set(names)) == len(rows) and names != [str(row) for row in rows.tolist()]:
            return attribute, names
    return None


def relative_names(names: list[str]) -> list[str]:
    """Return paths relative to the folder that has them all, so that moved data keeps its names; other names as is."""
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # none, or relative and absolute ones
        return names
    return [name.removeprefix(folder).replace(os.sep, "/").lstrip("/") for name in names]


def _name_of(entry: Any) -> str | None:
    if isinstance(entry, (tuple, list)) and entry:
        entry = entry[0] if isinstance(entry[0], (str, os.PathLike)) else None
    elif isinstance(entry, Mapping):
        entry = next((entry[key] for key in INPUT_NAMES if isinstance(entry.get(key), (str, os.PathLike))), None)
    return str(entry) if isinstance(entry, (str, os.PathLike, int)) else None


def find_rows(source: Source) -> Any | None:
    """Return the inputs of all samples as one array, as `TensorDataset` and torchvision's small datasets keep them."""
    dataset = source.dataset
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[0]
    attributes = getattr(dataset, "__dict__", {})
    data = attributes.get("data")
    # where the targets are kept apart, `data` holds no target
    apart = any(name in attributes or hasattr(type(dataset), name) for name in LABEL_KEYS)
    if apart and isinstance(data, (Tensor, np.ndarray)) and data.ndim and len(data) == len(dataset):
        return data
    return None
