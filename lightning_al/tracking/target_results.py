"""Format how many labels the targets of a run took."""

from collections.abc import Mapping, Sequence

from lightning_al.analysis.run_summary import summarize_run
from lightning_al.storage.cycles_table import CycleRecord, metric_names


def format_target_results(records: Sequence[CycleRecord], target: Mapping[str, float]) -> list[str]:
    """Return a sentence for each target, with the number of labels it took.

    Args:
        records: One per finished cycle.
        target: Values of test metrics to reach.

    """
    summary = summarize_run(records, target)
    sentences = []
    for name, value in target.items():
        needed = summary.get(f"labels_to/{name}")
        curve = [record.metrics[name] for record in records if name in record.metrics]
        if not curve:
            available = ", ".join(metric_names(records)) or "none"
            sentences.append(f"The target of {name} names no test metric; there is {available}.")
        elif needed is None:
            sentences.append(f"{name} does not reach {value:g}; its last value is {curve[-1]:.4g}.")
        else:
            sentences.append(f"{name} reaches {value:g} with {needed:.0f} labels.")
    return sentences
