"""Query with a model that is trained already."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query_options import QueryOptions
from lightning_al.data.datamodule import ActiveLearningDataModule


class _CountLabelings(Callback):
    """Count the labelings before the query."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count = len(trainer.datamodule.pool.history)  # type: ignore[attr-defined]


def query(
    model: LightningModule,
    data: ActiveLearningDataModule,
    acquisition: Acquisition,
    trainer: Trainer | None = None,
) -> list[int]:
    """Pick from the pool with a model that is trained already, and label the picks.

    The trainer runs a fit without a batch, so that devices, data, checks and the query are those of any other fit. The
    picks count as labeled in `data.pool`, and in its `pool_file` if there is one: the next query picks others. The
    model is not trained, and of the trainer's callbacks only the progress bar runs.

    Args:
        model: The trained module, with the `training_step` and `configure_optimizers` that Lightning asks for in a fit;
            only its gradients are cleared.
        data: Its pool is queried; made in its `setup` if there is none yet.
        acquisition: Any strategy that takes nothing from a training: not `CheckpointEnsembleAcquisition`, and
            `QueryByCommitteeAcquisition` with `checkpoints` only.
        trainer: Takes its devices, precision and loggers; None for one device without a logger.

    Returns:
        Dataset indices, in the order of picking; none if every sample is labeled.

    Raises:
        MisconfigurationException: If the strategy needs a training, or the trainer's own strategy works in processes
            that end with the fit (`ddp_spawn`).

    Cost: that of the query; optimizers are made, and not used.

    Example:
        >>> from lightning_al import MarginAcquisition
        >>> from lightning_al.testing import ToyClassifier, ToyDataset
        >>> data = ActiveLearningDataModule(ToyDataset(), initial_size=10)
        >>> picks = query(ToyClassifier(), data, MarginAcquisition(query_size=5))
        >>> len(picks), data.pool
        (5, Pool(15 of 120 labeled, cycle 1))

    """
    if trainer is None:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(devices=1, max_epochs=2, **quiet)  # type: ignore[arg-type]
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise MisconfigurationException(
            'The picks of `query` would stay in processes that end with it. Use strategy="ddp", or a single device.'
        )
    changed = {name: getattr(trainer, name) for name in ("callbacks", "limit_train_batches", "limit_val_batches")}
    labelings = _CountLabelings()
    bars = [callback for callback in changed["callbacks"] if isinstance(callback, ProgressBar)]
    trainer.callbacks = [*bars, labelings, acquisition, QueryOptions(is_continued=True)]  # type: ignore[attr-defined]
    trainer.limit_train_batches = trainer.limit_val_batches = 0
    try:
        trainer.fit(model, data)
    finally:
        for name, value in changed.items():
            setattr(trainer, name, value)
    return [int(index) for labeling in list(data.pool.history)[labelings.count :] for index in labeling.indices]
