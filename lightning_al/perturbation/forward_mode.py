"""Deviations by forward-mode differentiation: the first-order term, which stays accurate in low precision.

A finite difference subtracts two nearly equal numbers, so it needs every digit of single precision. The derivative
along the noise is computed directly, and keeps its relative precision however the tensor cores round.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import make_generator
from lightning_al.perturbation.deviations import Deviation, Seed
from lightning_al.perturbation.noise import Noise
from lightning_al.scoring.memory import is_out_of_memory


class ForwardDerivatives:
    r"""The backend $\frac{\partial}{\partial t} f(x; \theta + t\,\xi_k D_k)|_{t=0}$: the same noise, to first order.

    Several passes run together as one vectorized pass, as long as they fit into the device's memory.

    Args:
        predictor: The model that the parameters belong to.
        output: The outputs on which deviations are measured.
        parameters: The parameters that get noise.
        noise: Distribution and size of the directions.
        dtype: Precision of the passes, to which parameters, buffers and inputs are cast; None casts nothing. Autocast
            does not work: its casts conflict with the derivative of a convolution.
        compiled: Run the passes through `torch.compile`.

    Cost: about 2 K + 1 forward passes per sample; memory for the K directions and K times the activations of a batch,
        or fewer at a time if that does not fit.

    """

    def __init__(
        self,
        predictor: Predictor,
        output: Output,
        parameters: Sequence[Tensor],
        noise: Noise,
        *,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self._outputs = _Outputs(predictor, output)
        names = {id(parameter): name for name, parameter in self._outputs.named_parameters()}
        self._parameters = {names[id(parameter)]: parameter.detach() for parameter in parameters}
        self._report_pass = predictor.report_pass
        self._noise = noise
        self._device = parameters[0].device
        self._dtype = dtype
        self._values = {name: self._cast(parameter) for name, parameter in self._parameters.items()}
        state = {**dict(self._outputs.named_parameters()), **dict(self._outputs.named_buffers())}
        self._constants = {
            name: self._cast(value.detach()) for name, value in state.items() if name not in self._parameters
        }
        self._passes_per_vmap: int | None = None  # None for all
        self._derivatives = torch.compile(self._jvp_batched, dynamic=False) if compiled else self._jvp_batched

    def deviations(self, chunk: Sequence[Any], seeds: Sequence[Seed]) -> Iterator[Deviation]:
        """Yield the deviations, batch by batch for several passes at a time."""
        start = 0
        while start < len(seeds):
            count = min(self._passes_per_vmap or len(seeds), len(seeds) - start)
            try:
                directions = self._draw(seeds[start : start + count])
            except RuntimeError as error:
                self._halve_passes_per_vmap(count, error)
                continue
            for position, batch in enumerate(chunk):
                step = start
                for output, changes in self._derive(directions, count, self._cast(batch)):
                    for change in changes:
                        yield Deviation(position, step, change, output)
                        step += 1
                        self._report_pass(step, len(seeds), len(output))
            start += count

    def _derive(self, directions: dict[str, Tensor], count: int, batch: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the clean outputs and (n, B, C, *positions) derivatives, in as large groups of passes as fit."""
        start = 0
        while start < count:
            size = min(self._passes_per_vmap or count, count - start)
            group = {name: direction[start : start + size] for name, direction in directions.items()}
            try:
                with self._kernels():
                    output, changes = self._derivatives(group, batch)
            except RuntimeError as error:
                self._halve_passes_per_vmap(size, error)
                continue
            yield output, changes
            start += size

    def _halve_passes_per_vmap(self, count: int, error: RuntimeError) -> None:
        """Halve the passes that run together after an out-of-memory error; raise any other error."""
        if count == 1 or not is_out_of_memory(error):
            raise error
        self._passes_per_vmap = count // 2
        rank_zero_info(f"{str(error).partition(chr(10))[0]} {self._passes_per_vmap} passes run together from now on.")
        torch.cuda.empty_cache()

    def _jvp_batched(self, directions: dict[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        """Return clean outputs and derivatives along directions, which are stacked along their first dimension."""

        def jvp_one(direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            output, change = jvp(lambda values: self._call(values, batch), (self._values,), (direction,))[:2]
            return output, change

        # the clean pass has no dimension of passes, so it runs once for all of them
        output, changes = vmap(jvp_one, out_dims=(None, 0))(directions)  # type: ignore[arg-type]
        return output, changes

    def _call(self, values: dict[str, Tensor], batch: Any) -> Tensor:
        # strict: a name that is missing would silently run in the module's own precision
        return functional_call(self._outputs, {**self._constants, **values}, (batch,), strict=True)  # type: ignore[no-any-return]

    def _cast(self, values: Any) -> Any:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(self._dtype) if self._dtype is not None and tensor.is_floating_point() else tensor

        return apply_to_collection(values, Tensor, cast)

    def _draw(self, seeds: Sequence[Seed]) -> dict[str, Tensor]:
        """Draw the directions of some passes, stacked along a new first dimension."""
        parameters = list(self._parameters.values())
        # drawn in the parameters' precision, then cast: the same noise in any precision of the passes
        draws = [self._cast(self._noise.draw(parameters, make_generator(*seed, device=self._device))) for seed in seeds]
        steps = zip(*draws, strict=True)
        return {name: torch.stack(step) for name, step in zip(self._parameters, steps, strict=True)}

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        """Select attention kernels that have derivatives."""
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            cuda: Any = torch.backends.cuda
            if self._dtype is not None and hasattr(cuda, "allow_fp16_bf16_reduction_math_sdp"):  # torch 2.5
                # otherwise attention in low precision is computed in single precision
                stack.callback(cuda.allow_fp16_bf16_reduction_math_sdp, cuda.fp16_bf16_reduction_math_sdp_allowed())
                cuda.allow_fp16_bf16_reduction_math_sdp(True)
            fast = torch.backends.mha.get_fastpath_enabled()
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            torch.backends.mha.set_fastpath_enabled(False)
            yield


class _Outputs(nn.Module):
    """A predictor as a module, whose parameters can be swapped by name."""

    def __init__(self, predictor: Predictor, output: Output) -> None:
        super().__init__()
        self.module = predictor.module
        self._predictor = predictor
        self._output: Output = output

    def forward(self, batch: Any) -> Tensor:
        return self._predictor.output(batch, self._output)


def describe_failure(error: Exception) -> str:
    """Return the operator without a derivative that an error of torch names, or the error's first line."""
    operator = re.search(r"forward AD with (\S+) that", str(error))
    if operator:
        return f"{operator.group(1)} has no forward-mode formula"
    reason = str(error).partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {reason}"
