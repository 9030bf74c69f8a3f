"""The tracker of Weights & Biases: one run for all cycles, pictures of the picks, scores, summaries."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from lightning_al.analysis.run_summary import summarize_run
from lightning_al.data.media import Sound
from lightning_al.storage.cycles_table import CycleRecord
from lightning_al.storage.run_folder import RunFolder
from lightning_al.storage.tracking_notes import read_notes, update_notes
from lightning_al.tracking.query_summary import PickedSample, QuerySummary
from lightning_al.tracking.tracker import tracker_for

if TYPE_CHECKING:
    from wandb import Table

COLUMNS: list[str | int] = ["index", "cycle", "rank", "score", "predicted", "label", "sample"]
# How far the steps of a continued offline run start after those of the process before: more than a process logs.
STEPS_PER_PROCESS = 10_000_000
# Bins of the histogram of scores.
BINS = 30
# The key of the run's id in `tracking.json`.
NOTE = "wandb"


def run_id(run_dir: str | Path, *, fresh: bool = False) -> str:
    """Return the Weights & Biases id of the run in a folder, or a new id if it has none yet.

    A continued run then continues the same curves. `lightning-al fit` uses it automatically.

    Args:
        run_dir: The run folder.
        fresh: Return a new id in any case, for a run that is overwritten.

    Returns:
        The id: eight letters and digits.

    Example:
        >>> logger = WandbLogger(project="al", offline=True, id=run_id(getfixture("tmp_path")))
        >>> len(logger.version)
        8

    """
    stored_id = None if fresh else read_notes(RunFolder(Path(run_dir)).notes_file).logger_runs.get(NOTE, {}).get("id")
    return str(stored_id or secrets.token_hex(4))


class WandbTracker:
    """The tracker of Weights & Biases: one run for all cycles, pictures of the picks, scores, summaries.

    Args:
        logger: The logger.

    """

    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger

    def begin_run(self, folder: RunFolder, config: Mapping[str, Any], target: Mapping[str, float]) -> None:
        """Write the settings into the run's config, and start after the steps of an earlier process."""
        from lightning_al import __version__

        run = self._logger.experiment
        notes = read_notes(folder.notes_file).logger_runs
        note = notes.get(NOTE, {})
        processes = int(note.get("processes", 0)) if note.get("id") == run.id else 0
        update_notes(folder.notes_file, logger_runs={**notes, NOTE: {"id": run.id, "processes": processes + 1}})
        about = {"config": dict(config), "target": dict(target), "version": __version__}
        run.config.update({"lightning_al": about}, allow_val_change=True)
        run.define_metric("al/labeled")
        run.define_metric("al/*", step_metric="al/labeled")
        if processes and run.offline:
            # The last step of an earlier process is unknown, and points at steps that exist already would be lost when
            # both are synchronized. Charts have other axes.
            run.log({"al/process": processes}, step=processes * STEPS_PER_PROCESS)

    def log_metrics(self, metrics: Mapping[str, float], labeled: int) -> None:
        """Log numbers over the number of labels, which is the axis of their curves."""
        run = self._logger.experiment
        run.define_metric("al/*", step_metric="al/labeled")  # a trainer of one fit has no `begin_run`
        run.log({**metrics, "al/labeled": labeled})

    def log_query(self, summary: QuerySummary) -> None:
        """Log a table of the picks with their pictures, and the scores of the picks against those of all candidates."""
        entries: dict[str, Any] = {"al/labeled": summary.labeled_before}
        if summary.picks:
            entries["al/picked"] = _table(summary.picks, summary.pool.cycle - 1)
        if summary.candidate_scores is not None and summary.labeling.scores:
            entries["al/scores"] = _histogram(summary.candidate_scores.double().numpy(), summary.labeling.scores)
        if len(entries) > 1:
            self._logger.experiment.log(entries)

    def log_cycles(self, records: Sequence[CycleRecord], folder: RunFolder, target: Mapping[str, float]) -> None:
        """Write the summary of all cycles, and the pool as a version of an artifact."""
        import wandb

        run, cycle = self._logger.experiment, records[-1].cycle
        for name, value in summarize_run(records, target).items():
            run.summary[f"al/{name}"] = value
        if folder.pool_file.exists() and not run.disabled:
            artifact = wandb.Artifact(f"pool-{run.id}", type="pool", metadata={"cycle": cycle})
            artifact.add_file(str(folder.pool_file))
            run.log_artifact(artifact, aliases=["latest", f"cycle-{cycle}"])


@tracker_for.register
def _(logger: WandbLogger) -> WandbTracker:
    return WandbTracker(logger)


def _table(picks: Sequence[PickedSample], cycle: int) -> "Table":
    import wandb

    rows = [[pick.index, cycle, pick.rank, pick.score, pick.predicted, pick.label, _media(pick)] for pick in picks]
    return wandb.Table(columns=COLUMNS, data=rows)


def _media(pick: PickedSample) -> Any:
    import wandb

    if pick.media is None or isinstance(pick.media, str):
        return pick.media
    caption = f"{pick.index}: {'?' if pick.label is None else pick.label}, predicted {pick.predicted}"
    if isinstance(pick.media, Sound):
        return wandb.Audio(pick.media.values.T, sample_rate=pick.media.rate, caption=caption)
    return wandb.Image(pick.media, caption=caption)


def _histogram(pool: np.ndarray[Any, np.dtype[np.float64]], picked: Sequence[float]) -> Any:
    """Return a chart of the shares of all candidates and of the picks in the same bins."""
    import wandb

    finite = pool[np.isfinite(pool)]
    edges = np.histogram_bin_edges(finite, BINS)
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    shares = [
        (np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(len(values), 1)).tolist()
        for values in (finite, np.asarray(picked))
    ]
    return wandb.plot.line_series(middles, shares, ["candidates", "picks"], "Scores of candidates and picks", "score")
