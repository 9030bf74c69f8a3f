"""The training samples under the transforms of the validation data."""

import copy
from collections.abc import Mapping
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Subset

TRANSFORM_ATTRIBUTES = ("transform", "target_transform", "transforms")


def evaluation_dataset(train_dataset: Any, pool_dataset: Any | None, evaluation: DataLoader[Any] | None) -> Any:
    """Return the training samples under evaluation transforms.

    Args:
        train_dataset: The training data.
        pool_dataset: The same samples under evaluation transforms, if the user passed them.
        evaluation: The first validation loader, whose transforms are taken otherwise.

    Returns:
        A dataset of the same length; the training data itself where no transforms are found.

    Raises:
        ValueError: If `pool_dataset` has another length.

    """
    if pool_dataset is not None:
        if len(pool_dataset) != len(train_dataset):
            raise ValueError(
                f"`ActiveLearningDataModule(pool_dataset=...)`: expected the {len(train_dataset)} training samples "
                f"under evaluation transforms, got {len(pool_dataset)}."
            )
        return pool_dataset
    view = None if evaluation is None else with_transforms_of(train_dataset, evaluation.dataset)
    return train_dataset if view is None else view


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
