"""Identify a dataset, and check whether its samples are the same each time they are read."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_al.data.evaluation_view import TRANSFORM_ATTRIBUTES, replace_transforms
from lightning_al.numerics.seeding import preserved_rng


def differing_samples(dataset: Any, count: int = 4) -> list[int]:
    """Return the indices of samples that differ between two reads, among a few.

    Args:
        dataset: A map-style dataset.
        count: How many samples to read, evenly spaced; each is read twice.

    Returns:
        Dataset indices; empty if no read differs.

    """
    with preserved_rng():
        return [
            index
            for index in _evenly_spaced_indices(len(dataset), count)
            if _hash_sample(dataset[index]) != _hash_sample(dataset[index])
        ]


def warn_if_reads_differ(dataset: Any) -> None:
    """Warn if some samples differ between two reads, since their scores would then depend on the augmentation."""
    if differing := differing_samples(dataset):
        rank_zero_warn(
            f"Reading samples {differing} of the pool twice gave different values, so scores will depend on the "
            "augmentation. Pass `pool_dataset=` with evaluation transforms (the same samples in the same order)."
        )


def fingerprint(dataset: Any, count: int = 8) -> str:
    """Return a hash of a few samples, so that stored indices are never applied to other data.

    Samples are read without their transforms where these are attributes, so that a changed augmentation does not change
    the hash. Samples that differ between two reads contribute their shapes only.

    Args:
        dataset: A map-style dataset.
        count: How many samples to read, evenly spaced; each is read twice.

    Returns:
        Sixteen hexadecimal digits.

    """
    plain = replace_transforms(dataset, dict.fromkeys(TRANSFORM_ATTRIBUTES))
    digest = hashlib.sha256(str(len(dataset)).encode())
    with preserved_rng():
        for index in _evenly_spaced_indices(len(dataset), count):
            digest.update(_hash_repeatable_content(dataset if plain is None else plain, dataset, index))
    return digest.hexdigest()[:16]


def _hash_repeatable_content(plain: Any, dataset: Any, index: int) -> bytes:
    try:
        first, second = plain[index], plain[index]
    except Exception:  # a dataset that needs its transform may raise anything without it
        first, second = dataset[index], dataset[index]
    digest = _hash_sample(first)
    return digest if digest == _hash_sample(second) else _hash_sample(first, content=False)


def _evenly_spaced_indices(size: int, count: int) -> list[int]:
    return sorted({round(position) for position in np.linspace(0, size - 1, min(count, size)).tolist()})


def _hash_sample(sample: Any, content: bool = True) -> bytes:
    digest = hashlib.sha256()
    for chunk in _byte_chunks(sample, content):
        digest.update(chunk)
    return digest.digest()


def _byte_chunks(sample: Any, content: bool) -> Iterator[bytes]:
    yield type(sample).__name__.encode()
    if isinstance(sample, Mapping):
        for key, value in sample.items():
            yield str(key).encode()
            yield from _byte_chunks(value, content)
    elif isinstance(sample, (list, tuple)) or str(getattr(sample, "dtype", "")) == "object":  # bytes: addresses
        for value in sample:
            yield from _byte_chunks(value, content)
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
