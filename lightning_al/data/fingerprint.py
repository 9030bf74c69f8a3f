"""Identify a dataset by its inputs, and check whether its samples are the same each time they are read."""

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_al.data.evaluation_view import TRANSFORM_ATTRIBUTES, replace_transforms
from lightning_al.data.sample_content import hash_content
from lightning_al.data.sample_sources import Source, find_names, find_rows, relative_names, sources_of
from lightning_al.data.targets import LabelKey, inputs_of
from lightning_al.numerics.seeding import RandomStream, preserved_rng, seeded

VERSION = 2  # fingerprints of version 1 are bare hexadecimal digits
NUM_NAMES = 100_000
NUM_FILES = 64
FILE_BYTES = 4096  # of the beginning of a file
NUM_ROWS = 256
NUM_READS = 32


def differing_samples(dataset: Any, count: int = 4, label_key: LabelKey | None = None) -> list[int]:
    """Return the indices of samples whose inputs differ between two reads, among a few.

    Args:
        dataset: A map-style dataset.
        count: How many samples to read, evenly spaced; each is read twice.
        label_key: Where a sample has its target, if it is declared.

    Returns:
        Dataset indices; empty if no read differs.

    """

    def read(index: int) -> bytes:
        return hash_content(inputs_of(dataset[index], label_key))

    with preserved_rng():
        return [index for index in _evenly_spaced_indices(len(dataset), count) if read(index) != read(index)]


def warn_if_reads_differ(
    dataset: Any, collate_fn: Callable[[list[Any]], Any], label_key: LabelKey | None = None
) -> None:
    """Warn if a few samples differ between two reads, or their batch between two calls of the collate function.

    Scores would then depend on the augmentation.

    Args:
        dataset: The pool under evaluation transforms.
        collate_fn: The collate function of the pool.
        label_key: Where a sample has its target, if it is declared.

    """
    if differing := differing_samples(dataset, label_key=label_key):
        rank_zero_warn(
            f"Reading samples {differing} of the pool twice gave different values, so scores will depend on the "
            "augmentation. Pass `pool_dataset=` with evaluation transforms (the same samples in the same order)."
        )
    with preserved_rng():
        samples = [dataset[index] for index in _evenly_spaced_indices(len(dataset), 4)]
        try:
            first, second = (hash_content(inputs_of(collate_fn(list(samples)), label_key)) for _ in range(2))
        except Exception:  # a function of the user's, which may not take a batch of this size
            return
    if first != second:
        rank_zero_warn(
            "Collating samples of the pool twice gave different values, so scores will depend on the augmentation in "
            "`collate_fn`. Give the validation loader a `collate_fn` without it, which the pool then uses too."
        )


def fingerprint(dataset: Any, label_key: LabelKey | None = None) -> str:
    """Return a hash that identifies the inputs of a dataset, so that stored indices are never applied to other data.

    Targets never count, since people fill them in. What counts is, in this order: names (texts, paths, numbers) in an
    attribute of the dataset, with the beginnings of some of the files; rows of an array of inputs; else samples, read
    without their transforms where these are attributes, and with fixed random numbers. Samples that differ between two
    such reads contribute their shapes only.

    Args:
        dataset: A map-style dataset; `Subset` and `ConcatDataset` are followed to the datasets inside.
        label_key: Where a sample has its target, if it is declared.

    Returns:
        The version of this rule, a colon and sixteen hexadecimal digits.

    Cost: per inner dataset at most 100,000 names and the first 4 KB of 64 files, or 256 rows, or 32 samples, each read
    twice; the choice is seeded.

    """
    digest = hashlib.sha256(str(len(dataset)).encode())
    for source in sources_of(dataset):
        digest.update(source.positions.tobytes())
        digest.update(source.places.tobytes())
        for chunk in _identity(source, label_key):
            digest.update(chunk)
    return f"{VERSION}:{digest.hexdigest()[:16]}"


def is_outdated(fingerprint: str) -> bool:
    """Return whether a fingerprint was made by an earlier rule, so that it cannot be compared."""
    return bool(fingerprint) and not fingerprint.startswith(f"{VERSION}:")


def _identity(source: Source, label_key: LabelKey | None) -> Iterator[bytes]:
    named = find_names(source, NUM_NAMES)
    if named is not None:
        yield hash_content(relative_names(named[1]))
        files = Source(None, np.arange(len(named[1])), np.arange(0)).take(NUM_FILES)
        yield from (_file_head(named[1][row]) for row in files.tolist())
        return
    rows = find_rows(source)
    if rows is not None:
        yield from (hash_content(rows[row]) for row in source.take(NUM_ROWS).tolist())
        return
    plain = replace_transforms(source.dataset, dict.fromkeys(TRANSFORM_ATTRIBUTES))
    for index in source.take(NUM_READS).tolist():
        yield _hash_repeatable_inputs(source.dataset if plain is None else plain, source.dataset, index, label_key)


def _file_head(path: str) -> bytes:
    try:
        if os.path.isfile(path):  # and not a pipe, which would block
            with open(path, "rb") as file:
                return file.read(FILE_BYTES) + str(os.path.getsize(path)).encode()
    except (OSError, ValueError):  # a name that no file can have
        pass
    return b""


def _hash_repeatable_inputs(plain: Any, dataset: Any, index: int, label_key: LabelKey | None) -> bytes:
    def read(source: Any) -> Any:
        with seeded(RandomStream.IDENTITY, index):
            return inputs_of(source[index], label_key)

    try:
        first, second = read(plain), read(plain)
    except Exception:  # a dataset that needs its transform may raise anything without it
        first, second = read(dataset), read(dataset)
    digest = hash_content(first)
    return digest if digest == hash_content(second) else hash_content(first, content=False)


def _evenly_spaced_indices(size: int, count: int) -> list[int]:
    return sorted({round(position) for position in np.linspace(0, size - 1, min(count, size)).tolist()})
