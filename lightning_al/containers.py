"""Tensors in nested containers."""

from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested containers, those of Hugging Face's and Lightning's making included."""
    # torch's pytree would not look into mappings of other makes
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:  # and hand it back: not every container can hold something else
        tensors.append(tensor)
        return tensor

    apply_to_collection(tree, Tensor, note, allow_frozen=True)
    return tensors
