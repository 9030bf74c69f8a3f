"""Limit how much is measured at a time, and measure less when the device's memory runs out."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.memory import is_oom_error
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_al.data.batch import describe, may_hold_other_rows, take_rows, tensors_in, tensors_with_samples

BatchT = TypeVar("BatchT")


# Bytes of inputs held on the device at a time: enough batches to hide the cost of K noise draws.
CHUNK_BYTES = 256 * 2**20


@dataclass
class MemoryLimit:
    """How much a chunk may hold; halved whenever memory runs out.

    Attributes:
        nbytes: Bytes of inputs in a chunk.
        samples: Samples in a batch, above which it is split.

    """

    nbytes: int = CHUNK_BYTES
    samples: float = math.inf


def within_memory(
    measure: Callable[[list[Any]], Tensor],
    chunk: list[Any],
    limit: MemoryLimit,
    sizes: list[int] | None = None,
    find_samples: Callable[[], list[bool] | None] = lambda: None,
) -> Tensor:
    """Measure a chunk; if the device runs out of memory, measure its halves, down to single samples.

    Args:
        measure: Maps a list of batches on the device to one row per sample.
        chunk: The batches.
        limit: Halved when memory runs out, so that the next chunks are smaller from the start.
        sizes: The number of samples in each batch; by default that of its tensors.
        find_samples: Returns for each tensor of a batch whether it has one row per sample, or None if that is unknown.

    Returns:
        (n, ...) rows.

    Raises:
        torch.OutOfMemoryError: If a single sample does not fit, or a batch that does not fit is not split, since it is
            unknown which of its tensors have one row per sample.

    """
    if len(chunk) > 1 or limit.samples == math.inf:
        try:
            return measure(chunk)
        except RuntimeError as error:
            sizes = [extract_batch_size(batch) for batch in chunk] if sizes is None else sizes
            if sizes == [1] or not is_out_of_memory(error):
                raise
            reason = str(error)
        # outside of the `except` block, whose error keeps the tensors of the failed pass alive
        _halve_limit(limit, sizes[0] if len(chunk) == 1 else None, reason)
    sizes = [extract_batch_size(batch) for batch in chunk] if sizes is None else sizes
    if len(chunk) == 1:
        return _measure_in_parts(measure, chunk[0], sizes[0], limit, find_samples())
    middle = len(chunk) // 2
    halves = [(chunk[:middle], sizes[:middle]), (chunk[middle:], sizes[middle:])]
    return torch.cat([within_memory(measure, batches, limit, counts, find_samples) for batches, counts in halves])


def _measure_in_parts(
    measure: Callable[[list[Any]], Tensor], batch: Any, size: int, limit: MemoryLimit, has_samples: list[bool] | None
) -> Tensor:
    """Measure a batch in parts that fit, each taken from the full batch."""
    if has_samples is None and limit.samples < size and may_hold_other_rows(batch, size):
        raise torch.cuda.OutOfMemoryError(
            f"Not enough memory for {describe(batch)}, which is not split: several of its tensors have {size} rows, "
            "and it is unknown which have one per sample. Pass smaller batches, or a DataLoader."
        )
    rows: list[Tensor] = []
    done = 0
    while done < size:
        count = int(min(limit.samples, size - done))
        part = batch if count == size else take_rows(batch, torch.arange(done, done + count), size, has_samples)
        try:
            rows.append(measure([part]))
        except RuntimeError as error:
            if count == 1 or not is_out_of_memory(error):
                raise
            reason = str(error)
        else:
            done += count
            continue
        _halve_limit(limit, count, reason)
    return torch.cat(rows)


def samples_finder(loader: Any, prepare: Callable[[Any], Any]) -> Callable[[], list[bool] | None]:
    """Return a function that collates one sample and two, once, to see which tensors have one row per sample.

    Args:
        loader: A DataLoader over a map-style dataset; for anything else nothing is known.
        prepare: Turns a batch of the loader into what is measured.

    """

    @functools.cache
    def find() -> list[bool] | None:
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return None
        sample = loader.dataset[0]
        one, two = (prepare(loader.collate_fn([sample] * count)) for count in (1, 2))
        return tensors_with_samples(one, two)

    return find


def _halve_limit(limit: MemoryLimit, samples: int | None, reason: str) -> None:
    """Halve the limit after a chunk, or a batch of this many samples, did not fit."""
    limit.nbytes //= 2
    if samples is not None:
        limit.samples = (samples + 1) // 2
    rank_zero_info(
        f"{reason.partition(chr(10))[0]} Scoring goes on with half as many samples at a time; nothing is lost."
    )
    torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device's memory, or a limit of its kernels, is exceeded."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or "32-bit index" in str(error):
        return True
    return bool(error.args) and isinstance(error.args[0], str) and is_oom_error(error)


def chunked(batches: Iterable[BatchT], limit: MemoryLimit | None = None) -> Iterator[list[BatchT]]:
    """Group batches into chunks of a limited number of bytes, each of at least one batch.

    Args:
        batches: Nested containers of tensors.
        limit: Upper bound on the tensors of a chunk together; may shrink on the way.

    Yields:
        Lists of batches, in order.

    """
    limit = limit or MemoryLimit()
    chunk: list[BatchT] = []
    chunk_bytes = 0
    for batch in batches:
        size = _nbytes(batch) or limit.nbytes  # a batch whose tensors are not visible is a chunk by itself
        if chunk and chunk_bytes + size > limit.nbytes:
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(batch)
        chunk_bytes += size
    if chunk:
        yield chunk


def _nbytes(batch: Any) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in tensors_in(batch)}.values())
