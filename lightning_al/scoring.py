"""One pass over the pool: batches to the device, rows of measurements back."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.memory import is_oom_error
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_al.adapters import LOW_PRECISION, THREE_WAYS_OUT, take_rows
from lightning_al.containers import tensors_in
from lightning_al.loaders import TRANSFER_HOOKS, PoolBatch

BatchT = TypeVar("BatchT")

CHUNK_BYTES = 256 * 2**20  # of inputs held on the device at a time; enough batches to hide the cost of K noise draws


def make_transfer(trainer: Trainer, clone: LightningModule) -> Callable[[Any], Any]:
    """Return a function that moves a batch to the clone's device through the user's transfer hooks.

    Args:
        trainer: Its datamodule's hooks come before the module's, as in Lightning.
        clone: The module that scores.

    Returns:
        A function from a batch to the batch on the device, its floating-point tensors in the clone's precision.

    """
    owners = {
        name: trainer.datamodule  # type: ignore[attr-defined]
        if is_overridden(name, trainer.datamodule)  # type: ignore[attr-defined]
        else clone
        for name in TRANSFER_HOOKS
    }

    def transfer(batch: Any) -> Any:
        batch = owners["on_before_batch_transfer"].on_before_batch_transfer(batch, 0)
        batch = owners["transfer_batch_to_device"].transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
        batch = owners["on_after_batch_transfer"].on_after_batch_transfer(batch, 0)
        return match_precision(batch, clone)

    return transfer


def match_precision(batch: Any, module: nn.Module) -> Any:
    """Cast floating-point inputs to what the module computes in: low precision up, anything for a double module."""
    double = any(parameter.dtype == torch.float64 for parameter in module.parameters())

    def cast(tensor: Tensor) -> Tensor:
        if double and tensor.is_floating_point():
            return tensor.double()
        return tensor.float() if tensor.dtype in LOW_PRECISION else tensor

    return apply_to_collection(batch, Tensor, cast)


def to_module(batch: Any, module: nn.Module) -> Any:
    """Move a batch to where a plain module is, for use without a trainer."""
    tensor = next(iter(module.parameters()), torch.empty(0))
    return match_precision(move_data_to_device(batch, tensor.device), module)


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
        advance: Told the number of samples after each chunk.

    Returns:
        Dataset indices and (N, ...) rows on the CPU, in the order of the loader.

    Raises:
        ValueError: If `measure` gives another number of rows than there are samples.

    Cost: one read of the data; device memory for one chunk, host memory for the rows.

    """
    indices: list[int] = []
    rows: list[Tensor] = []
    on_device = (PoolBatch(ids, transfer(batch)) for ids, batch in batches)
    budget = Budget(chunk_bytes)
    for chunk in chunked(on_device, budget):
        ids = [index for part in chunk for index in part.indices]
        sizes = [len(part.indices) for part in chunk]
        # read back before the next chunk is queued, so that a GPU computes while the loader reads on
        rows[-1:] = [row.cpu() for row in rows[-1:]]
        measured = within_memory(measure, [part.batch for part in chunk], budget, sizes)
        if measured.ndim == 0 or len(measured) != len(ids):
            raise ValueError(
                f"Expected one row per sample, got {tuple(measured.shape)} for {len(ids)} samples: the model's output "
                f"does not start with the batch dimension. {THREE_WAYS_OUT}"
            )
        rows.append(measured.detach())
        indices += ids
        chunk.clear()  # before the next one is read
        advance(len(ids))
    return indices, torch.cat([row.cpu() for row in rows]) if rows else torch.empty(0)


@dataclass
class Budget:
    """How much a chunk may hold; less after a chunk was too much.

    Attributes:
        nbytes: Of inputs.
        samples: In a batch, above which it is split.

    """

    nbytes: int = CHUNK_BYTES
    samples: float = math.inf


def within_memory(
    measure: Callable[[list[Any]], Tensor], chunk: list[Any], budget: Budget, sizes: list[int] | None = None
) -> Tensor:
    """Measure a chunk; if the device runs out of memory, measure its halves, down to single samples.

    Args:
        measure: Maps a list of batches on the device to one row per sample.
        chunk: The batches.
        budget: Halved when memory runs out, so that the next chunks are smaller from the start.
        sizes: The number of samples in each batch; by default what their tensors say.

    Returns:
        (n, ...) rows.

    Raises:
        torch.OutOfMemoryError: If a single sample is too much.

    """
    if len(chunk) > 1 or budget.samples == math.inf:
        try:
            return measure(chunk)
        except RuntimeError as error:
            sizes = [extract_batch_size(batch) for batch in chunk] if sizes is None else sizes
            if sizes == [1] or not is_out_of_memory(error):
                raise
            reason = str(error)
        # outside of the handler, whose error keeps the tensors of the failed pass alive
        _take_less(budget, sizes[0] if len(chunk) == 1 else None, reason)
    sizes = [extract_batch_size(batch) for batch in chunk] if sizes is None else sizes
    if len(chunk) == 1:
        return _in_parts(measure, chunk[0], sizes[0], budget)
    middle = len(chunk) // 2
    halves = [(chunk[:middle], sizes[:middle]), (chunk[middle:], sizes[middle:])]
    return torch.cat([within_memory(measure, batches, budget, counts) for batches, counts in halves])


def _in_parts(measure: Callable[[list[Any]], Tensor], batch: Any, size: int, budget: Budget) -> Tensor:
    """Measure a batch in parts that fit, each taken out of the whole, whose size tells what has a row per sample."""
    rows: list[Tensor] = []
    done = 0
    while done < size:
        count = int(min(budget.samples, size - done))
        part = batch if count == size else take_rows(batch, torch.arange(done, done + count), size)
        try:
            rows.append(measure([part]))
        except RuntimeError as error:
            if count == 1 or not is_out_of_memory(error):
                raise
            reason = str(error)
        else:
            done += count
            continue
        _take_less(budget, count, reason)
    return torch.cat(rows)


def _take_less(budget: Budget, samples: int | None, reason: str) -> None:
    """Halve the budget after a chunk, or a batch of so many samples, was too much."""
    budget.nbytes //= 2
    if samples is not None:
        budget.samples = (samples + 1) // 2
    rank_zero_info(
        f"{reason.partition(chr(10))[0]} Scoring goes on with half as many samples at a time; nothing is lost."
    )
    torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that something did not fit into the device's memory, or into its kernels' limits."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or "32-bit index" in str(error):
        return True
    return bool(error.args) and isinstance(error.args[0], str) and is_oom_error(error)


def chunked(batches: Iterable[BatchT], budget: Budget | None = None) -> Iterator[list[BatchT]]:
    """Group batches into chunks of at most so many bytes, each of at least one batch.

    Args:
        batches: Nested containers of tensors.
        budget: Upper bound on the tensors of a chunk together; may shrink on the way.

    Yields:
        Lists of batches, in order.

    """
    budget = budget or Budget()
    chunk: list[BatchT] = []
    held = 0
    for batch in batches:
        size = _nbytes(batch) or budget.nbytes  # what holds tensors out of sight makes a chunk of its own
        if chunk and held + size > budget.nbytes:
            yield chunk
            chunk, held = [], 0
        chunk.append(batch)
        held += size
    if chunk:
        yield chunk


def _nbytes(batch: Any) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in tensors_in(batch)}.values())
