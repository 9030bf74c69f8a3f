"""How far outputs move under K perturbations of the parameters: what every backend offers, and finite differences.

Finite differences are the reference: a readable loop over passes that perturbs one set of weights in place. Nothing
outside this file and `jvp.py` knows how a deviation comes about.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_al.noise import Noise
from lightning_al.prefix import record_prefix
from lightning_al.seeding import make_generator

Seed = tuple[int, ...]

HELD_BYTES = 2**30  # of clean outputs and recorded results kept on the device while the passes run


class Deviation(NamedTuple):
    """How far the outputs of one batch moved in one pass.

    Attributes:
        position: Which batch of the chunk.
        step: Which pass.
        change: (B, C, *positions) perturbed minus clean outputs, or their first-order term.
        clean: (B, C, *positions) clean outputs.

    """

    position: int
    step: int
    change: Tensor
    clean: Tensor


class Backend(Protocol):
    """A way to compute deviations."""

    def clean(self, batch: Any) -> Tensor:
        """Return the outputs (B, C, *positions) under the clean parameters."""

    def deviations(
        self, chunk: Sequence[Any], seeds: Sequence[Seed], clean: Sequence[Tensor] | None = None
    ) -> Iterator[Deviation]:
        """Yield each batch's deviation in each pass, the passes of a batch in order.

        Args:
            chunk: Batches on the device.
            seeds: One tuple of integers per pass; the same seed gives the same noise.
            clean: The outputs of each batch, if they are at hand.

        Yields:
            Deviations; only the latest one need be kept alive.

        """


@contextmanager
def perturbed(parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add `steps` to `parameters` in place, and put the very same bits back afterwards.

    Args:
        parameters: Leaf tensors of a module; call under `torch.no_grad`.
        steps: One tensor per parameter.

    """
    clean = [parameter.detach().clone() for parameter in parameters]
    try:
        torch._foreach_add_(list(parameters), list(steps))
        yield
    finally:
        # subtracting the step again would round
        for parameter, value in zip(parameters, clean, strict=True):
            parameter.copy_(value)


class FiniteDifferences:
    r"""The backend $f(x; \theta + \xi_k D_k) - f(x; \theta)$: exact in any model, in full precision.

    The passes are the outer loop, so that a chunk of several batches costs K noise draws and not K per batch; the
    clean outputs are computed once. What noise cannot reach (a frozen backbone, the layers before `modules`) is
    computed once as well, where that saves time: the first batch is timed both ways.

    Args:
        forward: Maps a batch to its outputs (B, C, *positions), using `parameters`; call under `torch.no_grad`.
        parameters: What to perturb, in place; bit-identical afterwards.
        noise: What to add.
        replay: Whether clean results may be kept from pass to pass; a compiled forward pass does not allow it.
        held_bytes: How much may be kept on the device beside the inputs. A dense output is kept for one batch only.

    Cost: K + 1 forward passes per sample, of which only one runs the layers that noise cannot reach; memory for the
        clean outputs, and twice the parameters.

    """

    def __init__(
        self,
        forward: Callable[[Any], Tensor],
        parameters: Sequence[Tensor],
        noise: Noise,
        *,
        replay: bool = True,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self._forward = forward
        self._parameters = parameters
        self._noise = noise
        self._held_bytes = held_bytes
        self._replays = None if replay else False  # None: not known before the first batch

    def clean(self, batch: Any) -> Tensor:
        """Return the outputs (B, C, *positions) under the clean parameters."""
        return self._forward(batch)

    def deviations(
        self, chunk: Sequence[Any], seeds: Sequence[Seed], clean: Sequence[Tensor] | None = None
    ) -> Iterator[Deviation]:
        """Yield the deviations pass by pass, for as many batches at a time as may be held."""
        device = self._parameters[0].device
        for group in self._groups(chunk, clean):
            for step, seed in enumerate(seeds):
                steps = self._noise.draw(self._parameters, make_generator(*seed, device=device))
                with perturbed(self._parameters, steps):
                    for position, forward, output in group:
                        yield Deviation(position, step, forward() - output, output)

    def _groups(
        self, chunk: Sequence[Any], clean: Sequence[Tensor] | None
    ) -> Iterator[list[tuple[int, Callable[[], Tensor], Tensor]]]:
        """Run the clean passes, as many at a time as may be held."""
        group, held = [], 0
        for position, batch in enumerate(chunk):
            forward, output, nbytes = self._start(batch, None if clean is None else clean[position])
            group.append((position, forward, output))
            held += nbytes
            if output.ndim > 2 or held >= self._held_bytes:
                yield group
                group, held = [], 0
        if group:
            yield group

    def _start(self, batch: Any, clean: Tensor | None) -> tuple[Callable[[], Tensor], Tensor, int]:
        """Return how to run a perturbed pass over a batch, its clean outputs, and the bytes that this holds."""
        forward = partial(self._forward, batch)
        if self._replays is False:
            output = forward() if clean is None else clean
            return forward, output, output.nbytes
        output, prefix = record_prefix(forward, self._parameters)
        if self._replays is None:
            self._replays = prefix is not None and _seconds(partial(prefix.run, forward)) < _seconds(forward)
        if prefix is None or not self._replays:
            return forward, output, output.nbytes
        return partial(prefix.run, forward), output, output.nbytes + prefix.nbytes


def _seconds(run: Callable[[], Tensor]) -> float:
    """Time a pass; the better of two, since the first one may still allocate."""
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        run().sum().item()  # which waits for the device
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def check_repeatable(forward: Callable[[Any], Tensor], batch: Any) -> None:
    """Refuse a forward pass that is random even in eval mode, whose own noise would drown the one that is added.

    Args:
        forward: Maps a batch to its outputs.
        batch: A few samples.

    Raises:
        ValueError: If two passes differ by more than rounding.

    """
    first, second = forward(batch), forward(batch)
    if not torch.allclose(first, second, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"Two clean passes over the same samples differ by up to {(first - second).abs().max():.2g}: the model "
            "draws random numbers in eval mode, and noise stability would rank these. Define `acquisition_step` to "
            "return the outputs without sampling."
        )
