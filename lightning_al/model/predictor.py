"""The user's module as a function from a batch to outputs."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lightning_al.data.batch import THREE_WAYS_OUT, describe, forward_arguments, targets_in
from lightning_al.model.activation import Evidence, are_probabilities, last_operation, observe
from lightning_al.model.layout import find_class_dim
from lightning_al.model.output import Output, find_entry, take_entry, to_batch_class_positions
from lightning_al.model.position_mask import PositionMask
from lightning_al.numerics.seeding import preserved_rng
from lightning_al.scoring.memory import is_out_of_memory
from lightning_al.scoring.progress import ReportPass, ignore_pass


class Predictor:
    """A module as a function from a batch to raw outputs of shape (B, C, *positions).

    It calls, in this order of preference, the module's `acquisition_step(batch)`, an overridden `predict_step`, or
    `forward` on the inputs of the batch. How outputs are read is decided once, on one batch: which entry of a tuple
    holds them, which of their dimensions is that of the classes, and whether they are probabilities already. A module
    may declare the last two: `acquisition_class_dim` and `acquisition_outputs`.

    Args:
        module: Any `nn.Module`; usually the clone of a LightningModule, on its device and in eval mode.
        report_pass: Called after each of several passes over a batch, so that a progress bar can move.

    Attributes:
        position_mask: Maps a batch and its outputs to the positions that count, or to None if all do.
        example: The batch to decide on, for the same decisions on all processes; None for the first one that is read.

    Example:
        >>> import torch
        >>> predictor = Predictor(nn.Linear(3, 2))
        >>> predictor((torch.ones(5, 3), torch.zeros(5))).shape
        torch.Size([5, 2])

    """

    def __init__(self, module: nn.Module, report_pass: ReportPass = ignore_pass) -> None:
        self.module = module
        self.report_pass = report_pass
        self.position_mask = PositionMask(module)
        self.example: Any = None
        # all unknown before the first batch
        self._entry: Any = None
        self._class_dims: dict[int, int] = {}  # by the number of dimensions
        self._evidence: Evidence | None = None
        self._activated: dict[Output, bool] = {}

    def __call__(self, batch: Any) -> Tensor:
        """Return raw outputs (logits, or values for regression) of shape (B, C, *positions)."""
        outputs = self._run(batch)
        if self._evidence is None and not (isinstance(outputs, Tensor) and outputs.ndim < 3):
            self.inspect(batch)
        predictions = take_entry(outputs, self._entry)
        return to_batch_class_positions(predictions, self._class_dim(predictions, batch))

    def inspect(self, batch: Any) -> None:
        """Decide how outputs are read, unless that is decided.

        Args:
            batch: The batch to decide on, if there is no `example`.

        Raises:
            TypeError: If several entries of an output may be the predictions, or no layer shows the dimension of the
                classes.

        Cost: one forward pass that records gradients; a few more for outputs with positions.

        """
        if self._evidence is not None:
            return
        example = batch if self.example is None else self.example
        outputs = self._run_with_graph(example)
        self._entry = find_entry(outputs)
        predictions = take_entry(outputs, self._entry)
        operation = last_operation(predictions)
        predictions = to_batch_class_positions(predictions.detach(), self._class_dim(predictions, example))
        self._evidence = observe(predictions, operation, targets_in(example))
        self.example = None  # frees it

    def probabilities(self, batch: Any) -> Tensor:
        """Return class probabilities of shape (B, C, *positions).

        Args:
            batch: A batch of the loader, on the module's device.

        Returns:
            The softmax over dimension 1, or the outputs themselves if the module already ends in one.

        Raises:
            ValueError: If there is a single output, whose softmax would always be one, or the module ends in a sigmoid.

        """
        return self.output(batch, "softmax")

    def output(self, batch: Any, kind: Output) -> Tensor:
        """Return probabilities, sigmoids or raw outputs (B, C, *positions), on which distances are measured."""
        if kind == "identity":
            return self(batch)
        self.inspect(batch)
        return self.to_probabilities(self(batch), kind)

    def to_probabilities(self, outputs: Tensor, kind: Literal["softmax", "sigmoid"] = "softmax") -> Tensor:
        """Return probabilities of classes or of labels, from outputs (B, C, *positions) of this module."""
        if kind == "softmax" and outputs.shape[1] == 1:
            raise ValueError(
                f"{type(self.module).__name__} has one output per sample, and the softmax of one number is always 1. "
                'For a binary logit pass `output="sigmoid"`; for regression use '
                '`NoiseStabilityAcquisition(output="identity")` or `MCDropoutAcquisition(uncertainty="variance")`.'
            )
        if kind not in self._activated:
            evidence = self._evidence or observe(outputs, None, [])
            self._activated[kind] = are_probabilities(self.module, evidence, kind)
        if self._activated[kind]:
            return outputs
        return outputs.softmax(1) if kind == "softmax" else outputs.sigmoid()

    def _class_dim(self, outputs: Tensor, batch: Any) -> int:
        """Return the dimension of the classes in outputs of a batch."""
        if outputs.ndim < 3 or outputs.ndim > 5 or outputs[0].numel() == 1:
            return 1
        if outputs.ndim not in self._class_dims:
            self._class_dims[outputs.ndim] = self._decide_class_dim(outputs, batch)
        return self._class_dims[outputs.ndim]

    def _decide_class_dim(self, outputs: Tensor, batch: Any) -> int:
        name, declared = type(self.module).__name__, getattr(self.module, "acquisition_class_dim", None)
        if declared is not None:
            if declared not in (1, -1):
                raise ValueError(f"`{name}.acquisition_class_dim = {declared!r}`: expected 1 or -1, the last.")
            return int(declared)
        class_dim = find_class_dim(self.module, lambda: take_entry(self._run_apart(batch), self._entry))
        if class_dim is None and outputs.ndim == 3 and not outputs.isnan().all():  # else its scores are refused
            raise TypeError(
                f"Cannot tell the classes from the positions in {describe(outputs)}, which {name} returns: (B, C, T) "
                "comes from a convolution and (B, T, C) from a linear layer, but no such layer made it, or what follows"
                " mixes the positions. Set `acquisition_class_dim = 1` or `acquisition_class_dim = -1` in the module."
            )
        return class_dim or 1  # images and volumes: (B, C, H, W) by torch's convention

    def _run_with_graph(self, batch: Any) -> Any:
        """Return the output of the module with its graph, or without one where memory does not suffice for it."""
        try:
            with torch.enable_grad():
                return self._run_apart(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        with torch.no_grad():
            return self._run_apart(batch)

    def _run_apart(self, batch: Any) -> Any:
        """Return the output of the module with the same random numbers each time, which are restored."""
        with preserved_rng():
            return self._run(batch)

    def _run(self, batch: Any) -> Any:
        step = getattr(self.module, "acquisition_step", None)
        if callable(step):
            return step(batch)
        if isinstance(self.module, LightningModule) and is_overridden("predict_step", self.module):
            return self.module.predict_step(*(batch, 0, 0)[: _positional(self.module.predict_step)])
        if isinstance(self.module, LightningModule) and not is_overridden("forward", self.module):
            raise TypeError(f"{type(self.module).__name__} defines no `forward`. {THREE_WAYS_OUT}")
        args, kwargs = forward_arguments(self.module, batch)
        return self.module(*args, **kwargs)


def _positional(function: Callable[..., Any]) -> int | None:
    """Return the number of positional parameters; None for any number."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
