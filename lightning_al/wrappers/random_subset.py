"""A random part of the candidates, from which another acquisition picks."""

from collections.abc import Sequence

import torch

from lightning_al.data.draw import draw_part
from lightning_al.data.sizes import check_size, resolve_size
from lightning_al.wrappers.wrapper import AcquisitionFactory, Wrapper


class RandomSubset(Wrapper):
    """Pick with another acquisition from a random part of the candidates, drawn anew each cycle.

    Scoring costs less, and a batch of top scores holds fewer near-duplicates.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        acquisition: The class of the other acquisition, or a `functools.partial` of it.
        candidates: How many to show: a number, or a share of the candidates in (0, 1]; more than are labeled.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: Before training, if no more candidates are drawn than are labeled.

    Cost: that of the other acquisition, for the candidates that are drawn.

    Example:
        >>> from lightning_al import MarginAcquisition
        >>> RandomSubset(100, MarginAcquisition, candidates=0.1).inner.query_size
        100

    References:
        Beluch et al., The Power of Ensembles for Active Learning in Image Classification (2018), which scores a random
        part of the pool.

    """

    def __init__(
        self, query_size: int | float, acquisition: AcquisitionFactory, candidates: int | float = 10_000
    ) -> None:
        super().__init__(query_size, acquisition)
        self.candidates = check_size(f"`RandomSubset(candidates={candidates!r})`", candidates, "the candidates")

    def subsample_candidates(self, indices: Sequence[int], budget: int, generator: torch.Generator) -> Sequence[int]:
        """Return a random part of the candidates."""
        count = max(resolve_size(self.candidates, len(indices)), budget)
        part = draw_part(list(indices), count, generator)  # a copy, by which a mixture notices the subsampling
        return self.inner.subsample_candidates(part, budget, generator)
