"""The initial labeled samples: how many, which, and their classes for a balanced draw."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Subset

from lightning_al.data.sizes import is_size, resolve_size
from lightning_al.data.targets import Label, LabelKey, find_target, to_labels


def class_labels(dataset: Any, indices: Sequence[int] | None = None, label_key: LabelKey | None = None) -> list[Label]:
    """Return the classes of samples, from an attribute of the dataset if it has one, else by reading the samples.

    Args:
        dataset: A map-style classification dataset.
        indices: Dataset indices; all by default.
        label_key: Where a sample has its target. A name may also be that of an attribute of the dataset with all
            targets; a position is always read from samples.

    Returns:
        One class per sample, or the classes of each in a multi-label dataset, in the order of `indices`.

    Raises:
        ValueError: If a target has no class.
        AmbiguousTargetError: If more than one entry of a sample may be the target.

    """
    positions = range(len(dataset)) if indices is None else indices
    if isinstance(dataset, Subset):
        return class_labels(dataset.dataset, [dataset.indices[index] for index in positions], label_key)
    names = ("targets", "labels", "y") if label_key is None else (label_key,)
    for name in names:
        values: Any = getattr(dataset, name, None) if isinstance(name, str) else None
        if hasattr(values, "__len__") and len(values) == len(dataset):
            return to_labels(values[index] for index in positions)
    return to_labels(find_target(dataset[index], label_key) for index in positions)


def classes_in(label: Label) -> tuple[int, ...]:
    """Return all classes of a label: one, or those of a multi-label target."""
    return label if isinstance(label, tuple) else (label,)


def check_initial_size(initial_size: int | float | Sequence[int]) -> int | float | list[int]:
    """Return the size of the initial labeled part after checking it.

    Raises:
        ValueError: If it is neither a number of samples, nor a share, nor a sequence of indices.

    """
    if hasattr(initial_size, "tolist"):  # a number or an array of NumPy or torch
        initial_size = initial_size.tolist()
    if isinstance(initial_size, Sequence) and not isinstance(initial_size, str):
        return list(initial_size)
    if not is_size(initial_size):
        raise ValueError(
            f"`ActiveLearningDataModule(initial_size={initial_size!r})`: expected a number of samples (int, at least "
            "1), a share of the dataset (float in (0, 1]) or a sequence of dataset indices."
        )
    return initial_size


def draw_initial(
    dataset: Any,
    initial_size: int | float | list[int],
    generator: torch.Generator,
    balanced: bool = False,
    label_key: LabelKey | None = None,
) -> list[int]:
    """Draw the first samples to label.

    Args:
        dataset: A map-style dataset.
        initial_size: A number of samples, a share of the dataset, or the indices themselves.
        generator: Source of the draw.
        balanced: Take each class once before any is taken twice; reads every label. A sample with several classes
            counts for each of them, and is drawn for the rarest.
        label_key: Where a sample has its target, if it is declared.

    Returns:
        Distinct dataset indices.

    Raises:
        ValueError: If the dataset has fewer samples.

    """
    if isinstance(initial_size, list):
        return initial_size
    size = len(dataset)
    count = resolve_size(initial_size, size)
    if count > size:
        raise ValueError(f"`ActiveLearningDataModule(initial_size={count})`: the dataset has {size} samples.")
    order = torch.randperm(size, generator=generator)
    if balanced:
        return _round_robin(order.tolist(), class_labels(dataset, label_key=label_key))[:count]
    drawn: list[int] = order[:count].tolist()
    return drawn


def _round_robin(order: list[int], labels: list[Label]) -> list[int]:
    """Reorder so that each class comes once before any comes twice; within a class the order stays."""
    counts: dict[int | None, int] = {}
    rounds = []
    for index in order:
        classes: tuple[int | None, ...] = classes_in(labels[index]) or (None,)  # without a class: a class of its own
        rounds.append(min(counts.get(name, 0) for name in classes))
        for name in classes:
            counts[name] = counts.get(name, 0) + 1
    return [order[row] for row in sorted(range(len(order)), key=rounds.__getitem__)]
