"""Runs that differ in nothing but the seed, and which of them can be compared."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import read_curves
from lightning_al.report.runs import ReportedRun
from lightning_al.storage.cycles_table import metrics_of
from lightning_al.storage.run_folder import RunRefusedError
from lightning_al.storage.settings import FREE_SETTINGS, flatten, is_free

SEEDS = ("seed_everything", "data.seed")
MOST_NAMED = 3  # settings that tell groups of one name apart
LONGEST_NAME = 60  # characters of these


@dataclass(frozen=True)
class Group:
    """Runs of one strategy with the same settings.

    Attributes:
        name: The strategy, with settings behind it where another group has the same.
        runs: By seed.

    """

    name: str
    runs: Sequence[ReportedRun]

    @property
    def labels(self) -> tuple[float, ...]:
        """The numbers of labels of the longest run."""
        return max((_labels(run) for run in self.runs), key=len)

    @property
    def complete(self) -> dict[int, ReportedRun]:
        """The runs that got as far as the longest one, by seed."""
        return {run.seed or 0: run for run in self.runs if _labels(run) == self.labels}

    @property
    def incomplete(self) -> list[ReportedRun]:
        """The others."""
        return [run for run in self.runs if _labels(run) != self.labels]


def group_runs(runs: Sequence[ReportedRun]) -> list[Group]:
    """Put runs together that differ in the seed only.

    Args:
        runs: Any runs.

    Returns:
        Groups with names of their own, in the order of their first runs. Runs of a comparison belong together by their
        folder. Runs of the same settings and seed are groups of one, named after their folders.

    """
    by_settings: dict[tuple[str, str], list[ReportedRun]] = {}
    for run in runs:
        key = str(run.path.resolve().parent) if run.compared else repr(sorted(_settings(run).items()))
        by_settings.setdefault((run.strategy, key), []).append(run)
    groups: list[Group] = []
    for (strategy, _), alike in by_settings.items():
        several = Counter(name for name, _ in by_settings)[strategy] > 1
        name = f"{strategy} ({_told_apart(alike[0], strategy, by_settings)})" if several else strategy
        seeds = [run.seed for run in alike]
        if len(set(seeds)) == len(seeds):
            groups.append(Group(name, sorted(alike, key=lambda run: run.seed or 0)))
        else:
            groups += [Group(f"{name} in {run.path.name}", [run]) for run in alike]
    return groups


def choose_metric(runs: Sequence[ReportedRun], asked: str | None) -> tuple[str, bool]:
    """Choose what the learning curves show.

    Args:
        runs: At least one.
        asked: A test metric; by default the first one that all runs have, a loss only if there is nothing else.

    Returns:
        Its name, and whether it looks like something to bring down.

    Raises:
        RunRefusedError: If not all runs have it.

    """
    common = [name for name in metrics_of(runs[0].records) if all(name in metrics_of(run.records) for run in runs)]
    if asked is not None and asked not in common:
        raise RunRefusedError(
            f"--metric {asked}: not every run has it; all have {', '.join(common) or 'no test metric'}."
        )
    if not common:
        raise RunRefusedError(
            "The runs have no test metric in common, so there is no learning curve: give the datamodule a "
            "`test_dataloader` and the module a `test_step` that logs, or report the runs one by one."
        )
    chosen = asked or next((name for name in common if not _is_cost(name)), common[0])
    return chosen, _is_cost(chosen)


def compare_groups(
    groups: Sequence[Group], metric: str, baseline: str | None, lower_is_better: bool, targets: Sequence[float]
) -> tuple[Comparison, list[Group]]:
    """Compare the groups that have the same numbers of labels.

    Args:
        groups: At least one.
        metric: What the curves show.
        baseline: The group to compare with; by default the one whose strategy draws at random.
        lower_is_better: Whether the metric is an error.
        targets: Values whose cost in labels is asked for.

    Returns:
        The comparison, over the numbers of labels that most runs have, and the groups left out of it.

    Raises:
        RunRefusedError: If there is no group of the baseline's name.

    """
    if baseline is not None and baseline not in {group.name for group in groups}:
        raise RunRefusedError(f"--baseline {baseline}: there is {', '.join(group.name for group in groups)}.")
    axes = Counter(group.labels for group in groups for _ in group.complete)
    axis = max(axes, key=lambda labels: (axes[labels], len(labels)))
    chosen = [group for group in groups if group.labels == axis]
    curves = {
        group.name: read_curves({seed: run.path for seed, run in group.complete.items()}, metric) for group in chosen
    }
    if baseline is None:
        baseline = next(
            (name for name in curves if name.lower().startswith("random") and "subset" not in name.lower()), ""
        )
    comparison = Comparison(curves, metric, baseline, targets=tuple(targets), lower_is_better=lower_is_better)
    return comparison, [group for group in groups if group not in chosen]


def _labels(run: ReportedRun) -> tuple[float, ...]:
    return tuple(float(record["labeled"]) for record in run.records)


def _settings(run: ReportedRun) -> dict[str, Any]:
    settings = run.marker.get("settings") or run.config
    return {name: value for name, value in flatten(settings).items() if not is_free(name, (*FREE_SETTINGS, *SEEDS))}


def _told_apart(run: ReportedRun, strategy: str, by_settings: dict[tuple[str, str], list[ReportedRun]]) -> str:
    """Return the settings in which a group differs from others of its strategy, or its folder."""
    own = _settings(run)
    others = [_settings(alike[0]) for (name, _), alike in by_settings.items() if name == strategy]
    differing = [name for name in own if any(other.get(name, own[name]) != own[name] for other in others)]
    named = ", ".join(f"{name.rpartition('.')[2]}={own[name]}" for name in differing[:MOST_NAMED])
    return (named if len(named) <= LONGEST_NAME else f"{named[: LONGEST_NAME - 1]}…") or run.path.resolve().parent.name


def _is_cost(name: str) -> bool:
    return any(word in name.lower() for word in ("loss", "error", "mae", "mse", "perplexity"))
