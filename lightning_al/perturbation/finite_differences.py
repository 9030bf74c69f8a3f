"""Deviations by finite differences: the reference, exact in any model, in full precision.

It loops over passes and perturbs one set of weights in place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_al.numerics.seeding import make_generator
from lightning_al.perturbation.deviations import Deviation, Seed
from lightning_al.perturbation.noise import Noise
from lightning_al.scoring.progress import ReportPass, ignore_pass

# Bytes of clean outputs kept on the device while the passes run, to bound memory.
HELD_BYTES = 2**30


# Bytes of dense clean outputs: low enough that large maps are kept for one batch only.
DENSE_BYTES = 2**25


@contextmanager
def perturbed(parameters: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add `steps` to `parameters` in place, and restore their exact bits afterwards.

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


class CleanPass(NamedTuple):
    """A batch and its clean outputs.

    Attributes:
        position: The position of the batch in the chunk.
        batch: The batch.
        outputs: (B, C, *positions) clean outputs.

    """

    position: int
    batch: Any
    outputs: Tensor


class FiniteDifferences:
    r"""The backend $f(x; \theta + \xi_k D_k) - f(x; \theta)$: exact in any model, in full precision.

    The passes are the outer loop, so that a chunk of several batches costs K noise draws and not K per batch; the
    clean outputs are computed once.

    Args:
        forward: Maps a batch to its outputs (B, C, *positions), using `parameters`; call under `torch.no_grad`.
        parameters: The parameters to perturb, in place; bit-identical afterwards.
        noise: The noise to add.
        compiled: Run the passes through `torch.compile`, on a GPU as CUDA graphs.
        held_bytes: Bytes that may be kept on the device beside the inputs; for dense outputs much less is kept.
        report_pass: Called after each pass over a batch.

    Cost: K + 1 forward passes per sample; memory for the clean outputs, and twice the parameters.

    """

    def __init__(
        self,
        forward: Callable[[Any], Tensor],
        parameters: Sequence[Tensor],
        noise: Noise,
        *,
        compiled: bool = False,
        held_bytes: int = HELD_BYTES,
        report_pass: ReportPass = ignore_pass,
    ) -> None:
        self._device = parameters[0].device
        self._run = _compiled(forward, self._device.type == "cuda") if compiled else forward
        self._parameters = parameters
        self._noise = noise
        self._held_bytes = held_bytes
        self._report_pass = report_pass

    def deviations(self, chunk: Sequence[Any], seeds: Sequence[Seed]) -> Iterator[Deviation]:
        """Yield the deviations pass by pass, for as many batches at a time as `held_bytes` allows."""
        for group in self._groups(chunk):
            yield from self._passes(group, seeds)
            group.clear()  # frees it before the next clean pass

    def _passes(self, group: Sequence[CleanPass], seeds: Sequence[Seed]) -> Iterator[Deviation]:
        for step, seed in enumerate(seeds):
            steps = self._noise.draw(self._parameters, make_generator(*seed, device=self._device))
            with perturbed(self._parameters, steps):
                for position, batch, clean in group:
                    yield Deviation(position, step, self._run(batch) - clean, clean)
                    self._report_pass(step + 1, len(seeds), len(clean))

    def _groups(self, chunk: Sequence[Any]) -> Iterator[list[CleanPass]]:
        """Yield clean passes, as many at a time as `held_bytes` allows."""
        group: list[CleanPass] = []
        for position, batch in enumerate(chunk):
            group.append(CleanPass(position, batch, self._run(batch)))
            most = DENSE_BYTES if group[-1].outputs.ndim > 2 else self._held_bytes
            if sum(clean.outputs.nbytes for clean in group) >= most:
                yield group
                group = []
        if group:
            yield group


def _compiled(forward: Callable[[Any], Tensor], graphs: bool) -> Callable[[Any], Tensor]:
    """Compile a forward pass; outputs of CUDA graphs are copied, since the next run reuses their memory."""
    # weights are inputs of the compiled function, so a perturbed pass does not compile it again
    run: Callable[[Any], Tensor] = torch.compile(
        forward, mode="reduce-overhead" if graphs else None, dynamic=False if graphs else None
    )
    return (lambda batch: run(batch).clone()) if graphs else run
