"""Which positions of an output count: padding has no target, so it must not decide what is picked."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_al.data.batch import LABEL_KEYS, targets_in, tensors_in

# The label of positions without a target, by torch's and Hugging Face's default.
IGNORE_INDEX = -100
# Equal values at the end of a sequence that make it look padded: two may be a coincidence.
PADDING = 3


class PositionMask:
    """The positions of a module's outputs that count, batch by batch.

    They come from the module's `acquisition_mask(batch)`; else from the batch, where an `attention_mask` or integer
    targets with `ignore_index` -100 have the shape of the positions. Where neither is there, all positions count, with
    a warning if lengths vary.

    Args:
        module: The module.

    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._positions: torch.Size | None = None  # unknown before the first batch
        self._is_settled = False  # nothing to warn about, or warned

    def __call__(self, batch: Any, outputs: Tensor) -> Tensor | None:
        """Return which positions count.

        Args:
            batch: A batch on the device.
            outputs: (B, C, *positions) its outputs; only their shape and device matter.

        Returns:
            (B, *positions) booleans, at least one true for each sample; None if all are.

        Raises:
            ValueError: If the module's mask has another shape, or a sample has no position that counts.

        """
        positions = outputs.shape[2:]
        shape = torch.Size((len(outputs), *positions))
        if not positions:
            return None
        define = getattr(self.module, "acquisition_mask", None)
        mask: Tensor | None = define(batch) if callable(define) else _mask_in(batch, shape)
        self._warn_if_lengths_vary(batch, shape, callable(define) or mask is not None)
        if mask is None:
            return None
        name = f"`{type(self.module).__name__}.acquisition_mask(batch)`" if callable(define) else "The mask of a batch"
        if mask.shape != shape:
            raise ValueError(f"{name}: expected the shape {tuple(shape)} of the positions, got {tuple(mask.shape)}.")
        mask = mask.to(outputs.device) != 0
        counts = mask.flatten(1).sum(1)
        if not counts.all():
            raise ValueError(
                f"{name} excludes all positions of the sample in row {int(counts.argmin())}, which then has no score. "
                "Leave empty samples out of the pool."
            )
        return None if mask.all() else mask

    def _warn_if_lengths_vary(self, batch: Any, shape: torch.Size, has_mask: bool) -> None:
        """Warn once if sequences seem to be padded, and nothing says where."""
        first, self._positions = self._positions is None, self._positions or shape[1:]
        self._is_settled |= has_mask
        if self._is_settled or len(shape) != 2 or shape[0] < 2:
            return
        if self._positions != shape[1:] or (first and _is_padded(batch, shape)):
            self._is_settled = True
            rank_zero_warn(
                f"{type(self.module).__name__} is scored at every position of sequences whose lengths vary, padding "
                "included: short ones may win, and the batch size matters. Add an `attention_mask` (B, T) to the "
                "batch, or define `acquisition_mask(self, batch)` in the module, which returns one, or None if all "
                "positions count."
            )


def _inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch, without its targets."""
    inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    return {key: inputs[key] for key in inputs if key not in LABEL_KEYS} if isinstance(inputs, Mapping) else inputs


def _mask_in(batch: Any, shape: torch.Size) -> Tensor | None:
    """Return the attention mask of a batch, or where its targets are not ignored, if they have this shape."""
    inputs = _inputs_of(batch)
    attention = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if isinstance(attention, Tensor) and attention.shape == shape:
        return attention
    for target in targets_in(batch):
        if target.shape == shape and not target.is_floating_point():
            counts = target != IGNORE_INDEX
            # not the targets of a pool in which some samples have none yet
            if not counts.all() and counts.flatten(1).any(1).all():
                return counts
    return None


def _is_padded(batch: Any, shape: torch.Size) -> bool:
    """Return whether sequences (B, T) of the inputs end in the same value, repeated to different lengths."""
    for values in tensors_in(_inputs_of(batch)):
        sequences = values if values.shape[:2] == shape else values.movedim(-1, 1) if values.ndim == 3 else None
        if sequences is None or sequences.shape[:2] != shape:
            continue
        steps = sequences.reshape(*shape, -1).flip(1)  # the last one first
        runs = (steps == steps[:, :1]).all(2).int().cumprod(1).sum(1)
        last = steps[runs > 1, 0]
        if int(runs.max()) >= PADDING and int(runs.min()) < int(runs.max()) and bool((last == last[:1]).all()):
            return True
    return False
