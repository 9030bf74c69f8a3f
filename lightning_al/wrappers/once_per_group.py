"""Limit how many samples of one group are labeled in one query."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_al.acquisition.query import Query
from lightning_al.wrappers.wrapper import AcquisitionFactory, Wrapper


class OncePerGroup(Wrapper):
    """Label at most a few samples of each group: frames of one video, slices of one patient, lines of one page.

    Samples of a group have similar content and scores, so the largest scores would often come from one group.

    The other acquisition chooses; picks above the limit of a group are dropped, and it chooses again from the other
    groups until the query is full. For an acquisition that uses the labeled part, earlier picks count as labeled.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        acquisition: The class of the other acquisition, or a `functools.partial` of it.
        groups: The group of each sample of the dataset, in its order: a sequence of names or numbers, or a text file
            with one per line.
        per_group: How many samples of a group may be labeled per query, at least 1.

    Raises:
        ValueError: If an argument is out of range, or there are not as many groups as samples.

    If the candidates have too few groups for the query, the remaining picks exceed the limit, with a warning.

    Cost: that of the other acquisition, with a few more selections.

    Example:
        >>> from lightning_al import EntropyAcquisition
        >>> OncePerGroup(2, EntropyAcquisition, groups=["a", "a", "b"]).per_group
        1

    """

    def __init__(
        self,
        query_size: int | float,
        acquisition: AcquisitionFactory,
        groups: str | Sequence[int | str],
        per_group: int = 1,
    ) -> None:
        super().__init__(query_size, acquisition)
        if per_group < 1:
            raise ValueError(f"`OncePerGroup(per_group={per_group})`: expected at least 1.")
        self.groups = groups
        self.per_group = per_group
        # elements of a tensor are never equal as keys
        values = groups.tolist() if hasattr(groups, "tolist") else groups
        self._group_of = Path(values).read_text(encoding="utf-8").splitlines() if isinstance(values, str) else values

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise before training if the groups are those of another dataset."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and len(self._group_of) != trainer.datamodule.pool.size:  # type: ignore[attr-defined]
            raise ValueError(
                f"`OncePerGroup(groups=...)`: expected the group of each of {trainer.datamodule.pool.size} samples, "  # type: ignore[attr-defined]
                f"got {len(self._group_of)}."
            )

    def select(self, query: Query) -> list[int]:
        """Choose samples, drop those above the limit of a group, and choose again."""
        picks: list[int] = []
        remaining = query
        while remaining.budget:
            full = remaining.budget >= len(remaining.indices)
            chosen = self._rank_all(remaining) if full else self.inner.select(remaining)
            accepted, refused = self._within_bounds(chosen, picks)
            picks += accepted
            if full and len(picks) < query.budget:
                return picks + self._select_beyond_bound(query.without(picks, query.budget - len(picks)))
            counts = Counter(self._group_of[index] for index in picks)
            filled = [index for index in remaining.indices if counts[self._group_of[index]] >= self.per_group]
            remaining = remaining.without(accepted, query.budget - len(picks), others=[*refused, *filled])
        return picks

    def _rank_all(self, query: Query) -> list[int]:
        """Return all candidates in the order in which the other acquisition chooses them."""
        if len(query.indices) < 2:
            return list(query.indices)
        chosen = self.inner.select(replace(query, budget=len(query.indices) - 1))
        (last,) = set(query.indices).difference(chosen)
        return [*chosen, last]

    def _within_bounds(self, chosen: list[int], picks: list[int]) -> tuple[list[int], list[int]]:
        counts = Counter(self._group_of[index] for index in picks)
        accepted: list[int] = []
        refused: list[int] = []
        for index in chosen:
            fits = counts[self._group_of[index]] < self.per_group
            counts[self._group_of[index]] += fits
            (accepted if fits else refused).append(index)
        return accepted, refused

    def _select_beyond_bound(self, query: Query) -> list[int]:
        rank_zero_warn(
            f"`OncePerGroup(per_group={self.per_group})`: the candidates have too few groups for the query, so "
            f"{query.budget} more samples are labeled beyond the bound. Ask for fewer, or raise `per_group`."
        )
        if query.budget >= len(query.indices):
            return list(query.indices)
        return self.inner.select(query)
