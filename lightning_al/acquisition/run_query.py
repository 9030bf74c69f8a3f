"""The query at fit end: measure the candidates, select, label, and pass a summary to the trackers."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_al.acquisition.agreement import check_agreement
from lightning_al.acquisition.candidates import query_seed, subsample
from lightning_al.acquisition.diverged import check_weights
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.acquisition.query_options import QueryOptions
from lightning_al.data.dataloaders import first_loader
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.model.clone import scoring_clone
from lightning_al.model.memory_format import prefer_channels_last
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream, make_generator, seeded
from lightning_al.scoring.failing_together import raised_on_all_processes
from lightning_al.scoring.progress import Progress, ReportPass, ignore_pass
from lightning_al.scoring.scoring_pass import ScoringPass
from lightning_al.scoring.transfer import make_transfer
from lightning_al.tracking.failures import warn_on_failure
from lightning_al.tracking.query_metrics import track_query
from lightning_al.tracking.query_summary import summarize_query

if TYPE_CHECKING:
    from lightning_al.acquisition.contract import Acquisition

# How many candidates `prepare` gets at most: enough to inspect a forward pass, few enough to cost little.
NUM_EXAMPLES = 64


def should_query(name: str, trainer: Trainer, trained: bool) -> bool:
    """Return whether a query should follow a fit that has ended; log the reason if not.

    Args:
        name: The strategy, for the message.
        trainer: The trainer that has just finished fitting.
        trained: Whether it trained any batch.

    """
    datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    if not trained and not QueryOptions.of(trainer).is_continued:
        rank_zero_warn(
            f"`{name}` labels nothing: this fit trained no batch (a finished trainer does not train again). Use a "
            "fresh Trainer for every cycle, as `run_cycles` does."
        )
    elif datamodule.cycle < datamodule.pool.cycle:
        rank_zero_info(f"{name}: cycle {datamodule.cycle} was queried before; nothing is labeled again.")
    elif not datamodule.pool.num_unlabeled:
        rank_zero_info(f"{name}: every sample is labeled; nothing is left to query.")
    else:
        return True
    return False


def run_query(acquisition: "Acquisition", trainer: Trainer, module: LightningModule) -> None:
    """Score the candidates of this cycle, select, label, save the pool, and pass a summary to the trackers.

    Args:
        acquisition: A copy for this query, on which `prepare` may store anything.
        trainer: The trainer that has just finished fitting, with its `QueryOptions`, if any.
        module: Its module.

    """
    datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    check_agreement(trainer, datamodule)
    options, pool, name = QueryOptions.of(trainer), datamodule.pool, type(acquisition).__name__
    seed = query_seed(acquisition, datamodule)
    budget = acquisition.budget(pool.size)
    candidates = cycle_candidates(acquisition, trainer, budget)
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    pick_scores: list[float] | None = None
    candidate_scores: Tensor | None = None
    if budget >= len(candidates):  # nothing to choose, so nothing to measure
        picks, scoring_ended = list(candidates), started
    else:
        with seeded(RandomStream.SCORING, seed, pool.cycle):
            query = _measure(acquisition, trainer, module, candidates, budget, seed, options)
            scoring_ended = time.perf_counter()
            with raised_on_all_processes(trainer):
                picks = acquisition.select(query)
            picks = check_picks(name, trainer.strategy.broadcast(picks), query)
            row_scores, candidate_scores = acquisition.score(query.pool), query.candidate_scores
            pick_scores = None if row_scores is None else query.scores_of(picks, row_scores)
            metrics = acquisition.metrics(query)
    seconds = {"score": scoring_ended - started, "select": time.perf_counter() - scoring_ended}
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        rank_zero_info(f"{name}: `fast_dev_run` scored {len(candidates)} samples, and labels nothing.")
        return
    pool.label(picks, strategy=name, scores=pick_scores, seconds=seconds)
    labeled_at = time.perf_counter()
    # by the first process alone: another one would wait for it forever if it failed in here
    if trainer.is_global_zero and (trainer.loggers or options.preview_dir):
        with warn_on_failure("Summarizing the picks"), seeded(RandomStream.TRACKING, seed, pool.cycle):
            summary = summarize_query(
                trainer,
                module,
                partial(options.load_weights, name, trainer),
                {"candidates": len(candidates), **metrics},
                candidate_scores,
                options.num_preview_samples,
            )
            track_query(trainer.loggers, summary, options.preview_dir)
    pool.history[-1].seconds["track"] = time.perf_counter() - labeled_at
    datamodule.save_pool()  # last: after a kill before it the query is repeated, and reported again
    text = "".join(f", {metric.replace('_', ' ')} {value:.4g}" for metric, value in metrics.items())
    done = "labeled" if datamodule.labels is None else "asks about"
    rank_zero_info(
        f"{name}: {done} {len(picks)} of {len(candidates)} candidates in {sum(seconds.values()):.1f} s{text}; {pool}."
    )


def cycle_candidates(acquisition: "Acquisition", trainer: Trainer, budget: int) -> Sequence[int]:
    """Return the candidates of this cycle that the strategy measures; few of them in a trial by `fast_dev_run`."""
    datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    candidates: Sequence[int] = datamodule.candidate_indices()
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        candidates = candidates[: budget + 1]
    return subsample(acquisition, datamodule, candidates, budget)


def make_context(
    acquisition: "Acquisition",
    trainer: Trainer,
    clone: LightningModule,
    candidates: Sequence[int],
    budget: int,
    report_pass: ReportPass = ignore_pass,
    *,
    rehearsal: bool = False,
) -> QueryContext:
    """Return the context from which a strategy prepares a query.

    Args:
        acquisition: The strategy.
        trainer: Its datamodule provides the samples.
        clone: The module that scores.
        candidates: The dataset indices to be measured.
        budget: How many of them will be picked.
        report_pass: Moves the progress bar.
        rehearsal: Whether the model is not trained yet.

    """
    datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    predictor, transfer = Predictor(clone, report_pass), make_transfer(trainer, clone)

    def read(indices: Sequence[int]) -> Iterator[Any]:
        return (transfer(part.batch) for part in datamodule.pool_dataloader(indices, shard=False))

    def read_validation() -> Iterator[Any]:
        batches = first_loader(datamodule.val_dataloader()) or ()
        return (transfer(batch) for batch in islice(batches, 1 if rehearsal else None))

    batch = next(read(candidates[:NUM_EXAMPLES]))
    predictor.example = batch  # the same on every process
    prefer_channels_last(predictor, batch)
    seed, cycle = query_seed(acquisition, datamodule), datamodule.pool.cycle
    count = len(candidates)
    return QueryContext(
        predictor, batch, seed, cycle, count, budget, candidates, read, read_validation, rehearsal=rehearsal
    )


def _measure(
    acquisition: "Acquisition",
    trainer: Trainer,
    module: LightningModule,
    candidates: Sequence[int],
    budget: int,
    seed: int,
    options: QueryOptions,
) -> Query:
    """Return the measurements of the candidates, and of the labeled part if the strategy needs them."""
    datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    cycle, name = datamodule.pool.cycle, type(acquisition).__name__
    generator = make_generator(RandomStream.SELECTION, seed, cycle)
    labeled = sorted(datamodule.pool.labeled) if acquisition.needs_labeled else []
    if not acquisition.needs_forward:
        return Query(torch.empty(len(candidates), 0), candidates, budget, generator, labeled_indices=labeled)
    with scoring_clone(trainer, module) as clone:
        progress = Progress(trainer)
        with raised_on_all_processes(trainer):
            options.load_weights(name, trainer, clone)
            check_weights(name, clone, cycle)
            context = make_context(acquisition, trainer, clone, candidates, budget, progress.report_pass)
            acquisition.prepare(context)
        measure = partial(acquisition.measure_chunk, context.predictor)
        scoring = ScoringPass(name, trainer, datamodule, make_transfer(trainer, clone), measure, progress)
        rows_to_gather = partial(acquisition.rows_to_gather, budget=budget)
        measured = scoring.run(candidates, rows_to_gather=rows_to_gather, score=acquisition.score)
        labeled_rows = scoring.run(labeled, part="labeled", ranked=False).rows if labeled else None
    return Query(measured.rows, measured.indices, budget, generator, labeled_rows, measured.scores, labeled)


def check_picks(name: str, picks: list[int], query: Query) -> list[int]:
    """Return the picks as plain integers; raise unless they are as many distinct candidates as asked for."""
    distinct = np.unique(np.array(picks, dtype=np.int64))
    num_unknown = int(np.isin(distinct, np.asarray(query.indices), invert=True).sum())
    if not len(picks) == len(distinct) == query.budget or num_unknown:
        raise RuntimeError(
            f"`{name}.select` must return {query.budget} distinct dataset indices of the query, got {len(picks)} "
            f"({len(distinct)} distinct, {num_unknown} not in the query). Turn rows of `query.pool` into indices with "
            "`query.pick(rows)`."
        )
    return [int(index) for index in picks]
