"""What a random part of the candidates, measured with all passes, tells about the others.

It shows how well the final score can be foretold from the clean outputs and the first passes, and how many passes it
takes until the picks no longer change.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lightning_al.adapters import Output
from lightning_al.forecast import fit_forecast
from lightning_al.functional import top_k
from lightning_al.functional.noise_stability import Norm, deviation_sizes
from lightning_al.perturb import Backend, Seed
from lightning_al.racing import Cut, Plan, log_scores, outlook, race_features, ranking_rows

PILOT = 512
PILOT_SHARE = 8  # one candidate in so many, in a smaller pool
SMALLEST_PILOT = 64
LARGEST_PILOT = 4096
FEWEST_TO_LEARN_FROM = 8
PILOT_PICKS = 16  # picks among the pilot, at least, whose overlap is compared
CUTS = (0, 2, 5)  # passes after which samples may drop out; 0 goes by the clean outputs alone
MARGIN = 4.0  # standard errors of the forecast by which a sample must miss the border of the picks to drop out
BORDER_MARGIN = 3.0  # standard errors of the rank of that border in the pilot
FEWEST_PASSES = 3  # whose halves can be compared
SPLITS = 8


def pilot_size(candidates: int, share: float, automatic: bool) -> int:
    """Return how many candidates make a pilot.

    Args:
        candidates: How many there are.
        share: Share of them that will be picked.
        automatic: Whether picks are compared within the pilot, which takes a few.

    Returns:
        Some hundred, or thousand if few are picked, but fewer in a small pool: the pilot runs all passes.

    """
    wanted = min(max(PILOT, math.ceil(PILOT_PICKS / share)), LARGEST_PILOT) if automatic else PILOT
    return min(wanted, max(candidates // PILOT_SHARE, SMALLEST_PILOT))


def pilot_rows(backend: Backend, chunk: Sequence[Any], seeds: Sequence[Seed], norm: Norm, output: Output) -> Tensor:
    """Run all passes, and return rows (n, K + F) of the size of each deviation and of the outlook."""
    outlooks = torch.cat([outlook(backend.rough(batch), output) for batch in chunk])
    return torch.cat([deviation_sizes(backend, chunk, seeds, norm), outlooks], 1)  # some hundred samples: looked twice


def draw_up(
    rows: Tensor, most_passes: int, share: float, racing: bool, stability: float | None, looks_in_full: bool = False
) -> tuple[Plan, Tensor]:
    """Make the plan of a cycle.

    Args:
        rows: (n, K + F) rows of the pilot, from `pilot_rows`.
        most_passes: K.
        share: Share of the candidates that will be picked.
        racing: Whether samples may drop out.
        stability: How much the picks of both halves of the passes must overlap; None runs all K.
        looks_in_full: Whether the first look spares the clean passes, see `Backend`.

    Returns:
        The plan, and the pilot's rows under it, as those of `ranking_rows`.

    """
    sizes, outlooks = rows[:, :most_passes], rows[:, most_passes:]
    passes = most_passes if stability is None else stable_passes(sizes, share, stability)
    sizes = sizes[:, :passes]
    return Plan(passes, plan_race(outlooks, sizes, share, looks_in_full) if racing else ()), ranking_rows(sizes)


def plan_race(outlooks: Tensor, sizes: Tensor, share: float, looks_in_full: bool = False) -> list[Cut]:
    """Learn from a pilot who may drop out when.

    The log score is foretold from what is known so far, with most weight on the samples near the border of the picks;
    a sample drops out if it would miss the border even `MARGIN` standard errors above its forecast.

    Args:
        outlooks: (n, F) of the pilot's samples.
        sizes: (n, K) sizes of their deviations in all passes.
        share: Share of the candidates that will be picked, in (0, 1).
        looks_in_full: Whether the first look spares the clean passes, see `Backend`.

    Returns:
        Those of the possible cuts that together cost the fewest passes; none if nothing is saved, or if there are too
        few samples to learn from.

    """
    outlooks, sizes = outlooks.double(), sizes.double()
    logs = log_scores(sizes.mean(1))
    count, passes = sizes.shape
    if count < FEWEST_TO_LEARN_FROM:
        return []
    # the border of the pool lies somewhere about that of the pilot; err on the side of keeping more
    rank = share * count + BORDER_MARGIN * math.sqrt(count * share * (1 - share))
    border = logs.sort(descending=True).values[min(math.ceil(rank), count) - 1]
    nearness = (-(logs - border).abs() / 2).exp()
    cuts, staying = [], []
    for before in (before for before in CUTS if before < passes):
        features = race_features(outlooks, sizes[:, :before])
        forecast = fit_forecast(features, logs, nearness)
        cuts.append(Cut(before, forecast, float(border) - MARGIN * forecast.error))
        staying.append(cuts[-1].foretell(outlooks, sizes) >= cuts[-1].threshold)
    choices = [choice for size in range(len(cuts) + 1) for choice in combinations(range(len(cuts)), size)]
    clean = 0 if looks_in_full else 1
    best = min(choices, key=lambda choice: _cost([cuts[i] for i in choice], [staying[i] for i in choice], sizes, clean))
    return [cuts[i] for i in best]


def _cost(cuts: Sequence[Cut], staying: Sequence[Tensor], sizes: Tensor, clean: int) -> int:
    """Count the forward passes of the pilot's samples under some cuts, `clean` of them before each leg of the race."""
    count, passes = sizes.shape
    if not cuts:
        return count * (passes + 1)
    cost, done, racing = count, 0, torch.ones(count, dtype=torch.bool)  # the first look
    for cut, stays in zip(cuts, staying, strict=True):
        cost += int(racing.sum()) * (cut.passes - done + clean * (cut.passes > done))
        racing, done = racing & stays, cut.passes
    return cost + int(racing.sum()) * (passes - done + clean)


def stable_passes(sizes: Tensor, share: float, stability: float) -> int:
    """Return the fewest passes of a pilot after which both halves of them pick much the same samples.

    Args:
        sizes: (n, K) sizes of the deviations.
        share: Share of the samples to pick.
        stability: Overlap of the two halves' picks to reach, in (0, 1].

    Returns:
        A number of passes from `FEWEST_PASSES` to K; K if it is never reached.

    """
    budget = max(1, round(share * len(sizes)))
    generator = torch.Generator().manual_seed(0)  # of the splits, not of any noise
    for passes in range(min(FEWEST_PASSES, sizes.shape[1]), sizes.shape[1]):
        overlaps = []
        for _ in range(SPLITS):
            order = torch.randperm(passes, generator=generator)
            one, other = sizes[:, order[::2]].mean(1), sizes[:, order[1::2]].mean(1)
            overlaps.append(overlap(one, other, budget))
        if sum(overlaps) / SPLITS >= stability:
            return passes
    return sizes.shape[1]


def overlap(one: Tensor, other: Tensor, budget: int) -> float:
    """Return the share of the `budget` largest of `one` (N,) that are also among those of `other` (N,)."""
    both = set(top_k(one, budget).tolist()) & set(top_k(other, budget).tolist())
    return len(both) / min(budget, len(one))
