"""The training samples under the transforms of the validation data."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, DataLoader, Subset

from lightning_al.data.sample_content import hash_content
from lightning_al.data.sample_sources import Source, find_names, find_rows, relative_names, sources_of

TRANSFORM_ATTRIBUTES = ("transform", "target_transform", "transforms")
NUM_COMPARED = 1000  # names or rows


def evaluation_dataset(train_dataset: Any, pool_dataset: Any | None, evaluation: DataLoader[Any] | None) -> Any:
    """Return the training samples under evaluation transforms.

    Args:
        train_dataset: The training data.
        pool_dataset: The same samples under evaluation transforms, if the user passed them.
        evaluation: The first validation loader, whose transforms are taken otherwise.

    Returns:
        A dataset of the same length; the training data itself where no transforms are found.

    Raises:
        ValueError: If `pool_dataset` has other samples, as far as that can be seen.

    """
    if pool_dataset is not None:
        check_same_samples(train_dataset, pool_dataset)
        return pool_dataset
    view = None if evaluation is None else with_transforms_of(train_dataset, evaluation.dataset)
    return train_dataset if view is None else view


def check_same_samples(train_dataset: Any, pool_dataset: Any) -> None:
    """Raise if `pool_dataset` does not have the training samples in the same order.

    Compared are the lengths and, of the datasets inside `Subset` and `ConcatDataset`, names in an attribute of the same
    name, raw arrays `data` of datasets of one class, and positions in datasets of one class and length. Inputs differ
    by their transforms, so they are not compared.

    Args:
        train_dataset: The training data.
        pool_dataset: The argument of that name.

    Raises:
        ValueError: With what differs.

    """
    expected = f"expected the {len(train_dataset)} training samples in the same order under evaluation transforms"
    if len(pool_dataset) != len(train_dataset):
        raise ValueError(f"`ActiveLearningDataModule(pool_dataset=...)`: {expected}, got {len(pool_dataset)}.")
    train, pool = sources_of(train_dataset), sources_of(pool_dataset)
    places, pool_places = ([source.places.tobytes() for source in sources] for sources in (train, pool))
    if places != pool_places:
        return  # joined from other parts, so that nothing corresponds
    for train_source, pool_source in zip(train, pool, strict=True):
        difference = _describe_difference(train_source, pool_source)
        if difference:
            raise ValueError(f"`ActiveLearningDataModule(pool_dataset=...)`: {expected}, but {difference}.")


def _describe_difference(train: Source, pool: Source) -> str:
    names, pool_names = find_names(train, NUM_COMPARED), find_names(pool, NUM_COMPARED)
    if names and pool_names and names[0] == pool_names[0]:
        pairs = zip(relative_names(names[1]), relative_names(pool_names[1]), strict=True)
        return next((f"`{names[0]}` has {there!r} where it has {here!r}" for here, there in pairs if here != there), "")
    if type(train.dataset) is not type(pool.dataset) or len(train.dataset) != len(pool.dataset):
        return ""
    if not np.array_equal(train.positions, pool.positions):
        return f"it takes other samples of its {type(pool.dataset).__name__}"
    rows, pool_rows = (find_rows(source) if hasattr(source.dataset, "data") else None for source in (train, pool))
    if rows is None or pool_rows is None or rows is pool_rows or rows.shape != pool_rows.shape:
        return ""
    for row in train.take(NUM_COMPARED).tolist():
        if hash_content(rows[row]) != hash_content(pool_rows[row]):
            return f"sample {row} of its `data` differs"
    return ""


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
    innermost = _innermost_dataset(reference)
    if innermost is None or not hasattr(innermost, "transform"):
        return None
    transforms = {name: getattr(innermost, name) for name in TRANSFORM_ATTRIBUTES if hasattr(innermost, name)}
    return replace_transforms(dataset, transforms)


def _innermost_dataset(dataset: Any) -> Any | None:
    while isinstance(dataset, (Subset, ConcatDataset)) and not hasattr(dataset, "transform"):
        dataset = dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0]
    return dataset


def replace_transforms(dataset: Any, transforms: Mapping[str, Any]) -> Any | None:
    """Return a shallow copy of a dataset with other transforms; None if it keeps none in an attribute."""
    if hasattr(dataset, "transform"):  # first, since a subclass of Subset may have its own
        try:
            return _copy_with(dataset, **{name: value for name, value in transforms.items() if hasattr(dataset, name)})
        except AttributeError:  # a property that cannot be set
            return None
    if isinstance(dataset, Subset):
        inner = replace_transforms(dataset.dataset, transforms)
        return None if inner is None else _copy_with(dataset, dataset=inner)
    if isinstance(dataset, ConcatDataset):
        parts = [replace_transforms(part, transforms) for part in dataset.datasets]
        return None if any(part is None for part in parts) else _copy_with(dataset, datasets=parts)
    return None


def _copy_with(original: Any, **attributes: Any) -> Any:
    clone = copy.copy(original)
    for name, value in attributes.items():
        setattr(clone, name, value)
    return clone
