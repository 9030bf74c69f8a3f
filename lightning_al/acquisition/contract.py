"""The callback that labels at fit end: when to query, in which steps; strategies say how."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import Self

from lightning_al.acquisition.query import Context, Query
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.functional import top_k
from lightning_al.model.checkpoint import load_weights
from lightning_al.model.clone import scoring_clone
from lightning_al.model.memory_format import prefer_channels_last
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import Stream, make_generator, seeded
from lightning_al.scoring.scoring_pass import Survey
from lightning_al.scoring.transfer import make_transfer
from lightning_al.tracking.failures import sheltered
from lightning_al.tracking.query_summary import observe
from lightning_al.tracking.trackers import track_query

SHARDED_STRATEGIES = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
EXAMPLES = 64  # candidates that `prepare` sees, at most a batch of them
NO_BEST_WEIGHTS = (
    "`{}` should score with the best weights (ckpt='best'), but no `ModelCheckpoint` saved any. Add one with "
    "`monitor=`, or use ckpt='last'."
)


class Acquisition(Callback, ABC):
    """Label the most useful part of the pool when a fit ends.

    A strategy says what to measure per sample and what to select from the measurements; this class does the rest.
    It scores a clone on the trainer's device, out of autocast and in true single precision, with one pass over the
    candidates shared by all processes; the user's module and the global random numbers stay bit-identical.

    Subclasses are final. `prepare` and `select` are optional; a larger measurement means 'label first'.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].

    Raises:
        ValueError: If `query_size` is neither.

    """

    needs_forward: bool = True
    """Whether the pool is read at all."""
    needs_labeled: bool = False
    """Whether `Query.labeled` holds the measurements of the labeled part."""
    ckpt: Literal["last", "best"] = "last"
    """Which weights score: those of the last step, or those that `ModelCheckpoint` found best."""
    seed: int | None = None
    """Seed of the strategy; None takes the datamodule's."""
    shown: int = 32
    """How many of the picks are shown to a person, in the run folder and by Weights & Biases."""
    picked_folder: Path | None = None
    """Where `run_cycles` wants them."""

    def __init__(self, query_size: int | float) -> None:
        fits = 0 < query_size <= 1 if isinstance(query_size, float) else query_size >= 1
        if isinstance(query_size, bool) or not fits:
            raise ValueError(
                f"`{type(self).__name__}(query_size={query_size!r})`: expected a number of samples (int, at least 1) "
                "or a share of the dataset (float in (0, 1])."
            )
        self.query_size = query_size
        self._trained = False

    def for_one_cycle(self) -> Self:
        """Return what lives for one query, so that nothing `prepare` stores outlives it or must be cleared."""
        return copy.copy(self)

    def narrow(self, indices: Sequence[int], budget: int, generator: torch.Generator) -> Sequence[int]:
        """Return which of the candidates to look at, ascending; all by default."""
        return indices

    def prepare(self, context: Context) -> None:
        """Get ready for one cycle; what is stored on `self` is forgotten after the query."""

    @abstractmethod
    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Measure one batch.

        Args:
            predictor: The clone of the model.
            batch: A batch on the device.

        Returns:
            (B,) scores, or (B, ...) rows for a strategy with its own `select`.

        """

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Measure a few batches; override it if the passes should be the outer loop."""
        return torch.cat([self.measure(predictor, batch) for batch in chunk])

    def select(self, query: Query) -> list[int]:
        """Choose what to label; by default the largest scores.

        Args:
            query: Measurements, dataset indices and budget.

        Returns:
            `query.budget` distinct dataset indices.

        """
        return query.pick(top_k(query.pool, query.budget))

    def score(self, rows: Tensor) -> Tensor | None:
        """Return one number per row to keep with each pick, or None if rows have no such number."""
        return rows if rows.ndim == 1 else None

    def shortlist(self, rows: Tensor, budget: int) -> Tensor | None:
        """Return which of one process's rows `select` may need; None for all, which then travel to every process."""
        return top_k(rows, budget) if type(self).select is Acquisition.select else None

    def figures(self, query: Query) -> dict[str, float]:
        """Return what is worth logging about this query, by name."""
        return {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse, before any training, what could not be scored after it."""
        if stage != "fit":
            return
        name = type(self).__name__
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, ActiveLearningDataModule):
            raise MisconfigurationException(
                f"`{name}` needs an `ActiveLearningDataModule`, got {type(datamodule).__name__}: wrap your data, as in "
                "`trainer.fit(model, ActiveLearningDataModule(MyDataModule(), initial_size=1000))`."
            )
        if isinstance(trainer.strategy, SHARDED_STRATEGIES):
            raise MisconfigurationException(
                f"`{name}` scores a clone of the whole module, which {type(trainer.strategy).__name__} keeps in shards "
                'over the processes. Use strategy="ddp" or a single device.'
            )
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher) and datamodule.pool_file is None:
            raise MisconfigurationException(
                f"`{name}`: this strategy trains in processes of its own, from which labels come back only through a "
                'file. Pass `ActiveLearningDataModule(pool_file="pool.json")`, or use strategy="ddp".'
            )
        if sum(isinstance(callback, Acquisition) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "Two acquisition callbacks would both label at fit end. Keep one, or wrap both in one strategy."
            )
        if self.ckpt == "best" and trainer.checkpoint_callback is None:
            raise MisconfigurationException(NO_BEST_WEIGHTS.format(name))
        self._trained = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember that this fit trains."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the candidates, select, label, and write the pool file."""
        datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if self._should_query(trainer, datamodule):
            self.for_one_cycle()._query(trainer, pl_module, datamodule)

    def _should_query(self, trainer: Trainer, datamodule: ActiveLearningDataModule) -> bool:
        name, pool = type(self).__name__, datamodule.pool
        if not self._trained:
            rank_zero_warn(
                f"`{name}` labels nothing: this fit trained no batch (a finished trainer does not train again). Use a "
                "fresh Trainer for every cycle, as `run_cycles` does."
            )
        elif datamodule.cycle < pool.cycle:
            rank_zero_info(f"{name}: cycle {datamodule.cycle} was queried before; nothing is labeled again.")
        elif not pool.num_unlabeled:
            rank_zero_info(f"{name}: every sample is labeled; nothing is left to query.")
        else:
            return True
        return False

    def _query(self, trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule) -> None:
        pool = datamodule.pool
        indices: Sequence[int] = datamodule.candidate_indices()
        budget = self.query_size if isinstance(self.query_size, int) else max(1, round(self.query_size * pool.size))
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            indices = indices[: budget + 1]
        seed = datamodule.seed if self.seed is None else self.seed
        indices = self.narrow(indices, budget, make_generator(Stream.NARROWING, seed, pool.cycle))
        begun = time.perf_counter()
        figures: dict[str, float] = {}
        scores: list[float] | None = None
        of_all: Tensor | None = None
        if budget >= len(indices):  # nothing to choose, so nothing to measure
            picks, scored = list(indices), begun
        else:
            with seeded(Stream.SCORING, seed, pool.cycle):
                query = self._measure(trainer, module, datamodule, indices, budget, seed)
                scored = time.perf_counter()
                picks = self._checked(trainer.strategy.broadcast(self.select(query)), query)
                own, of_all = self.score(query.pool), query.scores
                scores = None if own is None else query.scores_of(picks, own)
                figures = self.figures(query)
        seconds = {"score": scored - begun, "select": time.perf_counter() - scored}
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(f"{type(self).__name__}: `fast_dev_run` scored {len(indices)} samples, and labels nothing.")
            return
        said = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
        pool.label(picks, strategy=type(self).__name__, scores=scores, seconds=seconds)
        datamodule.save_pool()
        if trainer.loggers or self.picked_folder:
            with sheltered("Looking at the picks"), seeded(Stream.TRACKING, seed, pool.cycle):
                figures = {"candidates": len(indices), **figures}
                outcome = observe(trainer, module, partial(self._load_best, trainer), figures, of_all, self.shown)
                track_query(trainer.loggers, outcome, self.picked_folder)
        rank_zero_info(
            f"{type(self).__name__}: labeled {len(picks)} of {len(indices)} candidates in {sum(seconds.values()):.1f} s"
            f"{said}; {pool}."
        )

    @contextmanager
    def first_candidates(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[Predictor, Any]]:
        """Yield a predictor over an untrained clone on the device, and a batch of the first candidates."""
        datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        indices = datamodule.pool.unlabeled[:EXAMPLES]
        with seeded(Stream.SCORING, datamodule.seed), scoring_clone(trainer, module) as clone:
            first = next(iter(datamodule.pool_dataloader(indices, shard=False)))
            yield Predictor(clone), make_transfer(trainer, clone)(first.batch)

    def _measure(
        self,
        trainer: Trainer,
        module: LightningModule,
        datamodule: ActiveLearningDataModule,
        indices: Sequence[int],
        budget: int,
        seed: int,
    ) -> Query:
        cycle = datamodule.pool.cycle
        generator = make_generator(Stream.SELECTION, seed, cycle)
        if not self.needs_forward:
            return Query(torch.empty(len(indices), 0), indices, budget, generator)
        with scoring_clone(trainer, module) as clone:
            self._load_best(trainer, clone)
            predictor, transfer = Predictor(clone), make_transfer(trainer, clone)
            first = next(iter(datamodule.pool_dataloader(indices[:EXAMPLES], shard=False)))
            context = Context(predictor, transfer(first.batch), seed, cycle, len(indices), budget)
            prefer_channels_last(predictor, context.batch)
            self.prepare(context)
            measure = partial(self.measure_chunk, predictor)
            survey = Survey(type(self).__name__, trainer, datamodule, transfer, measure, self.score)
            candidates = survey.read(indices, partial(self.shortlist, budget=budget))
            labels = sorted(datamodule.pool.labeled) if self.needs_labeled else []
            labeled = survey.read(labels, ranked=False, scored=False, called="labeled").rows if labels else None
        return Query(candidates.rows, candidates.indices, budget, generator, labeled, candidates.scores)

    def _load_best(self, trainer: Trainer, clone: LightningModule) -> None:
        if self.ckpt == "last" or trainer.fast_dev_run:  # type: ignore[attr-defined]  # which saves no checkpoint
            return
        path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if not path:
            raise MisconfigurationException(NO_BEST_WEIGHTS.format(type(self).__name__))
        load_weights(clone, path)

    def _checked(self, picks: list[int], query: Query) -> list[int]:
        if len(picks) != query.budget or len(set(picks)) != len(picks) or not set(picks) <= set(query.indices):
            raise RuntimeError(
                f"`{type(self).__name__}.select` must return {query.budget} distinct dataset indices of the query, got "
                f"{len(picks)} ({len(set(picks))} distinct, {len(set(picks) - set(query.indices))} not in the query). "
                "Turn rows of `query.pool` into indices with `query.pick(rows)`."
            )
        return [int(index) for index in picks]
