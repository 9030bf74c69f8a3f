"""Deviations of the outputs in each pass: the interface of backends, and the reduction to numbers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_al.formulas.checks import mean_over_positions

Seed = tuple[int, ...]


class Deviation(NamedTuple):
    """How far the outputs of one batch moved in one pass.

    Attributes:
        position: The position of the batch in the chunk.
        step: The number of the pass.
        change: (B, C, *positions) perturbed minus clean outputs, or their first-order term.
        clean: (B, C, *positions) clean outputs.

    """

    position: int
    step: int
    change: Tensor
    clean: Tensor


class Backend(Protocol):
    """An implementation of deviations."""

    def deviations(self, chunk: Sequence[Any], seeds: Sequence[Seed]) -> Iterator[Deviation]:
        """Yield each batch's deviation in each pass, the passes of a batch in order.

        Args:
            chunk: Batches on the device.
            seeds: One tuple of integers per pass; the same seed gives the same noise.

        Yields:
            Deviations; only the latest one needs memory.

        """


Norm = Literal["squared", "l2"]


SCORE, EVEN, ODD = range(3)  # columns of `ranking_rows`


PositionMaskOf = Callable[[Any, Tensor], Tensor | None]
"""Maps a batch and its outputs to the positions that count, (B, *positions), or to None if all do."""


def count_all(batch: Any, outputs: Tensor) -> None:
    """Return None: every position counts."""


def deviation_sizes(
    backend: Backend,
    chunk: Sequence[Any],
    seeds: Sequence[Seed],
    norm: Norm = "squared",
    position_mask: PositionMaskOf = count_all,
) -> Tensor:
    r"""Measure the deviation of each sample in each pass; the score is the mean over the passes.

    A dense output is reduced at once: the norm is taken over the classes at each position, then averaged over the
    positions that count.

    Args:
        backend: Computes the deviations.
        chunk: Batches on the device.
        seeds: One tuple of integers per pass.
        norm: `"squared"` or `"l2"`.
        position_mask: Finds the positions that count.

    Returns:
        (n, K) sizes, n being the number of samples in the chunk.

    References:
        Li et al., Deep Active Learning with Noise Stability, Eq. 2.

    """
    sizes: list[list[Tensor]] = [[] for _ in chunk]
    for deviation in backend.deviations(chunk, seeds):
        position, squared = deviation.position, deviation.change.square().sum(1)
        mask = position_mask(chunk[position], deviation.clean)
        del deviation  # frees dense outputs before the next pass
        size = squared if norm == "squared" else squared.sqrt()
        sizes[position].append(mean_over_positions(size, mask))
    return torch.cat([torch.stack(passes, 1) for passes in sizes])


def ranking_rows(sizes: Tensor) -> Tensor:
    """Return rows (n, 3) of the score and its two halves, the means over even and odd passes, from sizes (n, K)."""
    odd = sizes[:, 1::2] if sizes.shape[1] > 1 else sizes
    return torch.stack([sizes.mean(1), sizes[:, ::2].mean(1), odd.mean(1)], 1)


def deviation_vectors(
    backend: Backend,
    chunk: Sequence[Any],
    seeds: Sequence[Seed],
    normalize: bool = False,
    position_mask: PositionMaskOf = count_all,
) -> Tensor:
    r"""Concatenate the deviations of all passes: random projections of the per-sample gradients.

    A dense output is averaged over its positions that count first.

    Args:
        backend: Computes the deviations.
        chunk: Batches on the device.
        seeds: One tuple of integers per pass.
        normalize: Divide by the norm of the sample's clean output, as the authors' later code does.
        position_mask: Finds the positions that count.

    Returns:
        (n, K * C) vectors; the mean over K of their squared norm is the mean of `deviation_sizes` (norm "squared")
        for an output that is not dense, unless normalized.

    References:
        Li et al., Deep Active Learning with Noise Stability (AAAI 2024), and its released code.

    """
    vectors: list[list[Tensor]] = [[] for _ in chunk]
    for position, _, change, clean in backend.deviations(chunk, seeds):
        mask = position_mask(chunk[position], clean)
        vector = _mean_of_vectors(change, mask)
        if normalize:
            center = _mean_of_vectors(clean, mask)
            vector = vector / center.norm(dim=1, keepdim=True).clamp_min(torch.finfo(center.dtype).tiny)
        vectors[position].append(vector)
    return torch.cat([torch.cat(passes, 1) for passes in vectors])


def _mean_of_vectors(outputs: Tensor, mask: Tensor | None) -> Tensor:
    """Average (B, C, *positions) to (B, C) over the positions that count."""
    masks = None if mask is None else mask.unsqueeze(1).expand_as(outputs).flatten(0, 1)
    return mean_over_positions(outputs.flatten(0, 1), masks).reshape(outputs.shape[:2])
