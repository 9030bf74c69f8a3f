"""Greedy picks by distance, from points that are given as vectors or as factors.

A product of all points with one pick is bound by memory, with many picks by arithmetic, which is many times faster per
pick. So picks are made in blocks: among a few candidates, by their distances to each other only, until the next pick
may be another point. Then the distances of all points to the block's picks are updated, in one product.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_al.numerics.float32 import true_float32

# Candidates per block, so that their pairwise distances cost little.
_CANDIDATES = 256
# Distances computed at a time: few enough for the cache of a processor, enough to keep a GPU busy.
_BLOCK_ELEMENTS = 2**20
# Rounding leaves exact duplicates at up to 6 eps * (|x|^2 + |c|^2) if coordinates are normal, at up to 18 if a few of
# them dominate (lognormal; measured up to D = 50,000), never at 0.
_ROUNDING_EPS = 24


class Points(Protocol):
    """N points of which only lengths and inner products are known."""

    @property
    def lengths(self) -> Tensor:
        """Squared lengths (N,)."""

    def products(self, others: Self) -> Tensor:
        """Inner products (N, M)."""

    def take(self, rows: Tensor) -> Self:
        """Return some of the points, by rows on the CPU or on the points' device."""

    def tiles(self, size: int) -> list[Self]:
        """All of the points in consecutive parts."""


@dataclass(frozen=True)
class Vectors:
    """Points as vectors.

    Attributes:
        values: (N, D).

    """

    values: Tensor

    @cached_property
    def lengths(self) -> Tensor:
        """Squared lengths (N,)."""
        return self.values.square().sum(dim=1)

    def products(self, others: Self) -> Tensor:
        """Inner products (N, M)."""
        return self.values @ others.values.T

    def take(self, rows: Tensor) -> "Vectors":
        """Some of the points."""
        return Vectors(self.values[rows.to(self.values.device)])

    def tiles(self, size: int) -> "list[Vectors]":
        """All of the points in consecutive parts."""
        return [Vectors(part) for part in self.values.split(size)]


@dataclass(frozen=True)
class OuterProducts:
    """Points that are outer products of two vectors, never formed: `<a b', c d'> = <a, c> <b, d>`.

    Attributes:
        left: (N, C).
        right: (N, D).

    """

    left: Tensor
    right: Tensor

    @cached_property
    def lengths(self) -> Tensor:
        """Squared lengths (N,)."""
        return self.left.square().sum(dim=1) * self.right.square().sum(dim=1)

    def products(self, others: Self) -> Tensor:
        """Inner products (N, M)."""
        return (self.left @ others.left.T).mul_(self.right @ others.right.T)

    def take(self, rows: Tensor) -> "OuterProducts":
        """Some of the points."""
        rows = rows.to(self.left.device)
        return OuterProducts(self.left[rows], self.right[rows])

    def tiles(self, size: int) -> "list[OuterProducts]":
        """All of the points in consecutive parts."""
        return [OuterProducts(*parts) for parts in zip(self.left.split(size), self.right.split(size), strict=True)]


BlockSelector = Callable[[Points, Tensor, int], Tensor]
"""Picks a block of 1 to n rows, given the points, their squared distances to the nearest center or pick (N,), which
are -inf in rows picked already, and n."""


def greedy_select(points: Points, centers: Points, rows: Tensor, count: int, choose: BlockSelector) -> Tensor:
    """Extend `rows` to `count` picks, block by block.

    Args:
        points: N points.
        centers: The covered points, including those in `rows`.
        rows: The rows that are picked already.
        count: Number of rows to return.
        choose: `farthest_point_block` or `d2_sampling_block`.

    Returns:
        Rows of shape (count,), in the order of picking, on the CPU.

    """
    nearest = torch.full_like(points.lengths, math.inf)
    while len(rows) < count:
        _update_min_distances(nearest, points, centers)
        # -inf survives every later minimum: a picked row cannot win again, even among zero distances.
        nearest[rows] = -math.inf
        block = choose(points, nearest, count - len(rows))
        rows, centers = torch.cat([rows, block]), points.take(block)
    return rows


def farthest_point_block(points: Points, nearest: Tensor, count: int) -> Tensor:
    """Pick among the farthest candidates while the best of them certainly exceeds every other point.

    Distances only fall: a point that is no candidate never rises above the last candidate's distance at the start. So
    every pick is the one that a search of all points would make, ties included.
    """
    size = min(_CANDIDATES, len(nearest))
    bound = nearest.topk(size).values[-1]
    # `topk` does not define which of the ties it takes.
    above, ties = (nearest > bound).nonzero(), (nearest == bound).nonzero()
    rows, order = torch.cat([above, ties[: size - len(above)]]).flatten().sort()
    last = float(bound), -int(order.argmax())
    # On the CPU, so that a GPU waits once in a block and not at every pick.
    distances, now = _pairwise(points.take(rows)), nearest[rows].cpu()
    picks: list[int] = []
    while len(picks) < count:
        position = int(now.argmax())
        if (float(now[position]), -position) < last:
            break
        picks.append(position)
        now = torch.minimum(now, distances[position])
        now[position] = -math.inf
    return rows.cpu()[picks]


def d2_sampling_block(points: Points, nearest: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw in proportion to `nearest`, which falls from pick to pick, by rejection.

    Candidates are drawn from the weights at the start; one that is accepted with probability ``now / start`` is a draw
    from the current weights. The first is always accepted, and once nearly all are rejected the weights are updated.
    """
    # Not `torch.multinomial`: it takes at most 2^24 rows.
    weights = nearest.cpu().double()
    cdf = weights.clamp(min=0).cumsum(dim=0)
    if not (weights > 0).any():
        left = (weights >= 0).nonzero().flatten()
        return left[torch.randperm(len(left), generator=generator)[:count]]
    # No more than a small budget can use, since their pairwise distances would cost more than the picks.
    uniform = torch.rand(2, min(_CANDIDATES, 2 * count), dtype=torch.float64, generator=generator)
    rows = torch.searchsorted(cdf, cdf[-1] * uniform[0], right=True)
    # A row that is drawn twice must not be accepted twice.
    distances = _pairwise(points.take(rows)).masked_fill_(rows == rows.unsqueeze(1), 0)
    start, now = weights[rows], weights[rows]
    picks: list[int] = []
    for position, threshold in enumerate(uniform[1].tolist()):
        if len(picks) < count and now[position] / start[position] > threshold:
            picks.append(position)
            now = torch.minimum(now, distances[position])
    return rows[picks]


def _update_min_distances(nearest: Tensor, points: Points, centers: Points) -> None:
    """Lower `nearest` (N,) in place to the squared distances to the nearest center, tile by tile."""
    for block in centers.tiles(_CANDIDATES):
        size = max(1, _BLOCK_ELEMENTS // len(block.lengths))
        for tile, out in zip(points.tiles(size), nearest.split(size), strict=True):
            torch.minimum(out, squared_distances(tile, block).amin(dim=1), out=out)


def nearest_centers(points: Points, centers: Points) -> tuple[Tensor, Tensor]:
    """Return the squared distance (N,) of each point to its nearest center, and the row (N,) of that center."""
    distances = torch.full_like(points.lengths, math.inf)
    owners = torch.zeros(len(distances), dtype=torch.long, device=distances.device)
    begin = 0
    for block in centers.tiles(_CANDIDATES):
        size = max(1, _BLOCK_ELEMENTS // len(block.lengths))
        tiles = zip(points.tiles(size), distances.split(size), owners.split(size), strict=True)
        for tile, distance, owner in tiles:
            smallest, row = squared_distances(tile, block).min(dim=1)
            owner[smallest < distance] = row[smallest < distance] + begin
            torch.minimum(distance, smallest, out=distance)
        begin += len(block.lengths)
    return distances, owners


def _pairwise(points: Points) -> Tensor:
    """Return the squared distances (B, B) between the candidates of a block, on the CPU."""
    return squared_distances(points, points).cpu()


def squared_distances(points: Points, centers: Points) -> Tensor:
    """Return ``|x - c|^2`` by its expansion; distances below its rounding error, such as of duplicates, are 0."""
    # Autocast and TF32 would rank rounding errors.
    with true_float32(points.lengths.device):
        products = points.products(centers)
    sums = points.lengths.unsqueeze(1) + centers.lengths
    distances = torch.sub(sums, products, alpha=2, out=products)
    return distances.masked_fill_(distances <= sums.mul_(_ROUNDING_EPS * torch.finfo(sums.dtype).eps), 0)
