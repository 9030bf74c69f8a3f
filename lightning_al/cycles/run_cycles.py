"""The loop over cycles of fit, query and test, with the run folder."""

import gc
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query_options import QueryOptions
from lightning_al.cycles.checkpoints import FitState, choose_checkpoint, keep_checkpoints_in
from lightning_al.cycles.one_cycle import run_cycle
from lightning_al.cycles.reset import Reset, ResetPolicy
from lightning_al.cycles.run_settings import UnusedObjects, check_pool_file, collect_settings
from lightning_al.cycles.termination import Termination, ending_together
from lightning_al.cycles.waiting import Answers
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.numerics.seeding import RandomStream, derive_seed
from lightning_al.storage.cycles_table import CycleRecord, CycleRow
from lightning_al.storage.run_folder import RunFolder
from lightning_al.storage.run_lock import locked_run
from lightning_al.tracking.console import format_cycle, format_table
from lightning_al.tracking.cycle_tracker import CycleTracker
from lightning_al.tracking.target_results import format_target_results


def run_cycles(
    make: Callable[[int], tuple[Trainer, LightningModule]],
    datamodule: ActiveLearningDataModule,
    *,
    cycles: int,
    reset: Reset = "scratch",
    pretrained: str | os.PathLike[str] | None = None,
    shrink: float = 0.5,
    perturb: float = 0.1,
    ckpt: Literal["last", "best"] = "last",
    num_preview_samples: int = 32,
    target: Mapping[str, float] | None = None,
    trust_checkpoints: bool = False,
    min_answers: float = 1.0,
    wait: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    retrain: bool = False,
    config: Mapping[str, Any] | None = None,
    may_change: Collection[str] = (),
) -> list[CycleRow]:
    r"""Run active-learning cycles: fit, query at fit end, test; each with a fresh trainer, model and callbacks.

    A second `fit` of a used trainer trains nothing, and a used `EarlyStopping` or `ModelCheckpoint` remembers the
    cycle before, so everything but the pool and the loggers is made anew. A run folder that holds a pool is
    continued: finished cycles are not repeated, and no sample is queried twice.

    Args:
        make: Returns a fresh trainer, with one acquisition callback, and a fresh model for a cycle (0, 1, ...). Global
            seeds are set from (`datamodule.seed`, cycle) before. Give every trainer the same loggers to get one run.
            Without `run_dir` or `config` it is called once more at the start, to read them from the trainer.
        datamodule: Its pool is kept in `pool.json` of the run folder.
        cycles: Total number of cycles of the run, at least 1.
        reset: What a cycle starts from: `"scratch"`, the fresh model; `"warm"`, the weights of the cycle before;
            `"pretrained"`, those of a checkpoint; `"shrink_perturb"`, `shrink` times the weights of the cycle before
            plus `perturb` times the fresh ones.
        pretrained: The checkpoint of `reset="pretrained"`.
        shrink: Factor of the old weights, in [0, 1].
        perturb: Factor of the fresh weights, in [0, 1].
        ckpt: Which weights score, are tested and passed on: those of the last step, or `ModelCheckpoint`'s best.
        num_preview_samples: How many picks of each cycle are saved as pictures, sounds or texts, in the run folder and
            in the tables of Weights & Biases.
        target: Values of test metrics, such as `{"test/accuracy": 0.9}`; the number of labels they took is reported.
        trust_checkpoints: Load checkpoints (`pretrained`, the best ones) with any Python object in them, which can run
            any code; False loads tensors, numbers, texts and containers of them.
        min_answers: With `ActiveLearningDataModule(labels=...)`, the share of the samples of a query that people must
            have answered before the next cycle trains, in (0, 1].
        wait: Look for answers every two seconds where there are not enough; False ends the run, which the same call
            continues.
        run_dir: The run folder; by default the trainer's `default_root_dir`.
        overwrite: Set an old run folder aside (renamed, not deleted) instead of continuing it.
        retrain: Continue with other settings of training (model, optimizer, trainer, batch sizes, `ckpt`), after a
            training that diverged, for example, and train an interrupted cycle from its beginning. Labels and finished
            cycles are kept; acquisition and data must be the same.
        config: Settings to save in `config.yaml`, which must be the same when the run is continued; by default those
            of the acquisition, the split, the batch size and the reset, class and `hparams` of the model, and of the
            trainer epochs, steps, precision, clipping, accumulated and limited batches. Arrays are compared by their
            content, functions by name and code, other objects by their text.
        may_change: Dotted names of settings in `config` that may change.

    Returns:
        One record per cycle, as in `cycles.csv`: `cycle, labeled, queried`, test metrics, `fit_seconds,
        score_seconds, select_seconds, track_seconds`.

    Raises:
        ValueError: If an argument is out of range, the run folder holds a run with another configuration, or the
            datamodule the labels of another run.
        MisconfigurationException: If a trainer has no acquisition callback.

    Example:
        >>> from lightning_al import RandomAcquisition
        >>> from lightning_al.testing import ToyClassifier, ToyDataset
        >>> def make(cycle):
        ...     trainer = Trainer(
        ...         max_epochs=1, callbacks=[RandomAcquisition(5)], logger=False, enable_checkpointing=False,
        ...         enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        ...     )
        ...     return trainer, ToyClassifier()
        >>> data = ActiveLearningDataModule(ToyDataset(), initial_size=10, test_dataset=ToyDataset(seed=1))
        >>> folder = getfixture("tmp_path")
        >>> [record["labeled"] for record in run_cycles(make, data, cycles=3, run_dir=folder)]
        [10, 15, 20]

    References:
        Shrink and perturb: Ash and Adams, On Warm-Starting Neural Network Training (2020).

    """
    _check_arguments(cycles, ckpt, num_preview_samples, min_answers)
    policy = ResetPolicy(reset, pretrained, shrink, perturb)
    if run_dir is None or config is None:  # read from a trainer that is not used further
        example, model = make(0)
        run_dir = example.default_root_dir if run_dir is None else run_dir
        if config is None:
            config = collect_settings(example, model, acquisition_callback(example), datamodule, policy, ckpt)
    folder = RunFolder(Path(run_dir))
    check_pool_file(datamodule, folder, overwrite)
    options = QueryOptions(ckpt, num_preview_samples, trust_checkpoints)
    with ending_together(), locked_run(folder.path):
        folder.delete_temporary_files()
        try:
            records = _run(
                make,
                datamodule,
                folder,
                cycles,
                policy,
                options,
                config,
                may_change,
                overwrite,
                retrain,
                target or {},
                Answers(datamodule, folder, config, min_answers, wait),
            )
        finally:  # also after an exception: otherwise a later fit would train on the labels of this cycle only
            datamodule.begin_cycle(None)
    return [record.to_row() for record in records]


def _run(
    make: Callable[[int], tuple[Trainer, LightningModule]],
    datamodule: ActiveLearningDataModule,
    folder: RunFolder,
    cycles: int,
    policy: ResetPolicy,
    options: QueryOptions,
    config: Mapping[str, Any],
    may_change: Collection[str],
    overwrite: bool,
    retrain: bool,
    target: Mapping[str, float],
    answers: Answers,
) -> list[CycleRecord]:
    """Run the cycles that are not finished; arguments as for `run_cycles`."""
    # `overwrite` does not look into the folder, which another process of the group may be about to set aside
    records = [] if overwrite else folder.read_records()
    datamodule.pool_file = folder.pool_file
    if not overwrite:
        folder.check_config(config, may_change, len(records), retrain)
        datamodule.reload_pool()
        if records:
            folder.check_records(records, datamodule.pool.history)
    tracker, first_cycle, unused = CycleTracker(folder, config, target), len(records), UnusedObjects()
    for cycle in range(first_cycle, cycles):
        if records and not records[-1].queried and not datamodule.pool.num_unlabeled:
            rank_zero_info("Every sample is labeled and was trained on: the run ends here.")
            break
        if not answers.are_enough(cycle, overwrite=overwrite):
            break
        seed_everything(derive_seed(RandomStream.TRAINING, datamodule.seed, cycle) % 2**32, workers=True, verbose=False)
        trainer, model = make(cycle)
        acquisition_callback(trainer)  # raises if there is none
        unused.check(cycle, trainer, model)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            datamodule.pool_file = None  # a trial of one cycle leaves no trace
            return [run_cycle(trainer, model, datamodule, cycle, options)]
        if overwrite and cycle == 0 and datamodule.labels is None:
            folder.set_aside()
        folder.write_config(config)
        continues = cycle == first_cycle and not retrain
        checkpoint = _prepare_fit(trainer, datamodule, folder, cycle, options, continues=continues)
        previous = folder.weights(cycle - 1) if cycle else None
        policy.apply(model, previous, trust_checkpoints=options.trust_checkpoints)
        datamodule.begin_cycle(cycle)
        tracker.begin_cycle(trainer, cycle)
        records.append(run_cycle(trainer, model, datamodule, cycle, options, checkpoint))
        if policy.needs_previous:
            folder.write_weights(cycle, model)
            trainer.strategy.barrier()  # the other processes are about to read what the first one wrote
        tracker.end_cycle(trainer, records)
        folder.write_records(records)  # last: after a kill before it the cycle is repeated, and reported again
        rank_zero_info(format_cycle(records[-1]))
        # trainer, model and optimizer refer to each other, and would stay in memory for cycles
        del trainer, model
        gc.collect()
    _announce_results(records, target)
    return records


def _announce_results(records: Sequence[CycleRecord], target: Mapping[str, float]) -> None:
    if records:  # none while the first samples wait for people
        table = format_table([record.to_row() for record in records])
        rank_zero_info("\n".join(["", table, *format_target_results(records, target)]))


def _prepare_fit(
    trainer: Trainer,
    datamodule: ActiveLearningDataModule,
    folder: RunFolder,
    cycle: int,
    options: QueryOptions,
    *,
    continues: bool,
) -> Path | None:
    """Add the callbacks of a cycle to its trainer; return the checkpoint from which an interrupted fit continues."""
    checkpoints = folder.cycle(cycle) / "checkpoints"
    keep_checkpoints_in(checkpoints, trainer)
    # a later cycle of this process was not interrupted, and other processes may be behind
    usable = datamodule if continues else None
    checkpoint = choose_checkpoint(checkpoints, trainer, usable, cycle, trusted=options.trust_checkpoints)
    query_options = replace(options, preview_dir=folder.preview_dir(cycle), is_continued=checkpoint is not None)
    trainer.callbacks += [query_options, FitState(cycle, checkpoint), Termination()]  # type: ignore[attr-defined]
    return checkpoint


def _check_arguments(cycles: int, ckpt: str, num_preview_samples: int, min_answers: float) -> None:
    if cycles < 1:
        raise ValueError(f"`run_cycles(cycles={cycles})`: at least one cycle is needed.")
    if ckpt not in ("last", "best"):
        raise ValueError(f"`run_cycles(ckpt={ckpt!r})`: expected 'last' or 'best'.")
    if num_preview_samples < 0:
        raise ValueError(
            f"`run_cycles(num_preview_samples={num_preview_samples})`: expected a number of samples, 0 for none."
        )
    if not 0 < min_answers <= 1:
        raise ValueError(f"`run_cycles(min_answers={min_answers})`: expected a share of the samples asked, in (0, 1].")


def acquisition_callback(trainer: Trainer) -> Acquisition:
    """Return the acquisition among a trainer's callbacks."""
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, Acquisition)]  # type: ignore[attr-defined]
    if len(callbacks) != 1:
        raise MisconfigurationException(
            f"`run_cycles(make=...)`: expected trainers with one acquisition callback, got {len(callbacks)}. Add one, "
            "as in `Trainer(callbacks=[NoiseStabilityAcquisition(query_size=500)])`."
        )
    return callbacks[0]
