"""One pass over a loader: move batches to the device, and collect rows of measurements."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_al.data.batch import THREE_WAYS_OUT
from lightning_al.data.dataloaders import PoolBatch
from lightning_al.formulas.checks import NonFiniteError
from lightning_al.scoring.memory import CHUNK_BYTES, MemoryLimit, chunked, samples_finder, within_memory
from lightning_al.scoring.row_checks import NON_FINITE


def measure_pool(
    measure: Callable[[list[Any]], Tensor],
    batches: Iterable[PoolBatch],
    transfer: Callable[[Any], Any],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    advance: Callable[[int], object] = lambda samples: None,
) -> tuple[list[int], Tensor]:
    """Measure every sample of a loader in one pass.

    Args:
        measure: Maps a chunk, a list of batches on the device, to one row per sample.
        batches: Batches with the dataset index of each sample.
        transfer: Moves a batch to the device.
        chunk_bytes: How many bytes of inputs a chunk may hold; a chunk has at least one batch.
        advance: Called with the number of samples after each chunk.

    Returns:
        Dataset indices and (N, ...) rows on the CPU, in the order of the loader.

    Raises:
        ValueError: If `measure` returns another number of rows than there are samples.
        NonFiniteError: If a formula raised it, with the dataset indices of the samples.

    Cost: one read of the data; device memory for one chunk, host memory for the rows.

    """
    indices: list[int] = []
    rows: list[Tensor] = []
    on_device = (PoolBatch(ids, transfer(batch)) for ids, batch in batches)
    limit = MemoryLimit(chunk_bytes)
    find_samples = samples_finder(batches, lambda batch: transfer(batch.batch))
    for chunk in chunked(on_device, limit):
        ids = [index for part in chunk for index in part.indices]
        sizes = [len(part.indices) for part in chunk]
        # copied before the next chunk is queued, so that a GPU computes while the loader reads
        rows[-1:] = [row.cpu() for row in rows[-1:]]
        try:
            measured = within_memory(measure, [part.batch for part in chunk], limit, sizes, find_samples)
        except NonFiniteError as error:
            raise _name_samples(error, measure, chunk) from error
        if measured.ndim == 0 or len(measured) != len(ids):
            raise ValueError(
                f"Expected one row per sample, got {tuple(measured.shape)} for {len(ids)} samples: the model's output "
                f"does not start with the batch dimension. {THREE_WAYS_OUT}"
            )
        rows.append(measured.detach())
        indices += ids
        chunk.clear()  # frees it before the next one is read
        advance(len(ids))
    plain = [row.cpu().as_subclass(Tensor) for row in rows]  # without metadata of a batch, which cannot be joined
    return indices, torch.cat(plain) if plain else torch.empty(0)


def _name_samples(error: NonFiniteError, measure: Callable[[list[Any]], Tensor], chunk: list[PoolBatch]) -> Exception:
    """Return an error with dataset indices, since a formula knows the rows of one batch only."""
    batch_errors = [(part, _non_finite_error(measure, part)) for part in chunk]
    indices = [part.indices[row] for part, raised in batch_errors if raised for row in raised.rows]
    return NonFiniteError(f"Samples {indices[:5]} (dataset indices): {error}. {NON_FINITE}")


def _non_finite_error(measure: Callable[[list[Any]], Tensor], part: PoolBatch) -> NonFiniteError | None:
    try:
        measure([part.batch])
    except NonFiniteError as error:
        return error
    return None
