"""Groups of runs that differ only in the seed, and the comparison of groups."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import read_curves
from lightning_al.report.runs import ReportedRun
from lightning_al.storage.cycles_table import metric_names
from lightning_al.storage.run_folder import RunRefusedError
from lightning_al.storage.settings import RESUMABLE_SETTINGS, flatten, may_change

SEEDS = ("seed_everything", "data.seed")
MAX_SETTINGS = 3  # in the name of a group, whose legend entry has to stay readable
MAX_CHARACTERS = 60  # of these settings


@dataclass(frozen=True)
class Group:
    """Runs of one strategy with the same settings.

    Attributes:
        name: The strategy; with the distinguishing settings where another group has the same strategy.
        runs: By ascending seed.

    """

    name: str
    runs: Sequence[ReportedRun]

    @property
    def labels(self) -> tuple[float, ...]:
        """The numbers of labels of the longest run."""
        return max((_labels(run) for run in self.runs), key=len)

    @property
    def complete(self) -> dict[int, ReportedRun]:
        """The runs with as many cycles as the longest one, by seed."""
        return {run.seed or 0: run for run in self.runs if _labels(run) == self.labels}

    @property
    def incomplete(self) -> list[ReportedRun]:
        """The runs with fewer cycles than the longest one."""
        return [run for run in self.runs if _labels(run) != self.labels]


def group_runs(runs: Sequence[ReportedRun]) -> list[Group]:
    """Group runs that differ only in the seed.

    Args:
        runs: Any runs.

    Returns:
        Groups with distinct names, in the order of their first runs. Runs of one comparison are grouped by their
        folder. Runs of the same settings and seed are groups of one, named after their folders.

    """
    by_settings: dict[tuple[str, str], list[ReportedRun]] = {}
    for run in runs:
        key = str(run.path.resolve().parent) if run.compared else repr(sorted(_settings(run).items()))
        by_settings.setdefault((run.strategy, key), []).append(run)
    groups: list[Group] = []
    for (strategy, _), members in by_settings.items():
        same_strategy = [runs[0] for (name, _), runs in by_settings.items() if name == strategy]
        name = strategy
        if len(same_strategy) > 1:
            name += f" ({_distinguishing_settings(members[0], same_strategy)})"
        seeds = [run.seed for run in members]
        if len(set(seeds)) == len(seeds):
            groups.append(Group(name, sorted(members, key=lambda run: run.seed or 0)))
        else:
            groups += [Group(f"{name} in {run.path.name}", [run]) for run in members]
    return groups


def choose_metric(runs: Sequence[ReportedRun], requested: str | None) -> tuple[str, bool]:
    """Choose the metric of the learning curves.

    Args:
        runs: At least one.
        requested: A test metric; by default the first one that all runs have, a loss only if there is nothing else.

    Returns:
        Its name, and whether the name is that of an error or a loss, so that lower is better.

    Raises:
        RunRefusedError: If not all runs have it.

    """
    common = [name for name in metric_names(runs[0].records) if all(name in metric_names(run.records) for run in runs)]
    if requested is not None and requested not in common:
        raise RunRefusedError(
            f"--metric {requested}: not every run has it; all have {', '.join(common) or 'no test metric'}."
        )
    if not common:
        raise RunRefusedError(
            "The runs have no test metric in common, so there is no learning curve: give the datamodule a "
            "`test_dataloader` and the module a `test_step` that logs, or report the runs one by one."
        )
    metric = requested or next((name for name in common if not _is_cost(name)), common[0])
    return metric, _is_cost(metric)


def compare_groups(
    groups: Sequence[Group], metric: str, baseline: str | None, lower_is_better: bool, targets: Sequence[float]
) -> tuple[Comparison | None, list[Group]]:
    """Compare the groups that have the same numbers of labels, which grow from cycle to cycle.

    Args:
        groups: At least one.
        metric: A test metric of all runs.
        baseline: The group to compare with; by default the first whose name begins with `random`.
        lower_is_better: Whether the metric is an error.
        targets: Values of the metric for which to report the labels needed.

    Returns:
        The comparison, over the numbers of labels that most runs have, and the groups left out of it; None if no run
        has labels that grow.

    Raises:
        RunRefusedError: If there is no group of the baseline's name.

    """
    if baseline is not None and baseline not in {group.name for group in groups}:
        raise RunRefusedError(f"--baseline {baseline}: there is {', '.join(group.name for group in groups)}.")
    grown = [group for group in groups if list(group.labels) == sorted(set(group.labels))]
    runs_by_labels = Counter(group.labels for group in grown for _ in group.complete)
    if not runs_by_labels:
        return None, list(groups)
    labels = max(runs_by_labels, key=lambda labels: (runs_by_labels[labels], len(labels)))
    compared = [group for group in groups if group.labels == labels]
    curves = {
        group.name: read_curves({seed: run.path for seed, run in group.complete.items()}, metric) for group in compared
    }
    if baseline is None:
        baseline = next(
            (name for name in curves if name.lower().startswith("random") and "subset" not in name.lower()), ""
        )
    comparison = Comparison(curves, metric, baseline, targets=tuple(targets), lower_is_better=lower_is_better)
    return comparison, [group for group in groups if group not in compared]


def _labels(run: ReportedRun) -> tuple[float, ...]:
    return tuple(float(record.labeled) for record in run.records)


def _settings(run: ReportedRun) -> dict[str, Any]:
    settings = (run.completion.settings if run.completion else None) or run.config
    return {
        name: value for name, value in flatten(settings).items() if not may_change(name, (*RESUMABLE_SETTINGS, *SEEDS))
    }


def _distinguishing_settings(run: ReportedRun, same_strategy: Sequence[ReportedRun]) -> str:
    """Return the settings in which a run differs from others of its strategy, or else the name of its folder."""
    settings = _settings(run)
    others = [_settings(other) for other in same_strategy]
    differing = [name for name, value in settings.items() if any(other.get(name, value) != value for other in others)]
    named = ", ".join(f"{name.rpartition('.')[2]}={settings[name]}" for name in differing[:MAX_SETTINGS])
    if len(named) > MAX_CHARACTERS:
        named = f"{named[: MAX_CHARACTERS - 1]}…"
    return named or run.path.resolve().parent.name


def _is_cost(name: str) -> bool:
    return any(word in name.lower() for word in ("loss", "error", "mae", "mse", "perplexity"))
