"""What a random part of the candidates, measured with all passes, tells about the others.

It shows how well the final score can be foretold from the clean outputs and the first passes, and how many passes it
takes until the picks no longer change.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_al.adapters import Output
from lightning_al.functional import top_k
from lightning_al.functional.noise_stability import Norm, deviation_sizes, sensitivity
from lightning_al.perturb import Backend, Seed
from lightning_al.racing import Cut, Plan, log_scores, race_features, ranking_rows

PILOT = 256
SMALLEST_PILOT = 64
PILOT_PICKS = 16  # picks among the pilot, at least, whose overlap is compared
CUTS = (0, 3)  # passes after which samples may drop out; 0 goes by the clean outputs alone
MARGIN = 3.0  # standard errors of the forecast by which a sample must miss the picks to drop out
FEWEST_PASSES = 3  # whose halves can be compared
SPLITS = 8


def pilot_size(candidates: int, share: float, automatic: bool) -> int:
    """Return how many candidates make a pilot.

    Args:
        candidates: How many there are.
        share: Share of them that will be picked.
        automatic: Whether picks are compared within the pilot, which takes a few.

    Returns:
        Some hundred, but no more than a quarter of a pool that is not tiny.

    """
    wanted = max(PILOT, math.ceil(PILOT_PICKS / share)) if automatic else PILOT
    return min(wanted, max(candidates // 4, SMALLEST_PILOT))


def pilot_rows(backend: Backend, chunk: Sequence[Any], seeds: Sequence[Seed], norm: Norm, output: Output) -> Tensor:
    """Run all passes, and return rows (n, 1 + K) of the sensitivity and the size of each deviation."""
    sensitivities = torch.cat([sensitivity(backend.rough(batch), output) for batch in chunk])
    return torch.cat([sensitivities.unsqueeze(1), deviation_sizes(backend, chunk, seeds, norm)], 1)


def draw_up(rows: Tensor, share: float, racing: bool, stability: float | None) -> tuple[Plan, Tensor]:
    """Make the plan of a cycle.

    Args:
        rows: (n, 1 + K) rows of the pilot, from `pilot_rows`.
        share: Share of the candidates that will be picked.
        racing: Whether samples may drop out.
        stability: How much the picks of both halves of the passes must overlap; None runs all K.

    Returns:
        The plan, and the pilot's rows under it, as those of `ranking_rows`.

    """
    sensitivities, sizes = rows[:, 0], rows[:, 1:]
    passes = sizes.shape[1] if stability is None else stable_passes(sizes, share, stability)
    sizes = sizes[:, :passes]
    return Plan(passes, plan_race(sensitivities, sizes, share) if racing else ()), ranking_rows(sizes)


def plan_race(sensitivities: Tensor, sizes: Tensor, share: float) -> list[Cut]:
    """Learn from a pilot who may drop out when.

    The log score is regressed on what is known so far, with most weight on the samples near the border of the picks;
    a sample drops out if even `MARGIN` standard errors above its forecast it would miss the border.

    Args:
        sensitivities: (n,) of the pilot's samples.
        sizes: (n, K) sizes of their deviations in all passes.
        share: Share of the candidates that will be picked, in (0, 1).

    Returns:
        Those of `CUTS` that save more passes than they cost.

    """
    scores = sizes.double().mean(1)
    logs = log_scores(scores)
    count = len(logs)
    # the border of the pool lies somewhere about that of the pilot; err on the side of keeping more
    rank = share * count + MARGIN / 2 * math.sqrt(count * share * (1 - share))
    border = logs.sort(descending=True).values[min(math.ceil(rank), count) - 1]
    cuts, racing = [], count
    for passes in CUTS:
        features = race_features(sensitivities.double(), sizes[:, :passes].double())
        weights, error = _regress(features, logs, border)
        cut = Cut(passes, weights, float(border - MARGIN * error))
        staying = int((features @ weights >= cut.threshold).sum())
        # a first look at all, or another clean pass over those that stay, is what a cut costs
        if (racing - staying) * (sizes.shape[1] - passes) > (staying if passes else count):
            cuts.append(cut)
            racing = staying
    return cuts


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


def _regress(features: Tensor, logs: Tensor, border: Tensor) -> tuple[Tensor, Tensor]:
    """Fit weighted least squares; return the weights and the standard error about the border."""
    closeness = (-(logs - border).abs() / 2).exp()
    scale = closeness.sqrt().unsqueeze(1)
    weights = torch.linalg.lstsq(features * scale, logs.unsqueeze(1) * scale, driver="gelsd").solution.squeeze(1)
    residuals = logs - features @ weights
    return weights, ((closeness * residuals.square()).sum() / closeness.sum()).sqrt()
