"""The tables of a comparison as Markdown."""

import math
from collections.abc import Sequence

import numpy as np

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import Array, mean_and_sd
from lightning_al.analysis.paired_tests import PairedDifference
from lightning_al.report.tables import format_count, format_markdown_table, format_mean, format_p_value

MAX_CYCLES = 8  # columns of the table of learning curves, which fits a wide terminal


def comparison_to_markdown(comparison: Comparison) -> str:
    """Format a comparison as Markdown tables that are readable as plain text, too.

    Args:
        comparison: Of at least one strategy.

    Returns:
        A heading and the sections learning curves, paired differences to each reference, labels needed and seconds.

    """
    count = len(comparison.curves)
    title = f"# {comparison.metric} of {format_count(count, 'strategy', 'strategies')}"
    parts = [title, _seeds_sentence(comparison), *_curve_section(comparison)]
    if comparison.baseline not in comparison.curves and count > 1:
        parts.append(f"No paired differences to the baseline {comparison.baseline}: it has no finished run.")
    for reference in comparison.references:
        parts += _difference_section(comparison, reference)
    return "\n\n".join([*parts, *_target_section(comparison), *_seconds_section(comparison)]) + "\n"


def _seeds_sentence(comparison: Comparison) -> str:
    seeds = {name: curves.seeds for name, curves in comparison.curves.items()}
    common = comparison.common_seeds
    if all(len(finished) == len(common) for finished in seeds.values()):
        return f"Seeds: {_format_seeds(common)}, the same for every strategy."
    counts = ", ".join(f"{name} {len(finished)}" for name, finished in seeds.items())
    return (
        f"Finished seeds per strategy: {counts}. Means are over all of a strategy's seeds; paired differences over "
        f"the {len(common)} that all have{f' ({_format_seeds(common)})' if common else ''}."
    )


def _curve_section(comparison: Comparison) -> list[str]:
    columns = _evenly_spaced(len(comparison.labels), MAX_CYCLES)
    header = ["strategy", *(f"{comparison.labels[column]:g} labels" for column in columns), "area"]
    decimals = _decimals(comparison)
    rows = [
        [name, *_mean_cells(curves.values[:, columns], decimals), *_mean_cells(curves.areas[:, None], decimals)]
        for name, curves in comparison.curves.items()
    ]
    better = "lower" if comparison.lower_is_better else "higher"
    return [
        "## Learning curves",
        f"Mean ± standard deviation over seeds ({better} is better). Area: the mean of the curve over the label "
        "axis (trapezoid rule).",
        format_markdown_table(header, rows),
    ]


def _difference_section(comparison: Comparison, reference: str) -> list[str]:
    differences = comparison.differences(reference)
    if not differences:
        return []
    better = "negative" if comparison.lower_is_better else "positive"
    pairs = next(iter(differences.values())).pairs
    decimals = _decimals(comparison) + 1
    rows = [[name, *_difference_cells(difference, decimals)] for name, difference in differences.items()]
    return [
        f"## Area minus that of {reference}",
        f"Paired over {format_count(pairs, 'seed')}, best first; {better} is better than {reference}. p: paired "
        f"t-test, adjusted for {format_count(len(differences), 'comparison')} (Holm).",
        format_markdown_table(["strategy", "difference", "95 % interval", "p"], rows),
    ]


def _target_section(comparison: Comparison) -> list[str]:
    targets = comparison.targets
    if not targets:
        return []
    needed = [comparison.labels_needed(target) for target in targets]
    header = ["strategy", *(f"{comparison.metric} {target:.4g}" for target in targets)]
    rows = [
        [name, *(_needed_cell(labels[name], comparison.labels[0]) for labels in needed)] for name in comparison.curves
    ]
    is_default = targets == (comparison.baseline_final,)
    origin = f" ({targets[0]:.4g} is {comparison.baseline}'s last mean)" if is_default else ""
    return [
        "## Labels needed",
        f"Median over seeds of the number of labels at which a run's curve first reaches the value{origin}.",
        format_markdown_table(header, rows),
    ]


def _seconds_section(comparison: Comparison) -> list[str]:
    rows = []
    for name, curves in comparison.curves.items():
        query = curves.mean_query_seconds
        rows.append([name, f"{curves.fit_seconds.mean():.2f}", "-" if math.isnan(query) else f"{query:.2f}"])
    table = format_markdown_table(["strategy", "fit", "score and select"], rows)
    return ["## Seconds per cycle", "Mean over cycles and seeds.", table]


def _decimals(comparison: Comparison) -> int:
    """Return how many decimals give three digits of the largest value, so 3 for a share and 1 for percents."""
    values = np.concatenate([curves.values.ravel() for curves in comparison.curves.values()])
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    return min(8, max(0, 3 - math.ceil(math.log10(largest)))) if largest else 3


def _evenly_spaced(count: int, limit: int) -> list[int]:
    """Return at most `limit` of `count` positions, evenly spaced, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return [round(position * (count - 1) / (limit - 1)) for position in range(limit)]


def _mean_cells(values: Array, decimals: int) -> list[str]:
    means, sds = (part.tolist() for part in mean_and_sd(values))
    return [format_mean(mean, sd, decimals) for mean, sd in zip(means, sds, strict=True)]


def _difference_cells(difference: PairedDifference, decimals: int) -> list[str]:
    mean, low, high = (f"{number:+.{decimals}f}" for number in (difference.mean, difference.low, difference.high))
    interval = "-" if math.isnan(difference.low) else f"{low} to {high}"
    return [mean, interval, format_p_value(difference.p_value)]


def _needed_cell(needed: Array, first: float) -> str:
    missed = int(np.isinf(needed).sum())
    median = float(np.median(needed))  # of an even number of runs infinite if one of the middle two is
    text = "not reached" if math.isinf(median) else f"{'≤ ' if median <= first else ''}{median:.0f}"
    return text + (f" ({missed} of {len(needed)} never)" if missed else "")


def _format_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
