"""The user's module as a function from a batch to outputs."""

import inspect
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_al.data.batch import THREE_WAYS_OUT, forward_arguments
from lightning_al.model.output import Output, find_output, to_batch_class_positions
from lightning_al.scoring.progress import ReportPass, ignore_pass


class Predictor:
    """A module as a function from a batch to raw outputs of shape (B, C, *positions).

    It calls, in this order of preference, the module's `acquisition_step(batch)`, an overridden `predict_step`, or
    `forward` on the inputs of the batch.

    Args:
        module: Any `nn.Module`; usually the clone of a LightningModule, on its device and in eval mode.
        report_pass: Called after each of several passes over a batch, so that a progress bar can move.

    Example:
        >>> import torch
        >>> predictor = Predictor(nn.Linear(3, 2))
        >>> predictor((torch.ones(5, 3), torch.zeros(5))).shape
        torch.Size([5, 2])

    """

    def __init__(self, module: nn.Module, report_pass: ReportPass = ignore_pass) -> None:
        self.module = module
        self.report_pass = report_pass
        self._gives_probabilities: bool | None = None  # unknown before the first batch

    def __call__(self, batch: Any) -> Tensor:
        """Return raw outputs (logits, or values for regression) of shape (B, C, *positions)."""
        return to_batch_class_positions(find_output(self._run(batch)))

    def probabilities(self, batch: Any) -> Tensor:
        """Return class probabilities of shape (B, C, *positions).

        Args:
            batch: A batch of the loader, on the module's device.

        Returns:
            The softmax over dimension 1, or the outputs themselves if the module already ends in one.

        Raises:
            ValueError: If there is a single output, whose softmax would always be one.

        """
        return self.to_probabilities(self(batch))

    def to_probabilities(self, outputs: Tensor) -> Tensor:
        """Return class probabilities from outputs (B, C, *positions) of this module."""
        if outputs.shape[1] == 1:
            raise ValueError(
                f"{type(self.module).__name__} has one output per sample, and the softmax of one number is always 1. "
                'For regression use `NoiseStabilityAcquisition(output="identity")` or '
                '`MCDropoutAcquisition(uncertainty="variance")`; for a binary logit `output="sigmoid"`.'
            )
        if self._gives_probabilities is None:
            self._gives_probabilities = bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-3).all())
            if self._gives_probabilities:
                rank_zero_warn(
                    f"{type(self.module).__name__} returns probabilities (non-negative, summing to one), which are "
                    "used as they are. Define `acquisition_step` to return logits if that is a coincidence."
                )
        return outputs if self._gives_probabilities else outputs.softmax(1)

    def output(self, batch: Any, kind: Output) -> Tensor:
        """Return probabilities, sigmoids or raw outputs (B, C, *positions), on which distances are measured."""
        if kind == "softmax":
            return self.probabilities(batch)
        return self(batch).sigmoid() if kind == "sigmoid" else self(batch)

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
