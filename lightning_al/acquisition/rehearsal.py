"""The rehearsal of a query before training: what cannot be scored fails before the first step, not after the last."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.acquisition.run_query import check_picks, cycle_candidates, make_context
from lightning_al.data.batch import tensors_in
from lightning_al.data.dataloaders import PoolBatch
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.formulas.checks import NonFiniteError
from lightning_al.model.clone import scoring_clone
from lightning_al.numerics.seeding import RandomStream, make_generator, seeded
from lightning_al.scoring.failing_together import raised_on_all_processes
from lightning_al.scoring.measure import measure_pool
from lightning_al.scoring.row_checks import check_rows
from lightning_al.scoring.transfer import make_transfer

if TYPE_CHECKING:
    from lightning_al.acquisition.contract import Acquisition

# Candidates that are measured before training: enough to select some of them, few enough to cost little.
NUM_REHEARSED = 8
# Relative difference of two measurements of the same samples above which the model is random. Kernels of a GPU may sum
# in another order, and noise stability measures small differences of outputs.
TOLERANCE = 1e-2


def rehearse(acquisition: "Acquisition", trainer: Trainer, module: LightningModule) -> None:
    """Prepare, measure and select for a few candidates with a clone of the untrained model; raise what that raises.

    Measurements that are all equal, or not finite though the inputs are, are no error: training may change them.

    Args:
        acquisition: A copy for this query, on which `prepare` may store anything.
        trainer: The trainer that is about to fit.
        module: Its module; not changed.

    Raises:
        NonFiniteError: If inputs with NaN give NaN.

    Cost: one read of at most 8 candidates, twice the passes of the strategy over them, and what `prepare` takes.

    """
    datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    pool, budget = datamodule.pool, acquisition.budget(datamodule.pool.size)
    candidates = cycle_candidates(acquisition, trainer, budget)
    # a cycle that was queried before is not queried again, and nothing is measured where nothing is to choose
    if not acquisition.needs_forward or datamodule.cycle < pool.cycle or budget >= len(candidates):
        return
    started, candidates = time.perf_counter(), candidates[:NUM_REHEARSED]
    with (
        seeded(RandomStream.SCORING, datamodule.seed),
        scoring_clone(trainer, module) as clone,
        raised_on_all_processes(trainer),
    ):
        context = make_context(acquisition, trainer, clone, candidates, budget, rehearsal=True)
        acquisition.prepare(context)
        batches = list(datamodule.pool_dataloader(candidates, shard=False))
        rows = _measure_twice(acquisition, context, batches, make_transfer(trainer, clone))
        if rows is not None and not bool((rows == rows[:1]).all()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # so few samples may lack what the query has, such as groups
                _select(acquisition, context, rows)
    if not datamodule.cycle:
        rank_zero_info(
            f"{type(acquisition).__name__}: scored {len(candidates)} candidates before training, in "
            f"{time.perf_counter() - started:.2g} s, to see that it works."
        )


def _measure_twice(
    acquisition: "Acquisition", context: QueryContext, batches: list[PoolBatch], transfer: Callable[[Any], Any]
) -> Tensor | None:
    """Return the measurements; None if they are not finite. Warn if those of a second pass differ."""
    name, model = type(acquisition).__name__, type(context.predictor.module).__name__
    measure = partial(acquisition.measure_chunk, context.predictor)
    try:
        rows, again = (measure_pool(measure, batches, transfer)[1] for _ in range(2))
        check_rows(name, context.candidates, context.candidates, rows, ranked=False)
    except NonFiniteError:
        if any(bool(tensor.isnan().any()) for tensor in tensors_in(batches)):
            raise
        return None
    if rows.numel() and (difference := float((rows - again).abs().max())) > TOLERANCE * float(rows.abs().max()):
        rank_zero_warn(
            f"`{name}`: two passes of {model} in eval mode over the same samples gave measurements that differ by up "
            f"to {difference:.2g}, so picks depend on the order of reads and on the number of processes. Draw random "
            "numbers only `if self.training`, or define `acquisition_step` to return outputs without sampling."
        )
    return rows


def _select(acquisition: "Acquisition", context: QueryContext, rows: Tensor) -> None:
    """Select among the samples behind the first one, which stands in for the labeled part."""
    indices, rest = list(context.candidates), rows[1:]
    generator = make_generator(RandomStream.SELECTION, context.seed, context.cycle)
    query = Query(
        rest,
        indices[1:],
        max(1, min(context.budget, len(rest) // 2)),
        generator,
        rows[:1] if acquisition.needs_labeled else None,
        acquisition.score(rest),
        indices[:1] if acquisition.needs_labeled else [],
    )
    if len(rest) > 1:
        acquisition.rows_to_gather(rest, query.budget)
        check_picks(type(acquisition).__name__, acquisition.select(query), query)
        acquisition.metrics(query)
