"""One pass over the pool: batches to the device, rows of measurements back."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_al.adapters import LOW_PRECISION, THREE_WAYS_OUT, take_rows
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
        measured = within_memory(measure, [part.batch for part in chunk], budget)
        if measured.ndim == 0 or len(measured) != len(ids):
            raise ValueError(
                f"Expected one row per sample, got {tuple(measured.shape)} for {len(ids)} samples: the model's output "
                f"does not start with the batch dimension. {THREE_WAYS_OUT}"
            )
        # a chunk is read back only when the next one is loaded, so that a GPU computes while the loader reads
        rows[-1:] = [row.cpu() for row in rows[-1:]]
        rows.append(measured.detach())
        indices += ids
        advance(len(ids))
    return indices, torch.cat([row.cpu() for row in rows]) if rows else torch.empty(0)


@dataclass
class Budget:
    """How many bytes of inputs a chunk may hold; less after a chunk was too much."""

    nbytes: int = CHUNK_BYTES


def within_memory(measure: Callable[[list[Any]], Tensor], chunk: list[Any], budget: Budget) -> Tensor:
    """Measure a chunk; if the device runs out of memory, measure its halves, down to single samples.

    Args:
        measure: Maps a list of batches on the device to one row per sample.
        chunk: The batches.
        budget: Halved when memory runs out, so that the next chunks are smaller from the start.

    Returns:
        (n, ...) rows.

    Raises:
        torch.OutOfMemoryError: If a single sample is too much.

    """
    try:
        return measure(chunk)
    except torch.cuda.OutOfMemoryError as error:
        halves = _halves(chunk)
        if halves is None:
            raise
        reason = str(error).splitlines()[0]
    # outside of the handler, whose error keeps the tensors of the failed pass alive
    budget.nbytes //= 2
    rank_zero_info(f"{reason} Scoring goes on with half as many samples at a time; nothing is lost.")
    torch.cuda.empty_cache()
    return torch.cat([within_memory(measure, half, budget) for half in halves])


def _halves(chunk: list[Any]) -> tuple[list[Any], list[Any]] | None:
    """Split a chunk into two, or its only batch; None if that is a single sample."""
    if len(chunk) > 1:
        middle = len(chunk) // 2
        return chunk[:middle], chunk[middle:]
    tensors: list[Tensor] = []
    apply_to_collection(chunk[0], Tensor, tensors.append)
    size = next((len(tensor) for tensor in tensors if tensor.ndim), 0)
    if size < 2:
        return None
    rows = torch.arange(size)
    return [take_rows(chunk[0], rows[: size // 2], size)], [take_rows(chunk[0], rows[size // 2 :], size)]


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
    tensors: dict[int, Tensor] = {}
    # torch's pytree would not look into mappings of other makes, such as Hugging Face's
    apply_to_collection(batch, Tensor, lambda tensor: tensors.setdefault(id(tensor), tensor), allow_frozen=True)
    return sum(tensor.nbytes for tensor in tensors.values())
