"""The command `lightning-al fit`: a LightningCLI whose `fit` runs all active-learning cycles."""

import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml

try:
    from jsonargparse import ActionYesNo, Namespace
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'The command line needs jsonargparse: pip install "jsonargparse[signatures]". The Python API works without it.'
    ) from error

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_al.acquisition.contract import Acquisition
from lightning_al.cli.presets import preset_names, resolve_config_options
from lightning_al.cycles.run_cycles import run_cycles
from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.storage.run_folder import RunRefusedError
from lightning_al.storage.settings import RESUMABLE_SETTINGS
from lightning_al.tracking.wandb import run_id

EPILOG = (
    "Four more commands have a --help of their own: `lightning-al compare` runs several strategies and seeds over one "
    "configuration, `lightning-al report` writes a page about runs, `lightning-al label` opens a page on which people "
    "label what a run asks, and `lightning-al query` picks with the weights of a checkpoint. A bare name after "
    f"--config is a strategy that is installed with the package: {', '.join(preset_names())}."
)

# the arguments of `run_cycles` that follow from the others
SET_BY_FIT = {"make", "datamodule", "run_dir", "config", "may_change"}
# those that take no value
FLAGS = {
    "overwrite": "Set an old run folder aside (renamed, not deleted) instead of continuing it.",
    "retrain": "Continue a run with other settings of training; labels and finished cycles are kept.",
}


class ActiveLearningCLI(LightningCLI):
    """A `LightningCLI` whose `fit` runs cycles of training, querying and testing.

    Next to LightningCLI's own keys there are `acquisition:` (any acquisition, by `class_path`) and the arguments of
    `run_cycles` (`cycles`, `reset`, `pretrained`, `shrink`, `perturb`, `ckpt`, `num_preview_samples`, `target`,
    `trust_checkpoints`, `overwrite`, `retrain`). `data:` takes the arguments of `ActiveLearningDataModule`; its seed is
    `seed_everything`. `validate`, `test` and `predict` are LightningCLI's. After `--config` a bare name, such as
    `margin`, is a preset of the package.

    Args:
        model_class: The LightningModule; None accepts any `class_path`.
        datamodule_class: The datamodule.
        **kwargs: Passed to `LightningCLI`.

    Example:
        >>> sys.argv = ["lightning-al"]
        >>> cli = ActiveLearningCLI(args=[
        ...     "fit", "--acquisition=RandomAcquisition", "--acquisition.query_size=5", "--cycles=2",
        ...     "--data.datamodule_or_train_dataset=lightning_al.testing.ToyDataset", "--data.initial_size=10",
        ...     "--model=lightning_al.testing.ToyClassifier", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        ...     "--trainer.logger=false", f"--trainer.default_root_dir={getfixture('tmp_path') / 'run'}",
        ...     "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        ... ])
        >>> cli.datamodule.pool
        Pool(20 of 120 labeled, cycle 2)

    """

    _replaced_arguments: tuple[str, ...] = ()  # those of `run_cycles` for which a subclass has one of its own
    _first_argument = 1  # of those of the process

    def __init__(
        self,
        model_class: type[LightningModule] | None = None,
        datamodule_class: type[ActiveLearningDataModule] = ActiveLearningDataModule,
        **kwargs: Any,
    ) -> None:
        # no callback, which would save one configuration per trainer: `run_cycles` saves one per run
        kwargs = {"save_config_callback": None, "seed_everything_default": 0, **kwargs}
        defaults = {"default_root_dir": "runs/default", **(kwargs.pop("trainer_defaults", None) or {})}
        super().__init__(model_class, datamodule_class, trainer_defaults=defaults, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return LightningCLI's commands; `fit` always begins from the run folder, so it takes no checkpoint."""
        commands = LightningCLI.subcommands()
        commands["fit"] |= {"ckpt_path", "weights_only"}
        return commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of active learning; an override must call it."""
        parser.add_lightning_class_args(Acquisition, "acquisition", subclass_mode=True, required=False)
        parser.add_function_arguments(run_cycles, as_group=True, skip={*SET_BY_FIT, *FLAGS, *self._replaced_arguments})
        for name, description in FLAGS.items():
            parser.add_argument(f"--{name}", action=ActionYesNo(no_prefix="no_"), default=False, help=description)
        parser.set_defaults({"cycles": 5})
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments, in which a bare name after `--config` stands for a preset."""
        if isinstance(args, (dict, Namespace)):
            super().parse_arguments(parser, args)
            return
        try:
            words = resolve_config_options(sys.argv[self._first_argument :] if args is None else args)
        except ValueError as error:
            parser.error(str(error))  # exits with status 2
        if args is None:  # LightningCLI warns if it is given arguments beside those of the process
            self.config = parser.parse_args(words)
        else:
            super().parse_arguments(parser, words)

    def before_instantiate_classes(self) -> None:
        """Set the run folder as the folder of loggers that have none, and the id of a W&B run that continues."""
        section = self.config[self.subcommand] if self.subcommand else self.config
        trainer = section.trainer
        loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        for logger in loggers:
            arguments = getattr(logger, "init_args", None)
            if arguments is None:
                continue
            if arguments.get("save_dir") in (".", None) and "save_dir" in arguments:
                arguments.save_dir = trainer.default_root_dir
            if logger.class_path.endswith("WandbLogger") and not (arguments.version or arguments.id):
                arguments.id = run_id(trainer.default_root_dir, fresh=section.get("overwrite", False))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer without the None that LightningCLI adds where no acquisition is configured."""
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not None]  # type: ignore[attr-defined]
        return trainer

    def fit(self, **kwargs: Any) -> None:
        """Run all cycles; LightningCLI calls this instead of `Trainer.fit`."""
        section = self.config[self.subcommand]
        if section.acquisition is None and not any(
            isinstance(callback, Acquisition)
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
        ):
            raise RunRefusedError(
                "`fit` needs an acquisition: add `--config noise_stability`, or "
                "`--acquisition NoiseStabilityAcquisition --acquisition.query_size 500`."
            )
        folder = Path(self.trainer.default_root_dir)
        loggers = self.trainer.loggers
        with warnings.catch_warnings():
            # LightningCLI calls it too; its successor is missing from jsonargparse versions that Lightning allows
            warnings.simplefilter("ignore", DeprecationWarning)
            self.parser.add_instantiator(
                lambda class_type, *args, **kwargs: self.datamodule, self._datamodule_class, subclasses=False
            )

        def make(cycle: int) -> tuple[Trainer, LightningModule]:
            self._make_afresh(folder / f"cycle-{cycle:02d}", loggers)
            return self.trainer, self.model

        names = [name for name in inspect.signature(run_cycles).parameters if name not in SET_BY_FIT]
        arguments = {name: section[name] for name in names}
        self.records = run_cycles(
            make,
            self.datamodule,
            run_dir=folder,
            config=yaml.safe_load(self.parser.dump(self.config, skip_link_targets=False))[self.subcommand],
            may_change=RESUMABLE_SETTINGS,
            **arguments,
        )

    def _make_afresh(self, folder: Path, loggers: list[Any]) -> None:
        """Instantiate model, trainer and callbacks again from the same configuration, keeping data and loggers."""
        config, self.config = self.config, self.config.clone()
        section = self.config[self.subcommand]
        section.data = Namespace()  # type: ignore[no-untyped-call]  # the instantiator has the datamodule
        section.trainer.logger = loggers or False
        section.trainer.default_root_dir = str(folder)
        try:
            self.instantiate_classes()
        finally:
            self.config = config
