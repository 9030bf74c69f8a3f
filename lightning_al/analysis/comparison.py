"""What a comparison of strategies found: its tables as Markdown, and all of its numbers as JSON."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_al.analysis.learning_curves import Array, LearningCurves, labels_to_target, mean_and_sd
from lightning_al.analysis.paired_tests import PairedDifference, holm, paired_difference

MAX_COLUMNS = 8  # of a table of cycles


@dataclass(frozen=True)
class Comparison:
    """Learning curves of several strategies with the same numbers of labels.

    Attributes:
        curves: The curves of each strategy that has a finished run.
        metric: The name of the metric.
        baseline: The strategy that the others are compared with, if it has finished runs.
        against: Further strategies to compare with.
        targets: Values of the metric whose cost in labels is asked for; by default the baseline's last mean.
        lower_is_better: Whether the metric is an error.

    """

    curves: dict[str, LearningCurves]
    metric: str
    baseline: str
    against: tuple[str, ...] = ()
    targets: tuple[float, ...] = ()
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        first_name, first = next(iter(self.curves.items()))
        for name, curves in self.curves.items():
            if not np.array_equal(curves.labels, first.labels):
                raise ValueError(
                    f"`Comparison(curves=...)`: expected the same numbers of labels for all, got "
                    f"{first.labels.tolist()} for {first_name} and {curves.labels.tolist()} for {name}; leave one out"
                )
        if not self.targets and self.baseline in self.curves:
            final = float(self.curves[self.baseline].values[:, -1].mean())
            object.__setattr__(self, "targets", (final,))

    @property
    def labels(self) -> Array:
        """The numbers of labels, of shape (T,)."""
        return next(iter(self.curves.values())).labels

    @property
    def references(self) -> list[str]:
        """The baseline, then the others to compare with, as far as they have runs."""
        return [name for name in dict.fromkeys((self.baseline, *self.against)) if name in self.curves]

    @property
    def common_seeds(self) -> list[int]:
        """The seeds that every strategy has finished."""
        return sorted(set.intersection(*(set(curves.seeds) for curves in self.curves.values())))

    def best_first(self) -> list[str]:
        """Return the strategies by mean area, over the common seeds if there are any; without a mean they come last."""
        seeds, sign = self.common_seeds, 1 if self.lower_is_better else -1
        means = {name: (own.select(seeds) if seeds else own).areas.mean() for name, own in self.curves.items()}
        return sorted(means, key=lambda name: (math.isnan(means[name]), sign * means[name]))

    def differences(self, reference: str) -> dict[str, PairedDifference]:
        """Compare areas with those of `reference` over the common seeds, best first; p-values adjusted by Holm."""
        seeds = self.common_seeds
        if not seeds:
            return {}
        theirs = self.curves[reference].select(seeds).areas
        found = {
            name: paired_difference(self.curves[name].select(seeds).areas, theirs)
            for name in self.best_first()
            if name != reference
        }
        adjusted = holm([difference.p_value for difference in found.values()])
        return {
            name: replace(difference, p_value=p_value)
            for (name, difference), p_value in zip(found.items(), adjusted, strict=True)
        }

    def labels_needed(self, target: float) -> dict[str, Array]:
        """Return how many labels each run of each strategy needs to reach a target; infinity if it never does."""
        return {
            name: labels_to_target(own.labels, own.values, target, lower_is_better=self.lower_is_better)
            for name, own in self.curves.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON holds them; what is unknown or infinite is None."""
        strategies = {}
        for name, own in self.curves.items():
            mean, sd = mean_and_sd(own.values)
            area_mean, area_sd = mean_and_sd(own.areas)
            strategies[name] = {
                "seeds": list(own.seeds),
                "values": own.values.tolist(),
                "mean": mean.tolist(),
                "sd": sd.tolist(),
                "areas": own.areas.tolist(),
                "area_mean": float(area_mean),
                "area_sd": float(area_sd),
                "fit_seconds": own.fit_seconds.tolist(),
                "query_seconds": own.query_seconds.tolist(),
            }
        numbers = {
            "metric": self.metric,
            "lower_is_better": self.lower_is_better,
            "baseline": self.baseline,
            "labels": self.labels.tolist(),
            "common_seeds": self.common_seeds,
            "strategies": strategies,
            "differences": {
                reference: {name: vars(difference) for name, difference in self.differences(reference).items()}
                for reference in self.references
            },
            "labels_needed": [
                {"target": target, "labels": {name: n.tolist() for name, n in self.labels_needed(target).items()}}
                for target in self.targets
            ],
        }
        plain: dict[str, Any] = _finite(numbers)
        return plain

    def to_markdown(self) -> str:
        """Lay everything out as Markdown tables that are also readable as plain text."""
        count = len(self.curves)
        title = f"# {self.metric} of {count} strateg{'y' if count == 1 else 'ies'}"
        parts = [title, self._seeds_text(), *self._curve_part()]
        if self.baseline not in self.curves and count > 1:
            parts.append(f"No paired differences to the baseline {self.baseline}: it has no finished run.")
        for reference in self.references:
            parts += self._difference_part(reference)
        return "\n\n".join([*parts, *self._target_part(), *self._seconds_part()]) + "\n"

    def _seeds_text(self) -> str:
        seeds, common = {name: own.seeds for name, own in self.curves.items()}, self.common_seeds
        if all(len(own) == len(common) for own in seeds.values()):
            return f"Seeds: {_list(common)}, the same for every strategy."
        counts = ", ".join(f"{name} {len(own)}" for name, own in seeds.items())
        return (
            f"Finished seeds per strategy: {counts}. Means are over all of a strategy's seeds; paired differences over "
            f"the {len(common)} that all have{f' ({_list(common)})' if common else ''}."
        )

    def _curve_part(self) -> list[str]:
        columns = _evenly(len(self.labels), MAX_COLUMNS)
        head = ["strategy", *(f"{self.labels[column]:g} labels" for column in columns), "area"]
        decimals = self._decimals()
        rows = [
            [name, *_mean_cells(own.values[:, columns], decimals), *_mean_cells(own.areas[:, None], decimals)]
            for name, own in self.curves.items()
        ]
        better = "lower" if self.lower_is_better else "higher"
        return [
            "## Learning curves",
            f"Mean ± standard deviation over seeds ({better} is better). Area: the mean of the curve over the label "
            "axis (trapezoid rule).",
            _table(head, rows),
        ]

    def _difference_part(self, reference: str) -> list[str]:
        found = self.differences(reference)
        if not found:
            return []
        better = "negative" if self.lower_is_better else "positive"
        pairs = next(iter(found.values())).pairs
        rows = [[name, *_difference_cells(difference, self._decimals() + 1)] for name, difference in found.items()]
        return [
            f"## Area minus that of {reference}",
            f"Paired over {_plural(pairs, 'seed')}, best first; {better} is better than {reference}. p: paired t-test, "
            f"adjusted for {_plural(len(found), 'comparison')} (Holm).",
            _table(["strategy", "difference", "95 % interval", "p"], rows),
        ]

    def _decimals(self) -> int:
        """Return how many decimals show three digits of the largest value, so 3 for a share and 1 for percents."""
        largest = max(np.abs(own.values[np.isfinite(own.values)]).max(initial=0.0) for own in self.curves.values())
        return min(8, max(0, 3 - math.ceil(math.log10(largest)))) if largest else 3

    def _target_part(self) -> list[str]:
        if not self.targets:
            return []
        needed = [self.labels_needed(target) for target in self.targets]
        head = ["strategy", *(f"{self.metric} {target:.4g}" for target in self.targets)]
        rows = [[name, *(_needed_cell(one[name], self.labels[0]) for one in needed)] for name in self.curves]
        return [
            "## Labels needed",
            "Median over seeds of the number of labels at which a run's curve first reaches the value"
            f"{self._target_origin()}.",
            _table(head, rows),
        ]

    def _target_origin(self) -> str:
        final = float(self.curves[self.baseline].values[:, -1].mean()) if self.baseline in self.curves else None
        return f" ({self.targets[0]:.4g} is {self.baseline}'s last mean)" if self.targets == (final,) else ""

    def _seconds_part(self) -> list[str]:
        rows = []
        for name, own in self.curves.items():
            query = own.mean_query_seconds
            rows.append([name, f"{own.fit_seconds.mean():.2f}", "-" if math.isnan(query) else f"{query:.2f}"])
        head = ["strategy", "fit", "score and select"]
        return ["## Seconds per cycle", "Mean over cycles and seeds.", _table(head, rows)]


def _evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` positions, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(position * (count - 1) / (most - 1)) for position in range(most)]


def _mean_cells(values: Array, decimals: int) -> list[str]:
    means, sds = (part.tolist() for part in mean_and_sd(values))
    if len(values) == 1:
        return [f"{mean:.{decimals}f}" for mean in means]
    return [f"{mean:.{decimals}f} ± {sd:.{decimals}f}" for mean, sd in zip(means, sds, strict=True)]


def _difference_cells(difference: PairedDifference, decimals: int) -> list[str]:
    mean, low, high = (f"{number:+.{decimals}f}" for number in (difference.mean, difference.low, difference.high))
    if difference.pairs == 1:
        return [mean, "-", "-"]
    return [mean, f"{low} to {high}", format_p_value(difference.p_value)]


def format_p_value(p_value: float) -> str:
    """Say a p-value with three decimals, or that it is below them."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _needed_cell(needed: Array, first: float) -> str:
    missed = int(np.isinf(needed).sum())
    median = float(np.median(needed))  # of an even number of runs infinite if one of the middle two is
    text = "not reached" if math.isinf(median) else f"{'≤ ' if median <= first else ''}{median:.0f}"
    return text + (f" ({missed} of {len(needed)} never)" if missed else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
