"""One pass over the pool: batches to the device, rows of measurements back, gathered by dataset index."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.compile import to_uncompiled
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_al.adapters import LOW_PRECISION, THREE_WAYS_OUT
from lightning_al.loaders import TRANSFER_HOOKS, PoolBatch

BatchT = TypeVar("BatchT")

CHUNK_BYTES = 256 * 2**20  # of inputs held on the device at a time; enough batches to hide the cost of K noise draws


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Leave autocast and switch TF32 off inside, and restore every flag.

    A finite difference subtracts two nearly equal numbers, so it keeps only the digits that the precision has to
    spare: under bfloat16 autocast it would rank rounding errors.
    """
    with ExitStack() as stack:
        for get, put, exact in _float32_settings():
            value = get()
            if value != exact:  # an inherited value must not become one of the switch's own when it is restored
                stack.callback(put, value)
                put(exact)
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _float32_settings() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """List how to read and write what lets float32 work run in less, parents first, each with its exact value."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):  # torch 2.9 and newer: the old switches may not even be read beside these
        owners = [backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul, backends.mkldnn.matmul]
        owners += [operators for backend in owners[1:3] for operators in (backend.conv, backend.rnn)]
        name = "fp32_precision"
        return [(partial(getattr, owner, name), partial(setattr, owner, name), "ieee") for owner in owners]
    cudnn = (partial(getattr, backends.cudnn, "allow_tf32"), partial(setattr, backends.cudnn, "allow_tf32"), False)
    return [(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"), cudnn]


def clone_module(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy a module for scoring: on the device, in eval mode, in at least single precision.

    Args:
        module: The user's module; not touched.
        device: Where the clone goes.

    Returns:
        An independent copy.

    Raises:
        TypeError: If the module holds something that cannot be copied, with what to do about it.

    """
    try:
        clone = copy.deepcopy(module)
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied for scoring ({type(error).__name__}: {error}). Keep open files, "
            "locks and tensors that carry a graph (use `.detach()`) out of the module's attributes."
        ) from error
    if getattr(clone, "_compiler_ctx", None) is not None:
        clone = to_uncompiled(clone)  # type: ignore[arg-type]  # compiled functions in a copy still call the original
    for tensor in (*clone.parameters(), *clone.buffers()):
        if tensor.dtype in LOW_PRECISION:
            tensor.data = tensor.data.float()
    return clone.to(device).eval()


def load_weights(module: LightningModule, path: str | os.PathLike[str]) -> None:
    """Load the weights of a checkpoint, as strictly as the module asks for.

    Args:
        module: The module to change.
        path: A Lightning checkpoint, or a file with a plain state dict.

    """
    # a checkpoint of the user's own: its hyperparameters may hold any object, which `weights_only` would refuse
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    if "state_dict" in checkpoint:
        module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint.get("state_dict", checkpoint), strict=module.strict_loading)


@contextmanager
def attached_clone(trainer: Trainer, module: LightningModule) -> Iterator[LightningModule]:
    """Clone a LightningModule onto the trainer's device, and let the trainer look as if it predicted.

    Args:
        trainer: The trainer that has just finished fitting.
        module: Its module, which the strategy's teardown moved to the CPU.

    Yields:
        The clone. Hooks that ask `self.trainer.training`, to augment on the device for example, get False.

    """
    clone = clone_module(module, trainer.strategy.root_device)
    assert isinstance(clone, LightningModule)
    clone.trainer = trainer
    stage = trainer.state.stage
    trainer.predicting = True
    try:
        yield clone
    finally:
        trainer.state.stage = stage


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
    for chunk in chunked(on_device, chunk_bytes):
        ids = [index for part in chunk for index in part.indices]
        measured = measure([part.batch for part in chunk])
        if measured.ndim == 0 or len(measured) != len(ids):
            raise ValueError(
                f"Expected one row per sample, got {tuple(measured.shape)} for {len(ids)} samples: the model's output "
                f"does not start with the batch dimension. {THREE_WAYS_OUT}"
            )
        rows.append(measured.detach().cpu())
        indices += ids
        advance(len(ids))
    return indices, torch.cat(rows) if rows else torch.empty(0)


def chunked(batches: Iterable[BatchT], chunk_bytes: int = CHUNK_BYTES) -> Iterator[list[BatchT]]:
    """Group batches into chunks of at most so many bytes, each of at least one batch.

    Args:
        batches: Nested containers of tensors.
        chunk_bytes: Upper bound on the tensors of a chunk together.

    Yields:
        Lists of batches, in order.

    """
    chunk: list[BatchT] = []
    held = 0
    for batch in batches:
        size = _nbytes(batch) or chunk_bytes  # what holds tensors out of sight makes a chunk of its own
        if chunk and held + size > chunk_bytes:
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


def gather_rows(trainer: Trainer, indices: list[int], rows: Tensor) -> tuple[list[int], Tensor]:
    """Bring the rows of all processes together, sorted by dataset index, the same on every process.

    Args:
        trainer: Its strategy's process group is still alive at fit end.
        indices: This process's dataset indices.
        rows: This process's (n, ...) rows; a process without a batch passes an empty tensor of any shape.

    Returns:
        All indices, ascending, and their (N, ...) rows on the CPU.

    """
    if trainer.world_size > 1:
        strategy, device = trainer.strategy, trainer.strategy.root_device
        shape, dtype = strategy.broadcast((rows.shape[1:], rows.dtype))  # the first process always has a batch
        counts = strategy.all_gather(torch.tensor([len(indices)], device=device)).flatten().tolist()
        ids = torch.zeros(max(counts), dtype=torch.int64, device=device)
        ids[: len(indices)] = torch.tensor(indices, dtype=torch.int64, device=device)
        padded = torch.zeros((max(counts), *shape), dtype=dtype, device=device)
        padded[: len(indices)] = rows.reshape(len(indices), *shape).to(device)
        gathered_ids, gathered_rows = strategy.all_gather(ids), strategy.all_gather(padded)
        indices = [index for rank, count in enumerate(counts) for index in gathered_ids[rank, :count].tolist()]
        rows = torch.cat([gathered_rows[rank, :count] for rank, count in enumerate(counts)]).cpu()
    order = torch.tensor(indices, dtype=torch.int64).argsort()
    return [indices[row] for row in order.tolist()], rows[order]


def check_rows(name: str, expected: Sequence[int], indices: Sequence[int], rows: Tensor) -> None:
    """Refuse measurements that cannot be ranked.

    Args:
        name: The strategy, for messages.
        expected: The dataset indices that were to be measured, ascending.
        indices: Those that were.
        rows: (N, ...) measurements.

    Raises:
        RuntimeError: If a sample is missing or came twice.
        ValueError: If a value is NaN or infinite, or all rows are equal.

    """
    if list(expected) != list(indices):
        wrong = sorted(set(expected).symmetric_difference(indices)) or sorted(indices)
        raise RuntimeError(
            f"`{name}`: expected one measurement of each of {len(expected)} samples, got {len(indices)} "
            f"(see indices {wrong[:5]}). Does the dataset change its length or order between reads?"
        )
    flat = rows.reshape(len(rows), -1)
    broken = (~flat.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"`{name}`: {len(broken)} of {len(rows)} samples have NaN or infinite measurements, first "
            f"{[indices[row] for row in broken[:5]]} (dataset indices). Look for a diverged training or broken inputs."
        )
    if len(flat) > 1 and flat.shape[1] and bool((flat == flat[0]).all()):
        raise ValueError(
            f"`{name}`: all {len(rows)} samples have the same measurement, so none comes first (dataset indices "
            f"{list(indices[:5])}, ...). Do the outputs depend on the inputs, and on what the strategy varies?"
        )
