"""Gather rows of measurements from all processes, sorted by dataset index."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_al.scoring.failing_together import raised_on_all_processes
from lightning_al.scoring.row_checks import check_rows


@dataclass(frozen=True)
class Measurements:
    """Measurements of a part of the data.

    Attributes:
        indices: Dataset indices, ascending.
        rows: (n, ...) measurements, on the CPU.
        scores: Scores of all samples, those without a row included, in any order; None where rows have none.

    """

    indices: list[int]
    rows: Tensor
    scores: Tensor | None = None


def gather_measurements(
    trainer: Trainer,
    name: str,
    *,
    expected: Sequence[int],
    expected_here: Sequence[int],
    indices: list[int],
    rows: Tensor,
    rows_to_gather: Callable[[Tensor], Tensor | None],
    ranked: bool,
    score: Callable[[Tensor], Tensor | None],
) -> Measurements:
    """Check the measurements of all processes, and gather the rows that are needed.

    Args:
        trainer: Its strategy's process group is still alive at fit end.
        name: The strategy, for messages.
        expected: Dataset indices to be measured, ascending.
        expected_here: Those to be measured by this process.
        indices: Those that this process measured.
        rows: Their (n, ...) measurements; a process without a batch passes an empty tensor of any shape.
        rows_to_gather: Returns which of one process's rows, at least one, are needed; None for all.
        ranked: Whether samples are picked by these rows, so that equal rows are an error.
        score: Returns one number per row, or None; the scores of all rows are gathered.

    Returns:
        The measurements, the same on every process.

    Raises:
        RuntimeError: If a sample is missing or was measured twice.
        ValueError: If a value is NaN or infinite, or all rows are equal though they are to be ranked.

    """
    if trainer.world_size == 1:
        indices, rows = _sorted(indices, rows)
        check_rows(name, expected, indices, rows, ranked)
        return Measurements(indices, rows, score(rows))
    strategy = trainer.strategy
    shape, dtype = strategy.broadcast((rows.shape[1:], rows.dtype))  # the first process always has a batch
    rows = rows.reshape(len(indices), *shape).to(dtype)
    # where rows of one process are invalid all rows are gathered, so that every process raises the same error
    chosen, local_scores = None, None
    with raised_on_all_processes(trainer):
        if _is_sound(name, expected_here, indices, rows, ranked):
            chosen = rows_to_gather(rows) if len(rows) else torch.empty(0, dtype=torch.int64)
            local_scores = None if chosen is None else score(rows)
    if strategy.reduce_boolean_decision(chosen is not None):  # on every process, also on one without a batch
        assert chosen is not None
        scores = None if local_scores is None else gather_rows(trainer, indices, local_scores)[1]
        indices, rows = gather_rows(trainer, [indices[row] for row in chosen.tolist()], rows[chosen])
    else:
        indices, rows = gather_rows(trainer, indices, rows)
        check_rows(name, expected, indices, rows, ranked)
        scores = score(rows)
    return Measurements(indices, rows, scores)


def gather_rows(trainer: Trainer, indices: list[int], rows: Tensor) -> tuple[list[int], Tensor]:
    """Gather the rows of all processes, sorted by dataset index, on every process.

    Args:
        trainer: Its strategy's process group is still alive at fit end.
        indices: This process's dataset indices.
        rows: This process's (n, ...) rows.

    Returns:
        All indices, ascending, and their (N, ...) rows on the CPU.

    """
    strategy, device = trainer.strategy, trainer.strategy.root_device
    counts = strategy.all_gather(torch.tensor([len(indices)], device=device)).flatten().tolist()
    ids = torch.zeros(max(counts), dtype=torch.int64, device=device)
    ids[: len(indices)] = torch.tensor(indices, dtype=torch.int64, device=device)
    padded = torch.zeros((max(counts), *rows.shape[1:]), dtype=rows.dtype, device=device)
    padded[: len(indices)] = rows.to(device)
    gathered_ids = strategy.all_gather(ids).reshape(len(counts), -1)
    gathered_rows = strategy.all_gather(padded).reshape(len(counts), *padded.shape)
    indices = [index for rank, count in enumerate(counts) for index in gathered_ids[rank, :count].tolist()]
    return _sorted(indices, torch.cat([gathered_rows[rank, :count] for rank, count in enumerate(counts)]).cpu())


def _sorted(indices: list[int], rows: Tensor) -> tuple[list[int], Tensor]:
    order = torch.tensor(indices, dtype=torch.int64).argsort()
    return [indices[row] for row in order.tolist()], rows[order]


def _is_sound(name: str, expected: Sequence[int], indices: Sequence[int], rows: Tensor, ranked: bool) -> bool:
    try:
        check_rows(name, expected, indices, rows, ranked)
    except (RuntimeError, ValueError):
        return False
    return True
