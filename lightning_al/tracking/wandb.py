"""What Weights & Biases shows beyond numbers: one run for all cycles, pictures of the picks, scores, summaries."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from lightning_al.analysis.run_summary import summary_of
from lightning_al.data.media import Sound
from lightning_al.storage.cycles_table import Record
from lightning_al.storage.run_folder import RunFolder
from lightning_al.tracking.query_summary import Outcome, Picked

if TYPE_CHECKING:
    from wandb import Table

COLUMNS: list[str | int] = ["index", "cycle", "rank", "score", "predicted", "label", "sample"]
STEPS_PER_PROCESS = 10_000_000
BINS = 30
NOTE = "wandb"  # under this name the run folder remembers the run


def run_id(run_dir: str | Path, *, fresh: bool = False) -> str:
    """Return the id under which the run in a folder is kept by Weights & Biases, a new one if there is none yet.

    A continued run then goes on in the same curves. `lightning-al fit` does this by itself.

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
    known = None if fresh else RunFolder(Path(run_dir)).read_notes().get(NOTE, {}).get("id")
    return str(known or secrets.token_hex(4))


def begin(logger: WandbLogger, folder: RunFolder, config: Mapping[str, Any], target: Mapping[str, float]) -> None:
    """Tell a run what it is about, when a process begins with its cycles.

    Args:
        logger: The logger.
        folder: The run folder, which remembers the run.
        config: The settings of all cycles.
        target: Values of metrics that are to be reached.

    """
    from lightning_al import __version__

    run = logger.experiment
    note = folder.read_notes().get(NOTE, {})
    processes = note.get("processes", 0) if note.get("id") == run.id else 0
    folder.write_note(NOTE, {"id": run.id, "processes": processes + 1})
    about = {"config": dict(config), "target": dict(target), "version": __version__}
    run.config.update({"lightning_al": about}, allow_val_change=True)
    run.define_metric("al/labeled")
    run.define_metric("al/*", step_metric="al/labeled")
    if processes and run.offline:
        # It cannot know how far an earlier process got, and points with steps that were there already would be lost
        # when both are synchronized; the axes that people see are others.
        run.log({"al/process": processes}, step=processes * STEPS_PER_PROCESS)


def log_at(logger: WandbLogger, metrics: Mapping[str, float], labeled: int) -> None:
    """Log numbers at a number of labeled samples.

    Args:
        logger: The logger.
        metrics: Names and values.
        labeled: How many samples the cycle trained on.

    """
    logger.experiment.define_metric("al/*", step_metric="al/labeled")  # a trainer of one fit has no `begin`
    logger.experiment.log({**metrics, "al/labeled": labeled})


def log_outcome(logger: WandbLogger, outcome: Outcome) -> None:
    """Log a table of the picks with their pictures, and the scores of the picks against those of all candidates.

    Args:
        logger: The logger.
        outcome: What the query did.

    """
    labeled = outcome.pool.num_labeled - len(outcome.pool.history[-1].indices)
    shown: dict[str, Any] = {"al/labeled": labeled}
    if outcome.shown:
        shown["al/picked"] = _table(outcome.shown, outcome.pool.cycle - 1)
    if outcome.scores is not None and outcome.pool.history[-1].scores:
        shown["al/scores"] = _histogram(outcome.scores.double().numpy(), outcome.pool.history[-1].scores)
    if len(shown) > 1:
        logger.experiment.log(shown)


def log_records(logger: WandbLogger, records: Sequence[Record], folder: RunFolder, target: Mapping[str, float]) -> None:
    """Sum up all cycles so far, and keep the pool as a version of an artifact.

    Args:
        logger: The logger.
        records: One per finished cycle.
        folder: The run folder.
        target: Values of metrics that are to be reached.

    """
    import wandb

    run = logger.experiment
    for name, value in summary_of(records, target).items():
        run.summary[f"al/{name}"] = value
    if folder.pool_file.exists() and not run.disabled:
        artifact = wandb.Artifact(f"pool-{run.id}", type="pool", metadata={"cycle": records[-1]["cycle"]})
        artifact.add_file(str(folder.pool_file))
        run.log_artifact(artifact, aliases=["latest", f"cycle-{records[-1]['cycle']}"])


def _table(shown: Sequence[Picked], cycle: int) -> "Table":
    import wandb

    rows = [[pick.index, cycle, pick.rank, pick.score, pick.predicted, pick.label, _media(pick)] for pick in shown]
    return wandb.Table(columns=COLUMNS, data=rows)


def _media(pick: Picked) -> Any:
    import wandb

    if pick.media is None or isinstance(pick.media, str):
        return pick.media
    said = f"{pick.index}: {'?' if pick.label is None else pick.label}, predicted {pick.predicted}"
    if isinstance(pick.media, Sound):
        return wandb.Audio(pick.media.values.T, sample_rate=pick.media.rate, caption=said)
    return wandb.Image(pick.media, caption=said)


def _histogram(pool: np.ndarray[Any, np.dtype[np.float64]], picked: Sequence[float]) -> Any:
    """Draw the shares of all candidates and of the picks over the same bins."""
    import wandb

    finite = pool[np.isfinite(pool)]
    edges = np.histogram_bin_edges(finite, BINS)
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    shares = [
        (np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(len(values), 1)).tolist()
        for values in (finite, np.asarray(picked))
    ]
    return wandb.plot.line_series(middles, shares, ["candidates", "picks"], "Scores of candidates and picks", "score")
