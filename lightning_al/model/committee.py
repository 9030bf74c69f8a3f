"""The other members of a committee: trained separately on the labeled part, or read from a file."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.compile import to_uncompiled
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, Subset

from lightning_al.data.dataloaders import labeled_loader
from lightning_al.data.datamodule import PASSED_THROUGH, ActiveLearningDataModule
from lightning_al.model.checkpoint import load_weights
from lightning_al.model.clone import clone_module
from lightning_al.model.weight_swap import copy_weights, weights_of
from lightning_al.numerics.seeding import make_generator, seeded


def copy_untrained(module: LightningModule) -> LightningModule:
    """Copy a module that can be trained apart from the original, in its own precision and on its own device.

    Args:
        module: The user's module before a fit; not changed.

    Returns:
        An independent copy without a trainer.

    Raises:
        TypeError: If the module holds something that cannot be copied, with what to do about it.

    """
    memo: dict[int, Any] = {}
    try:
        copied = copy.deepcopy(module, memo)
        for name, value in vars(module).items():
            # a deep copy shares the function of a bound method; LightningCLI hides the module's optimizer in one
            if isinstance(value, MethodType):
                function, owner = copy.deepcopy((value.__func__, value.__self__), memo)
                setattr(copied, name, MethodType(function, owner))
    except Exception as error:
        raise TypeError(
            f"{type(module).__name__} cannot be copied for a committee ({type(error).__name__}: {error}). Keep open "
            "files, locks and tensors that carry a graph (use `.detach()`) out of the module's attributes, or pass "
            "`checkpoints=`."
        ) from error
    return copied if getattr(copied, "_compiler_ctx", None) is None else to_uncompiled(copied)


def reinitialize(module: nn.Module) -> None:
    """Draw the trainable weights anew, by the `reset_parameters` of the modules that hold them.

    Outer modules come after the inner ones, so that a `reset_parameters` by the user takes effect last. Frozen weights
    are kept, and so are those that no module can reset, such as a class token, with a warning.

    Args:
        module: Changed in place; random numbers come from torch's global generator.

    Raises:
        ValueError: If no weight was drawn anew.

    """
    trainable = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad and tensor.ndim > 1}
    before = {name: tensor.detach().clone() for name, tensor in trainable.items()}
    for child in reversed(list(module.modules())):
        # nn.MultiheadAttention's is private
        reset = getattr(child, "reset_parameters", None) or getattr(child, "_reset_parameters", None)
        if callable(reset) and any(parameter.requires_grad for parameter in child.parameters()):
            reset()
    unchanged = [name for name, tensor in trainable.items() if torch.equal(tensor, before[name])]
    if not unchanged:
        return
    reason = f"no module of {type(module).__name__} has a `reset_parameters` that draws {', '.join(unchanged[:5])} anew"
    if len(unchanged) == len(trainable):
        raise ValueError(
            f"A committee should start from fresh weights, but {reason}. Define it, or pass reinitialize=False to "
            "start from the same weights."
        )
    rank_zero_warn(
        f"All members of the committee start with the same values there: {reason}. Define it if that matters."
    )


def train_member(
    start: LightningModule, outer: Trainer, entropy: tuple[int, ...], *, fresh: bool = True, bootstrap: bool = False
) -> dict[str, Tensor]:
    """Train one more network as the outer trainer trained its own, without its callbacks and loggers.

    Args:
        start: The module before the outer fit; not changed.
        outer: The trainer that has just finished fitting on an `ActiveLearningDataModule`; not changed.
        entropy: Integers that seed everything about the member, such as `(RandomStream.TRAINING, seed, cycle, member)`.
        fresh: Draw the weights anew.
        bootstrap: Train on as many samples, drawn with replacement.

    Returns:
        The trained weights by name, on the CPU.

    Raises:
        MisconfigurationException: If the module's optimizer belongs to another module.

    Cost: one training on the labeled part, on the device of this process.

    """
    datamodule: ActiveLearningDataModule = outer.datamodule  # type: ignore[attr-defined]
    with seeded(*entropy), torch.enable_grad(), _quiet():
        member = copy_untrained(start)
        # callbacks of the module itself would write checkpoints, or wait for a validation
        setattr(member, "configure_callbacks", list)  # noqa: B010  # mypy forbids assigning a method
        if fresh:
            reinitialize(member)
        loader = _member_loader(datamodule, entropy, bootstrap)
        _trainer_like(outer).fit(member, datamodule=_MemberData(datamodule, loader))
    return copy_weights(member)


def read_member(module: LightningModule, path: str, *, trusted: bool = False) -> dict[str, Tensor]:
    """Read the weights of a network of the same architecture.

    Args:
        module: The clone that scores, which loads the file as the user's module would; not changed.
        path: A Lightning checkpoint, or a file with a plain state dict.
        trusted: Load any Python object in it, as for `load_weights`.

    Returns:
        The weights by name, on the module's device.

    Raises:
        ValueError: If the file does not fit the module.

    """
    member = clone_module(module, module.device)
    assert isinstance(member, LightningModule)
    try:
        load_weights(member, path, trusted=trusted)
    except RuntimeError as error:
        raise ValueError(f"{path!r} does not fit {type(module).__name__}: {error}") from error
    return weights_of(member)


def _trainer_like(outer: Trainer) -> Trainer:
    """Return a trainer of one device with the outer trainer's settings of optimization only."""
    device = outer.strategy.root_device
    # only a schedule that waits for a plateau needs the validation
    watches = any(config.reduce_on_plateau for config in outer.lr_scheduler_configs)
    return Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        plugins=[LightningEnvironment()],  # independent of the launcher of the outer trainer
        precision=outer.precision,
        max_epochs=outer.max_epochs,
        max_steps=outer.max_steps,
        limit_train_batches=outer.limit_train_batches,
        limit_val_batches=outer.limit_val_batches if watches else 0,
        check_val_every_n_epoch=outer.check_val_every_n_epoch,
        val_check_interval=outer.val_check_interval,
        num_sanity_val_steps=0,
        accumulate_grad_batches=outer.accumulate_grad_batches,
        gradient_clip_val=outer.gradient_clip_val,
        gradient_clip_algorithm=outer.gradient_clip_algorithm,
        use_distributed_sampler=False,
        default_root_dir=outer.default_root_dir,
        callbacks=[_SameLength(outer.current_epoch)],
        logger=[DummyLogger()],  # for modules that call `self.logger.experiment`
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _SameLength(Callback):
    """Stop after as many epochs as the outer fit ran, which a callback may have stopped early."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise if the optimizer would leave the member untrained, or train another module."""
        parameter_ids = {id(parameter) for parameter in pl_module.parameters()}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if groups and not any(id(parameter) in parameter_ids for group in groups for parameter in group["params"]):
            raise MisconfigurationException(
                f"The optimizer of a copy of {type(pl_module).__name__} holds parameters of another module. Build it "
                "in `configure_optimizers` from `self.parameters()`, or pass `checkpoints=`."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop once the number of epochs is reached."""
        trainer.should_stop |= trainer.current_epoch + 1 >= self.epochs


class _MemberData(ActiveLearningDataModule):
    """The datamodule of a member: set up already, with a training loader of its own.

    It and the datamodule inside are shallow copies, so that `self.trainer` is the member's in every hook.
    """

    def __init__(self, original: ActiveLearningDataModule, loader: DataLoader[Any]) -> None:
        vars(self).update(vars(original))  # in place of the constructor, which would start from nothing
        self.datamodule = copy.copy(original.datamodule)
        for name in PASSED_THROUGH:
            if name in vars(original):
                setattr(self, name, getattr(self.datamodule, name))
        self._loader = loader

    def prepare_data(self) -> None:
        """Do nothing; the data is prepared."""

    def setup(self, stage: str) -> None:
        """Set the trainer of the wrapped datamodule."""
        self.datamodule.trainer = self.trainer

    def teardown(self, stage: str) -> None:
        """Do nothing; the outer trainer still uses the data."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the member's loader."""
        return self._loader


def _member_loader(datamodule: ActiveLearningDataModule, entropy: tuple[int, ...], bootstrap: bool) -> DataLoader[Any]:
    """Return a loader over the labeled part that draws from its own generator, and not from the user's."""
    wrapped = datamodule.train_dataloader()  # made for this call
    size = len(wrapped.dataset)  # type: ignore[arg-type]
    generator = make_generator(*entropy)
    rows = torch.randint(size, (size,), generator=generator) if bootstrap else torch.arange(size)
    wrapped.generator = generator
    if isinstance(wrapped.sampler, DistributedSampler):  # every process trains on all of it
        wrapped.sampler.num_replicas, wrapped.sampler.rank = 1, 0
    return labeled_loader(wrapped, Subset(wrapped.dataset, rows.tolist()), None, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages of Lightning, which the outer trainer has shown already."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def hide(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(hide)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.(pytorch|fabric)\.")
            yield
    finally:
        logger.removeFilter(hide)
