"""Summary metrics of a run: areas, labels to a target, total seconds."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_al.analysis.learning_curves import area, labels_to_target
from lightning_al.storage.cycles_table import SECONDS, CycleRecord, metric_names


def summarize_run(records: Sequence[CycleRecord], target: Mapping[str, float]) -> dict[str, float]:
    """Summarize the finished cycles of a run.

    Args:
        records: One per finished cycle, as in `cycles.csv`, at least one.
        target: Target values by metric; a curve that begins above its target has to fall to it.

    Returns:
        Numbers by name: `area/<metric>`, the mean of the curve over the label axis; `labels_to/<metric>`, the number of
        labels at which it reaches the target, left out while it does not; `total/<part>_seconds`. Where the labels of a
        cycle are not more than those of the one before, as after fits of 0 epochs, there is no curve but the totals.

    Example:
        >>> records = [
        ...     CycleRecord(0, 10, 10, fit_seconds=2.0, score_seconds=1.0, select_seconds=0.0, metrics={"acc": 0.5}),
        ...     CycleRecord(1, 20, 10, fit_seconds=2.0, score_seconds=1.0, select_seconds=0.0, metrics={"acc": 0.75}),
        ... ]
        >>> summary = summarize_run(records, {"acc": 0.625})
        >>> summary["area/acc"], summary["labels_to/acc"], summary["total/fit_seconds"]
        (0.625, 15.0, 4.0)

    """
    labels = np.array([record.labeled for record in records], dtype=np.float64)
    summary: dict[str, float] = {}
    for name in metric_names(records) if bool((np.diff(labels) > 0).all()) else ():
        values = np.array([record.metrics[name] for record in records], dtype=np.float64)
        summary[f"area/{name}"] = float(area(labels, values))
        if name in target:
            falls = bool(values[0] > target[name])
            needed = float(labels_to_target(labels, values[None], target[name], lower_is_better=falls)[0])
            if np.isfinite(needed):
                summary[f"labels_to/{name}"] = needed
    return summary | {f"total/{part}": float(sum(getattr(record, part) for record in records)) for part in SECONDS}
