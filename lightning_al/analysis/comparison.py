"""The comparison of several strategies by their learning curves, and its numbers as JSON."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_al.analysis.learning_curves import Array, LearningCurves, labels_to_target, mean_and_sd
from lightning_al.analysis.paired_tests import PairedDifference, holm, paired_difference


@dataclass(frozen=True)
class Comparison:
    """Learning curves of several strategies with the same numbers of labels.

    Attributes:
        curves: The curves of each strategy that has a finished run.
        metric: The name of the metric.
        baseline: The strategy that the others are compared with, if it has finished runs.
        against: Further strategies that the others are compared with.
        targets: Values of the metric for which to report the labels needed; by default the baseline's final mean.
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
                    f"`Comparison(curves=...)`: expected the same numbers of labels for all strategies, got "
                    f"{first.labels.tolist()} for {first_name} and {curves.labels.tolist()} for {name}; leave one out"
                )
        if not self.targets and self.baseline_final is not None:
            object.__setattr__(self, "targets", (self.baseline_final,))

    @property
    def labels(self) -> Array:
        """The numbers of labels, of shape (T,)."""
        return next(iter(self.curves.values())).labels

    @property
    def baseline_final(self) -> float | None:
        """The baseline's mean in the last cycle; None if it has no finished run."""
        return float(self.curves[self.baseline].values[:, -1].mean()) if self.baseline in self.curves else None

    @property
    def references(self) -> list[str]:
        """The strategies to compare with that have finished runs, the baseline first."""
        return [name for name in dict.fromkeys((self.baseline, *self.against)) if name in self.curves]

    @property
    def common_seeds(self) -> list[int]:
        """The seeds for which every strategy has a finished run, ascending."""
        return sorted(set.intersection(*(set(curves.seeds) for curves in self.curves.values())))

    def best_first(self) -> list[str]:
        """Return the strategies by mean area, over the common seeds if there are any; those of mean NaN come last."""
        seeds, sign = self.common_seeds, 1 if self.lower_is_better else -1
        means = {name: (curves.select(seeds) if seeds else curves).areas.mean() for name, curves in self.curves.items()}
        return sorted(means, key=lambda name: (math.isnan(means[name]), sign * means[name]))

    def differences(self, reference: str) -> dict[str, PairedDifference]:
        """Compare areas with those of `reference` over the common seeds, best first; p-values adjusted by Holm."""
        seeds = self.common_seeds
        if not seeds:
            return {}
        reference_areas = self.curves[reference].select(seeds).areas
        differences = {
            name: paired_difference(self.curves[name].select(seeds).areas, reference_areas)
            for name in self.best_first()
            if name != reference
        }
        adjusted = holm([difference.p_value for difference in differences.values()])
        return {
            name: replace(difference, p_value=p_value)
            for (name, difference), p_value in zip(differences.items(), adjusted, strict=True)
        }

    def labels_needed(self, target: float) -> dict[str, Array]:
        """Return how many labels each run of each strategy needs to reach a target; infinity if it never does."""
        return {
            name: labels_to_target(curves.labels, curves.values, target, lower_is_better=self.lower_is_better)
            for name, curves in self.curves.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers in types that JSON has; numbers that are not finite become None."""
        strategies = {}
        for name, curves in self.curves.items():
            mean, sd = mean_and_sd(curves.values)
            area_mean, area_sd = mean_and_sd(curves.areas)
            strategies[name] = {
                "seeds": list(curves.seeds),
                "values": curves.values.tolist(),
                "mean": mean.tolist(),
                "sd": sd.tolist(),
                "areas": curves.areas.tolist(),
                "area_mean": float(area_mean),
                "area_sd": float(area_sd),
                "fit_seconds": curves.fit_seconds.tolist(),
                "query_seconds": curves.query_seconds.tolist(),
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
        finite: dict[str, Any] = _replace_nonfinite(numbers)
        return finite


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _replace_nonfinite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_replace_nonfinite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
