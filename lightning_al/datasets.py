"""What the datamodule must know of a dataset: evaluation transforms, a fingerprint, the labels, a first draw."""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from lightning_al.adapters import label_of
from lightning_al.seeding import preserved_rng

TRANSFORM_ATTRIBUTES = ("transform", "target_transform", "transforms")


def with_transforms_of(dataset: Any, reference: Any) -> Any | None:
    """Return a shallow copy of `dataset` that transforms its samples the way `reference` does.

    Follows `Subset` and `ConcatDataset` down to the datasets that hold the transforms, so that `random_split`
    works too; the samples themselves are shared, not copied.

    Args:
        dataset: The training data.
        reference: A dataset with evaluation transforms, usually the validation data.

    Returns:
        The copy, or None if one of the two keeps no transform in an attribute of torchvision's names.

    """
    base = _base(reference)
    if base is None or not hasattr(base, "transform"):
        return None
    transforms = {name: getattr(base, name) for name in TRANSFORM_ATTRIBUTES if hasattr(base, name)}
    return _replace_transforms(dataset, transforms)


def _base(dataset: Any) -> Any | None:
    while isinstance(dataset, (Subset, ConcatDataset)) and not hasattr(dataset, "transform"):
        dataset = dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0]
    return dataset


def _replace_transforms(dataset: Any, transforms: Mapping[str, Any]) -> Any | None:
    if hasattr(dataset, "transform"):  # a subclass of Subset may well have one of its own
        try:
            return _copy_with(dataset, **{name: value for name, value in transforms.items() if hasattr(dataset, name)})
        except AttributeError:  # a property that cannot be set
            return None
    if isinstance(dataset, Subset):
        inner = _replace_transforms(dataset.dataset, transforms)
        return None if inner is None else _copy_with(dataset, dataset=inner)
    if isinstance(dataset, ConcatDataset):
        parts = [_replace_transforms(part, transforms) for part in dataset.datasets]
        return None if any(part is None for part in parts) else _copy_with(dataset, datasets=parts)
    return None


def _copy_with(original: Any, **attributes: Any) -> Any:
    clone = copy.copy(original)
    for name, value in attributes.items():
        setattr(clone, name, value)
    return clone


def differing_samples(dataset: Any, count: int = 4) -> list[int]:
    """Read a few samples twice and return the indices of those that came out different.

    Args:
        dataset: A map-style dataset.
        count: How many samples to read, spread evenly.

    Returns:
        Dataset indices; empty if the dataset looks deterministic.

    """
    with preserved_rng():
        return [index for index in _spread(len(dataset), count) if _digest(dataset[index]) != _digest(dataset[index])]


def fingerprint(dataset: Any, count: int = 8) -> str:
    """Identify a dataset by the content of a few samples, so that indices are never read against other data.

    Samples are read without their transforms where these are attributes, so that a changed augmentation does not
    make another dataset of it. Random samples contribute their shapes only.

    Args:
        dataset: A map-style dataset.
        count: How many samples to read, spread evenly.

    Returns:
        Sixteen hexadecimal digits.

    """
    plain = _replace_transforms(dataset, dict.fromkeys(TRANSFORM_ATTRIBUTES))
    digest = hashlib.sha256(str(len(dataset)).encode())
    with preserved_rng():
        for index in _spread(len(dataset), count):
            digest.update(_stable_digest(dataset if plain is None else plain, dataset, index))
    return digest.hexdigest()[:16]


def _stable_digest(plain: Any, dataset: Any, index: int) -> bytes:
    try:
        first, second = plain[index], plain[index]
    except Exception:  # a dataset that needs its transform, and may fail in any way without
        first, second = dataset[index], dataset[index]
    digest = _digest(first)
    return digest if digest == _digest(second) else _digest(first, content=False)


def _spread(size: int, count: int) -> list[int]:
    return sorted({round(position) for position in np.linspace(0, size - 1, min(count, size)).tolist()})


def _digest(sample: Any, content: bool = True) -> bytes:
    digest = hashlib.sha256()
    for part in _parts(sample, content):
        digest.update(part)
    return digest.digest()


def _parts(sample: Any, content: bool) -> Iterator[bytes]:
    yield type(sample).__name__.encode()
    if isinstance(sample, Mapping):
        for key, value in sample.items():
            yield str(key).encode()
            yield from _parts(value, content)
    elif isinstance(sample, (list, tuple)) or str(getattr(sample, "dtype", "")) == "object":  # bytes: addresses
        for value in sample:
            yield from _parts(value, content)
    elif isinstance(sample, Tensor):
        yield f"{sample.dtype}{tuple(sample.shape)}".encode()
        if content:
            yield sample.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif hasattr(sample, "__array__") or hasattr(sample, "__array_interface__"):  # NumPy, PIL images
        array = np.asarray(sample)
        yield f"{array.dtype}{array.shape}".encode()
        if content:
            yield array.tobytes()
    elif content and isinstance(sample, (str, bytes, int, float, complex)):
        yield repr(sample).encode()


def class_labels(dataset: Any, indices: Sequence[int] | None = None) -> list[int]:
    """Return the classes of samples, from an attribute where there is one, else by reading these samples.

    Args:
        dataset: A map-style classification dataset.
        indices: Of the samples; all by default.

    Returns:
        One integer per sample, in the order of `indices`.

    Raises:
        ValueError: If a sample carries no label that can be understood.

    """
    wanted = range(len(dataset)) if indices is None else indices
    if isinstance(dataset, Subset):
        return class_labels(dataset.dataset, [dataset.indices[index] for index in wanted])
    for name in ("targets", "labels", "y"):
        values: Any = getattr(dataset, name, None)
        if hasattr(values, "__len__") and len(values) == len(dataset):
            return [label_of((None, values[index])) for index in wanted]
    return [label_of(dataset[index]) for index in wanted]


def check_initial_size(initial_size: int | float | Sequence[int]) -> int | float | list[int]:
    """Return the size of the first labeled part if it can be one.

    Raises:
        ValueError: If it is neither a number of samples, nor a share, nor a sequence of indices.

    """
    if hasattr(initial_size, "tolist"):  # a number or an array of NumPy or torch
        initial_size = initial_size.tolist()
    if isinstance(initial_size, Sequence) and not isinstance(initial_size, str):
        return list(initial_size)
    fits = 0 < initial_size <= 1 if isinstance(initial_size, float) else type(initial_size) is int and initial_size >= 1
    if not fits:
        raise ValueError(
            f"`ActiveLearningDataModule(initial_size={initial_size!r})`: expected a number of samples (int, at least "
            "1), a share of the dataset (float in (0, 1]) or a sequence of dataset indices."
        )
    return initial_size


def draw_initial(
    dataset: Any, initial_size: int | float | list[int], generator: torch.Generator, balanced: bool = False
) -> list[int]:
    """Draw the first samples to label.

    Args:
        dataset: A map-style dataset.
        initial_size: A number of samples, a share of the dataset, or the indices themselves.
        generator: Where the randomness comes from.
        balanced: Take each class once before any is taken twice; reads every label.

    Returns:
        Distinct dataset indices.

    Raises:
        ValueError: If there are not as many samples.

    """
    if isinstance(initial_size, list):
        return initial_size
    size = len(dataset)
    count = initial_size if isinstance(initial_size, int) else max(1, round(initial_size * size))
    if count > size:
        raise ValueError(f"`ActiveLearningDataModule(initial_size={count})`: the dataset has {size} samples.")
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return (_round_robin(order, class_labels(dataset)) if balanced else order)[:count]


def _round_robin(order: list[int], labels: list[int]) -> list[int]:
    """Reorder so that each class comes once before any comes twice; within a class the order stays."""
    seen: dict[int, int] = {}
    turns = []
    for index in order:
        turns.append(seen.setdefault(labels[index], 0))
        seen[labels[index]] += 1
    return [order[row] for row in sorted(range(len(order)), key=turns.__getitem__)]
