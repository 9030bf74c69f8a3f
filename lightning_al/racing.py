"""Fewer passes: samples that can no longer be picked drop out between them.

The plan that says who drops out when was drawn up from a pilot, before these samples were read, so a sample's fate
depends on that sample alone: the picks are the same on any number of processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_al.adapters import Output, take_rows
from lightning_al.forecast import Forecast
from lightning_al.functional.noise_stability import Norm, deviation_sizes, sensitivity
from lightning_al.perturb import Backend, Seed

SCORE, EVEN, ODD, FINISHED = range(4)  # columns of the rows that are ranked
MOST_CLASSES, LARGEST = 64, 8  # with more classes than that, a forecast goes by a sample's largest outputs
LEAST_PROBABILITY = 1e-4  # below which a class no longer matters
NO_RACE = (
    "`racing=True` takes single samples out of a batch, but half of a batch gives {}. Let batches be containers of "
    "tensors with one row per sample, or use racing=False."
)


@dataclass(frozen=True)
class Cut:
    """After so many passes, a sample drops out if the forecast of its log score lies below the threshold.

    Attributes:
        passes: Passes run so far.
        forecast: From the features of `race_features` to log scores.
        threshold: On the log score.

    """

    passes: int
    forecast: Forecast
    threshold: float

    def foretell(self, outlooks: Tensor, sizes: Tensor) -> Tensor:
        """Foretell log scores (n,) from outlooks (n, F) and the sizes (n, K) of the deviations so far."""
        return self.forecast(race_features(outlooks, sizes[:, : self.passes]))


@dataclass(frozen=True)
class Plan:
    """How many passes to run, and who drops out on the way."""

    passes: int
    cuts: Sequence[Cut] = field(default=())


def race(
    backend: Backend, chunk: Sequence[Any], seeds: Sequence[Seed], plan: Plan, norm: Norm, output: Output
) -> Tensor:
    """Run the passes of a plan over a chunk, each over the samples that are still in the race.

    Args:
        backend: What computes the deviations.
        chunk: Batches on the device. What remains of a batch stays a batch of its own, so that the result does not
            depend on which batches share a chunk.
        seeds: At least as many as the plan has passes.
        plan: From `plan_race`.
        norm: `"squared"` or `"l2"`.
        output: What the distance is measured on.

    Returns:
        (n, 4) rows as those of `ranking_rows`; a sample that dropped out has its forecast for a score, and a 0.

    """
    if not plan.cuts:
        return ranking_rows(deviation_sizes(backend, chunk, seeds[: plan.passes], norm))
    runners = [_Runner(backend, batch, plan.passes, output) for batch in chunk]
    done = 0
    for cut in plan.cuts:
        _run(runners, backend, seeds, done, cut.passes, norm)
        for runner in runners:
            runner.drop(cut)
        done = cut.passes
    _run(runners, backend, seeds, done, plan.passes, norm)
    return torch.cat([runner.result for runner in runners])


def _run(
    runners: Sequence["_Runner"], backend: Backend, seeds: Sequence[Seed], start: int, stop: int, norm: Norm
) -> None:
    """Run some passes over the samples that are still racing."""
    racing = [runner for runner in runners if len(runner.rows)]
    if racing and start < stop:
        known = [runner.clean for runner in racing if runner.clean is not None]
        clean = known if len(known) == len(racing) else None
        sizes = deviation_sizes(backend, [runner.batch for runner in racing], seeds[start:stop], norm, clean)
        for runner, part in zip(racing, sizes.split([len(runner.rows) for runner in racing]), strict=True):
            runner.sizes[runner.rows, start:stop] = part


def ranking_rows(sizes: Tensor) -> Tensor:
    """Return rows (n, 4) of score, its two halves (means over even and odd passes), and 1: all passes were run."""
    odd = sizes[:, 1::2] if sizes.shape[1] > 1 else sizes
    return torch.stack([sizes.mean(1), sizes[:, ::2].mean(1), odd.mean(1), sizes.new_ones(len(sizes))], 1)


def check_race(backend: Backend, batch: Any) -> None:
    """Refuse batches from which samples cannot be taken out.

    Args:
        backend: What computes the outputs.
        batch: A few samples.

    Raises:
        ValueError: If a part of the batch gives other outputs than it does within the whole.

    """
    clean = backend.rough(batch)
    half = torch.arange(max(len(clean) // 2, 1), device=clean.device)
    try:
        part = backend.rough(take_rows(batch, half, len(clean)))
    except Exception as error:
        raise ValueError(NO_RACE.format(f"{type(error).__name__}: {error}")) from error
    expected = clean[half]
    tolerance = 0.05 * float(expected.abs().max())  # of low precision too; samples taken for others are far off
    if part.shape != expected.shape or not torch.allclose(part, expected, rtol=0, atol=tolerance):
        raise ValueError(NO_RACE.format("other outputs"))


class _Runner:
    """A batch in the race: the samples that are still in it, and what is known of all."""

    def __init__(self, backend: Backend, batch: Any, passes: int, output: Output) -> None:
        clean = backend.rough(batch)
        outlooks = outlook(clean, output)
        self.batch = batch
        # not of dense outputs, of which only one batch at a time may be held
        self.clean = clean if backend.looks_in_full and clean.ndim == 2 else None
        self.rows = torch.arange(len(outlooks), device=outlooks.device)
        self.sizes = outlooks.new_zeros(len(outlooks), passes)
        self._whole = batch
        self._outlooks = outlooks
        self._forecasts = outlooks.new_full((len(outlooks),), math.nan)

    def drop(self, cut: Cut) -> None:
        forecasts = cut.foretell(self._outlooks[self.rows], self.sizes[self.rows])
        staying = forecasts >= cut.threshold
        self._forecasts[self.rows[~staying]] = forecasts[~staying].exp()
        if not bool(staying.all()):
            self.rows = self.rows[staying]
            self.clean = None if self.clean is None else self.clean[staying]
            # out of the whole batch, whose size tells what has a row per sample
            self.batch = take_rows(self._whole, self.rows, len(self._outlooks))

    @property
    def result(self) -> Tensor:
        rows = self._forecasts.unsqueeze(1).repeat(1, 4)
        rows[:, FINISHED] = 0
        rows[self.rows] = ranking_rows(self.sizes[self.rows])
        return rows


def outlook(clean: Tensor, output: Output) -> Tensor:
    """Return what the clean outputs tell about the score.

    Args:
        clean: (B, C, *positions) probabilities, sigmoids or raw outputs.
        output: Which of them.

    Returns:
        (B, F) features: the log sensitivity, and the outputs averaged over the positions with their logarithms, since
        noise moves some classes more than others. Of more than 64 classes only the 8 largest are taken, sorted.

    """
    means = clean.reshape(*clean.shape[:2], -1).mean(2)
    if means.shape[1] > MOST_CLASSES:
        means = means.topk(LARGEST, dim=1).values
    columns = [log_scores(sensitivity(clean, output)).unsqueeze(1), means]
    return torch.cat(columns if output == "identity" else [*columns, (means + LEAST_PROBABILITY).log()], 1)


def race_features(outlooks: Tensor, sizes: Tensor) -> Tensor:
    """Return what a log score is foretold from: outlooks (n, F) and, after a pass, the log mean deviation so far."""
    return torch.cat([outlooks, log_scores(sizes.mean(1, keepdim=True))], 1) if sizes.shape[1] else outlooks


def log_scores(values: Tensor) -> Tensor:
    """Return logarithms, finite for a score of zero."""
    return values.clamp_min(torch.finfo(torch.float32).tiny).log()
