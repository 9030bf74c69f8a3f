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
from lightning_al.prefix import CleanPrefix, record_prefix
from lightning_al.progress import tell_pass
from lightning_al.seeding import make_generator

Seed = tuple[int, ...]

HELD_BYTES = 2**30  # of clean outputs and recorded results kept on the device while the passes run
DENSE_BYTES = 2**25  # of dense clean outputs, so that large maps are kept for one batch only


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
    """A way to compute deviations.

    Attributes:
        looks_in_full: Whether `rough` gives what `deviations` would compute once more as its clean outputs.

    """

    looks_in_full: bool

    def rough(self, batch: Any) -> Tensor:
        """Return the clean outputs (B, C, *positions) in the precision that is fastest here, for a first look."""

    def deviations(
        self, chunk: Sequence[Any], seeds: Sequence[Seed], clean: Sequence[Tensor] | None = None
    ) -> Iterator[Deviation]:
        """Yield each batch's deviation in each pass, the passes of a batch in order.

        Args:
            chunk: Batches on the device.
            seeds: One tuple of integers per pass; the same seed gives the same noise.
            clean: The clean outputs of each batch, where they are known already.

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


class Start(NamedTuple):
    """What the perturbed passes over one batch begin with.

    Attributes:
        position: Which batch of the chunk.
        run: Runs a pass.
        clean: (B, C, *positions) clean outputs.
        nbytes: What this holds on the device.

    """

    position: int
    run: Callable[[], Tensor]
    clean: Tensor
    nbytes: int


class FiniteDifferences:
    r"""The backend $f(x; \theta + \xi_k D_k) - f(x; \theta)$: exact in any model, in full precision.

    The passes are the outer loop, so that a chunk of several batches costs K noise draws and not K per batch; the
    clean outputs are computed once. What noise cannot reach (a frozen backbone, the layers before `modules`) is
    computed once as well, where that saves time: the first batch is timed both ways.

    Args:
        forward: Maps a batch to its outputs (B, C, *positions), using `parameters`; call under `torch.no_grad`.
        parameters: What to perturb, in place; bit-identical afterwards.
        noise: What to add.
        compiled: Run the passes through `torch.compile`, each in full.
        static: Whether nearly all batches are of one size, so that a GPU may replay them as CUDA graphs if compiled.
        held_bytes: How much may be kept on the device beside the inputs; much less of dense outputs.

    Cost: K + 1 forward passes per sample, of which only one runs the layers that noise cannot reach; memory for the
        clean outputs, and twice the parameters.

    """

    def __init__(
        self,
        forward: Callable[[Any], Tensor],
        parameters: Sequence[Tensor],
        noise: Noise,
        *,
        compiled: bool = False,
        static: bool = True,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self._device = parameters[0].device
        self._forward = forward
        self._run = _compiled(forward, static and self._device.type == "cuda") if compiled else forward
        self._replays = False if compiled else None  # None: not known before the first batch
        self._parameters = parameters
        self._noise = noise
        self._held_bytes = held_bytes
        self.looks_in_full = not has_fast_bfloat16(self._device)

    def rough(self, batch: Any) -> Tensor:
        """Return the clean outputs (B, C, *positions), in bfloat16 where the device multiplies fast in it."""
        if self.looks_in_full:
            return self._run(batch)
        with torch.autocast(self._device.type, torch.bfloat16):
            return self._forward(batch)

    def deviations(
        self, chunk: Sequence[Any], seeds: Sequence[Seed], clean: Sequence[Tensor] | None = None
    ) -> Iterator[Deviation]:
        """Yield the deviations pass by pass, for as many batches at a time as may be held."""
        for group in self._groups(chunk, seeds[0], clean):
            yield from self._passes(group, seeds)
            group.clear()  # before the next clean pass runs

    def _passes(self, group: Sequence[Start], seeds: Sequence[Seed]) -> Iterator[Deviation]:
        for step, seed in enumerate(seeds):
            steps = self._noise.draw(self._parameters, make_generator(*seed, device=self._device))
            with perturbed(self._parameters, steps):
                for start in group:
                    yield Deviation(start.position, step, start.run() - start.clean, start.clean)
                    tell_pass(step + 1, len(seeds), len(start.clean))

    def _groups(self, chunk: Sequence[Any], seed: Seed, clean: Sequence[Tensor] | None) -> Iterator[list[Start]]:
        """Run the clean passes, as many at a time as may be held."""
        group: list[Start] = []
        for position, batch in enumerate(chunk):
            group.append(self._start(position, batch, seed, None if clean is None else clean[position]))
            most = DENSE_BYTES if group[-1].clean.ndim > 2 else self._held_bytes
            if sum(start.nbytes for start in group) >= most:
                yield group
                group = []
        if group:
            yield group

    def _start(self, position: int, batch: Any, seed: Seed, clean: Tensor | None) -> Start:
        run = partial(self._run, batch)
        if self._replays is False:
            clean = run() if clean is None else clean
            return Start(position, run, clean, clean.nbytes)
        clean, prefix = record_prefix(run, self._parameters)
        if self._replays is None:
            self._replays = prefix is not None and self._pays(prefix, run, seed)
        if prefix is None or not self._replays:
            return Start(position, run, clean, clean.nbytes)
        return Start(position, partial(prefix.run, run), clean, clean.nbytes + prefix.nbytes)

    def _pays(self, prefix: CleanPrefix, run: Callable[[], Tensor], seed: Seed) -> bool:
        """Tell whether a perturbed pass that replays is faster than one in full, and the same bit for bit."""
        steps = self._noise.draw(self._parameters, make_generator(*seed, device=self._device))
        with perturbed(self._parameters, steps):
            (replayed, short), (full, long) = _timed(partial(prefix.run, run)), _timed(run)
        return torch.equal(replayed, full) and short < long


def _compiled(forward: Callable[[Any], Tensor], graphs: bool) -> Callable[[Any], Tensor]:
    """Compile a forward pass, into CUDA graphs if asked to, whose outputs live in memory that the next run reuses."""
    # the weights are inputs of the compiled function, so that a perturbed pass is no reason to compile again
    run: Callable[[Any], Tensor] = torch.compile(
        forward, mode="reduce-overhead" if graphs else None, dynamic=False if graphs else None
    )
    return (lambda batch: run(batch).clone()) if graphs else run


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has units that multiply in bfloat16, which some only emulate."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10
    return device.type == "cpu" and bool(capabilities.get("amx_bf16"))


def _timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return what a pass gives, and its seconds; the better of two, since the first one may still allocate."""
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        outputs = run()
        outputs.sum().item()  # which waits for the device
        seconds.append(time.perf_counter() - begun)
    return outputs, min(seconds)


def check_repeatable(first: Tensor, second: Tensor) -> None:
    """Refuse a forward pass that is random even in eval mode, whose own noise would drown the one that is added.

    Args:
        first: Outputs for a few samples.
        second: Those of another clean pass over the same samples.

    Raises:
        ValueError: If they differ by more than rounding.

    """
    if not torch.allclose(first, second, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"Two clean passes over the same samples differ by up to {(first - second).abs().max():.2g}: the model "
            "draws random numbers in eval mode, and noise stability would rank these. Define `acquisition_step` to "
            "return the outputs without sampling."
        )
