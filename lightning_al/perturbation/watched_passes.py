"""A forward pass that parts of a model watch, and the backward passes for their gradients."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_al.perturbation.parts import Call, Part


def watched_pass(root: nn.Module, batch: Any, parts: Iterable[Part]) -> tuple[Tensor, list[Call]]:
    """Run a forward pass with gradients, and return the outputs (B, C) and the calls that the parts recorded."""
    calls: list[Call] = []
    with torch.enable_grad(), ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.watch(calls))
        outputs = root(batch)
    return outputs, calls


def backward_passes(
    outputs: Tensor, calls: Sequence[Call], vectors: Tensor, *, last: bool = True
) -> Iterator[list[list[Tensor]]]:
    """Run one backward pass for each direction, and yield the gradients of each call.

    Args:
        outputs: (B, C) of a watched pass.
        calls: The calls that the parts recorded.
        vectors: (D, B, C) directions.
        last: Whether the graph of the outputs may be freed.

    Yields:
        For each call, the gradients at its edges along each of the D directions.

    """
    edges = [edge for call in calls for edge in call.edges]
    gradients: list[list[Tensor | None]] = [
        list(
            torch.autograd.grad(
                outputs, edges, vector, retain_graph=not last or step < len(vectors) - 1, allow_unused=True
            )
        )
        for step, vector in enumerate(vectors)
    ]
    start = 0
    for call in calls:
        stop = start + len(call.edges)
        output_gradients = [
            [
                outputs.new_zeros(shape) if gradient is None else gradient
                for gradient, shape in zip(along[start:stop], call.shapes, strict=True)
            ]
            for along in gradients
        ]
        for along in gradients:
            along[start:stop] = [None] * len(call.edges)  # frees memory that later calls do not need
        yield output_gradients
        start = stop
