"""One cycle: a fit that ends in a query, then a test."""

import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_al.acquisition.query_options import QueryOptions
from lightning_al.cycles.termination import TERMINATED, kill_spawned
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.storage.cycles_table import BOOKKEEPING, CycleRecord


def run_cycle(
    trainer: Trainer,
    model: LightningModule,
    datamodule: ActiveLearningDataModule,
    cycle: int,
    options: QueryOptions,
    checkpoint: Path | None = None,
) -> CycleRecord:
    """Fit, query and test.

    Args:
        trainer: A fresh trainer with an acquisition callback.
        model: A fresh model, with the weights that the cycle starts from.
        datamodule: Set to this cycle.
        cycle: The number of the cycle.
        options: Which weights are tested, and whether their checkpoint is trusted.
        checkpoint: The checkpoint that the fit continues from; None fits from the start.

    Returns:
        The record of the cycle. Seconds of a query that an earlier process made are not taken off this fit.

    Raises:
        SystemExit: With status 143 if the process was asked to end (SIGTERM); the run folder is complete.

    """
    was_queried = datamodule.is_queried(cycle)
    started = time.perf_counter()
    try:
        trainer.fit(model, datamodule, ckpt_path=checkpoint, weights_only=not options.trust_checkpoints)
    except SIGTERMException as termination:
        # without it the process would end with status 0, as if the run were finished
        raise SystemExit(TERMINATED) from termination
    except BaseException:
        kill_spawned(trainer)
        raise
    fit_seconds = time.perf_counter() - started
    datamodule.reload_pool()  # where the fit ran in processes of its own, the labels came back through the file
    if was_queried:
        datamodule.save_pool()  # an error may have come between the query and its file, in this process
    options.load_weights("run_cycles", trainer, model)
    metrics = _test(trainer, model, datamodule)
    labelings = datamodule.pool.history
    query = labelings[cycle + 1] if len(labelings) > cycle + 1 else None
    seconds = query.seconds if query else {}
    score_seconds, select_seconds, track_seconds = (seconds.get(name, 0.0) for name in ("score", "select", "track"))
    query_seconds = 0.0 if was_queried else score_seconds + select_seconds + track_seconds
    return CycleRecord(
        cycle=cycle,
        labeled=len(datamodule.pool.labeled_by(cycle)),
        queried=len(query) if query else 0,
        metrics=metrics,
        fit_seconds=max(fit_seconds - query_seconds, 0.0),
        score_seconds=score_seconds,
        select_seconds=select_seconds,
        track_seconds=track_seconds,
    )


def _test(trainer: Trainer, model: LightningModule, datamodule: ActiveLearningDataModule) -> dict[str, float]:
    """Return the test metrics of all test loaders; Lightning marks those of several by the number of the loader."""
    if not (is_overridden("test_dataloader", datamodule) and is_overridden("test_step", model)):
        return {}
    results = trainer.test(model, datamodule=datamodule, verbose=False)
    metrics = {name: float(value) for result in results for name, value in result.items()}
    # a metric with the name of another column gets a prefix
    return {f"test/{name}" if name in BOOKKEEPING else name: value for name, value in metrics.items()}
