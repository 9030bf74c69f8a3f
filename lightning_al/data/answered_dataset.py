"""Samples with the targets that people gave."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import Dataset, Subset

from lightning_al.data.batch import LABEL_KEYS, describe
from lightning_al.data.targets import REMEDY, AmbiguousTargetError, LabelKey, field_names
from lightning_al.storage.labels_file import Labels


def open_labels(labels: str | os.PathLike[str] | Labels | None, balanced_start: bool) -> Labels | None:
    """Return the answers in a file, or those given.

    Raises:
        ValueError: If the first samples are to be balanced by classes, which nobody knows yet.

    """
    if labels is not None and balanced_start:
        raise ValueError(
            "`ActiveLearningDataModule(labels=..., balanced_start=True)`: no class is known before people answer. "
            "Leave `balanced_start` off."
        )
    return labels if labels is None or isinstance(labels, Labels) else Labels(labels)


def answered_part(
    dataset: Any, indices: Sequence[int], labels: Labels | None, label_key: LabelKey | None
) -> Subset[Any]:
    """Return the labeled part of a dataset for training.

    Args:
        dataset: The training data.
        indices: The dataset indices to train on.
        labels: What people answered; None takes the targets of the dataset.
        label_key: Where a sample has its target.

    Raises:
        MisconfigurationException: If nothing is labeled yet.

    """
    if labels is None:
        return Subset(dataset, indices)
    if not len(indices):
        raise MisconfigurationException(
            f"{labels.path} has no label for any of the samples that were asked, so there is nothing to train on. "
            "Label them first: `run_cycles` and `lightning-al fit` write what they ask, `lightning-al label` opens it."
        )
    return Subset(AnsweredDataset(dataset, labels, label_key), indices)


class AnsweredDataset(Dataset[Any]):
    """A dataset whose targets are the answers of people; a target of its own is never used.

    Args:
        dataset: Any map-style dataset, with targets or without.
        labels: The answers; an index without a label cannot be read.
        label_key: Where a sample has its target; None takes the usual place, see `with_target`.

    """

    def __init__(self, dataset: Any, labels: Labels, label_key: LabelKey | None = None) -> None:
        self.dataset = dataset
        self.labels = labels
        self.label_key = label_key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return with_target(self.dataset[index], to_training_target(self.labels.target_of(index)), self.label_key)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read several samples at once, which datasets such as Hugging Face's do much faster."""
        if not callable(getattr(self.dataset, "__getitems__", None)):
            return [self[index] for index in indices]
        samples = zip(indices, self.dataset.__getitems__(indices), strict=True)
        return [
            with_target(sample, to_training_target(self.labels.target_of(index)), self.label_key)
            for index, sample in samples
        ]


def to_training_target(target: Any) -> Any:
    """Return numbers and vectors of zeros and ones as single-precision tensors, and a class as the integer it is."""
    return torch.tensor(target, dtype=torch.float32) if isinstance(target, (float, list)) else target


def with_target(sample: Any, target: Any, label_key: LabelKey | None = None) -> Any:
    """Return a sample with another target.

    Args:
        sample: (input, target), (input,), a mapping, or an input alone.
        target: The target.
        label_key: The position or the key of the target; None takes the second entry, or the only key with a usual
            name (`label`, `target`, `y`, ...). A sample without a target gets one there.

    Returns:
        A sample of the same type, (input, target) for an input alone.

    Raises:
        AmbiguousTargetError: If more than one entry may be the target.

    Example:
        >>> with_target(("picture", -1), 3), with_target({"x": "picture"}, 3), with_target("picture", 3)
        (('picture', 3), {'x': 'picture', 'label': 3}, ('picture', 3))

    """
    if isinstance(sample, Mapping):
        usual = [name for name in sample if name in LABEL_KEYS]
        if label_key is None and len(usual) > 1:
            raise AmbiguousTargetError(f"More than one entry of {describe(sample)} may be its target. {REMEDY}")
        return {**sample, (label_key if label_key is not None else [*usual, "label"][0]): target}
    if not isinstance(sample, (list, tuple)):
        return (sample, target)
    names = field_names(sample) or []
    position = names.index(label_key) if label_key in names else label_key
    if position is None and len(sample) <= 2:
        position = 1
    if not isinstance(position, int) or not -len(sample) <= position <= len(sample):
        raise AmbiguousTargetError(f"Cannot find the place of the target in {describe(sample)}. {REMEDY}")
    entries = [*sample, None] if position == len(sample) else list(sample)
    entries[position] = target
    return type(sample)(*entries) if names else type(sample)(entries)
