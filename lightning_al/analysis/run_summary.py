"""What all cycles of a run were worth, and what they cost."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_al.analysis.learning_curves import area, labels_to_target
from lightning_al.storage.cycles_table import SECONDS, Record, metrics_of


def summary_of(records: Sequence[Record], target: Mapping[str, float]) -> dict[str, float]:
    """Sum up finished cycles.

    Args:
        records: One per finished cycle, as in `cycles.csv`, at least one.
        target: Values of metrics that are to be reached; a curve that begins above its value has to fall to it.

    Returns:
        By name: `area/<metric>`, the mean of the curve over the label axis; `labels_to/<metric>`, how many labels it
        takes to reach the target, left out while it is not reached; `total/<part>_seconds`.

    Example:
        >>> costs = {"queried": 10, "fit_seconds": 2.0, "score_seconds": 1.0, "select_seconds": 0.0}
        >>> curve = [(10, 0.5), (20, 0.75)]
        >>> records = [{"cycle": cycle, "labeled": n, "acc": acc, **costs} for cycle, (n, acc) in enumerate(curve)]
        >>> summary = summary_of(records, {"acc": 0.625})
        >>> summary["area/acc"], summary["labels_to/acc"], summary["total/fit_seconds"]
        (0.625, 15.0, 4.0)

    """
    labels = np.array([record["labeled"] for record in records], dtype=np.float64)
    summary: dict[str, float] = {}
    for name in metrics_of(records):
        values = np.array([record[name] for record in records], dtype=np.float64)
        summary[f"area/{name}"] = float(area(labels, values))
        if name in target:
            falls = bool(values[0] > target[name])
            needed = float(labels_to_target(labels, values[None], target[name], lower_is_better=falls)[0])
            if np.isfinite(needed):
                summary[f"labels_to/{name}"] = needed
    return summary | {f"total/{part}": float(sum(record[part] for record in records)) for part in SECONDS}
