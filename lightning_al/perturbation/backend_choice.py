"""Choose the backend that computes the deviations of a model: the requested one, if the model supports it."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.float32 import computes_in_low_precision
from lightning_al.perturbation.deviations import Backend, Seed
from lightning_al.perturbation.finite_differences import FiniteDifferences
from lightning_al.perturbation.forward_mode import ForwardDerivatives, describe_failure
from lightning_al.perturbation.noise import Noise, noisy_parameters

Method = Literal["finite_difference", "jvp", "jvp_bf16"]


# Rank correlation of derivatives with finite differences on one batch, below which a warning is shown: in single
# precision it is 1.0000, in bfloat16 above 0.999.
AGREEMENT = 0.99


LOW_PRECISION_INSIDE = (
    "`{}` computes in low precision by itself, in autocast or by casts within its forward pass. Finite differences "
    'then rank rounding errors: leave the precision to the Trainer, or use `method="jvp"`, which it does not spoil.'
)


def make_backend(
    predictor: Predictor,
    batch: Any,
    *,
    noise: Noise,
    seeds: Sequence[Seed],
    modules: Sequence[str] | None = None,
    output: Output = "softmax",
    method: Method = "finite_difference",
    compiled: bool = False,
) -> Backend:
    """Return the backend that computes deviations, after trying it on one batch.

    Args:
        predictor: The model, on its device and in eval mode; call under `torch.no_grad`.
        batch: Some samples, to inspect the forward pass.
        noise: Amount and kind of the noise.
        seeds: One tuple of integers per pass.
        modules: Glob patterns of the modules that get noise.
        output: What the deviations are measured on.
        method: `"finite_difference"` in single precision; `"jvp"` in single precision, `"jvp_bf16"` in bfloat16.
        compiled: Run the forward passes through `torch.compile`.

    Returns:
        The backend. Derivatives that the model does not support are replaced by finite differences, with a warning.

    Raises:
        ValueError: If the model is random in eval mode, or nothing can be perturbed.

    Cost: two forward passes over `batch`; for derivatives, also one scoring of it by each backend.

    """

    def forward(batch: Any) -> Tensor:
        return predictor.output(batch, output)

    predictor.inspect(batch)  # before passes are perturbed or vectorized
    clean: list[Tensor] = []
    parameters = noisy_parameters(predictor.module, lambda: clean.append(forward(batch)), modules)
    is_low = computes_in_low_precision(lambda: clean.append(forward(batch)))
    check_repeatable(*clean)
    if method != "finite_difference":
        dtype = torch.bfloat16 if method == "jvp_bf16" else None
        derivatives = ForwardDerivatives(predictor, output, parameters, noise, dtype=dtype, compiled=compiled)
        if _has_derivatives(derivatives, FiniteDifferences(forward, parameters, noise), batch, seeds):
            return derivatives
    if is_low:
        rank_zero_warn(LOW_PRECISION_INSIDE.format(type(predictor.module).__name__))
    return FiniteDifferences(forward, parameters, noise, compiled=compiled, report_pass=predictor.report_pass)


def _has_derivatives(
    derivatives: ForwardDerivatives, reference: FiniteDifferences, batch: Any, seeds: Sequence[Seed]
) -> bool:
    """Return whether the derivatives work; warn if they do not, or if their ranking differs from the reference."""
    try:
        sizes = _sizes(derivatives, batch, seeds)
    except Exception as error:  # the forward pass works, so its derivative fails
        rank_zero_warn(
            f"No derivative along the noise: {describe_failure(error)}. Noise stability takes finite differences; "
            '`method="finite_difference"` does the same without this warning.'
        )
        return False
    agreement = rank_agreement(sizes, _sizes(reference, batch, seeds))
    if agreement >= AGREEMENT:
        rank_zero_info(f"Noise stability by derivatives: rank agreement {agreement:.4f} with finite differences.")
    else:
        rank_zero_warn(
            f"Derivatives along the noise rank a batch otherwise than finite differences in single precision do (rank "
            f"agreement {agreement:.3f}, expected at least {AGREEMENT}): the noise is too large for a first-order "
            "term, the precision too low, or `forward` cuts the gradient. Noise stability takes them all the same, as "
            "asked."
        )
    return True


def _sizes(backend: Backend, batch: Any, seeds: Sequence[Seed]) -> Tensor:
    """Return the mean squared deviation of each sample."""
    changes = (deviation.change for deviation in backend.deviations([batch], seeds))
    return torch.stack([change.square().reshape(len(change), -1).sum(1) for change in changes]).mean(0)


def rank_agreement(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation of two (N,) tensors; 1 for fewer than two samples."""
    return float(spearman_corrcoef(first.float(), second.float())) if len(first) > 1 else 1.0


def check_repeatable(first: Tensor, second: Tensor) -> None:
    """Raise if a forward pass is random in eval mode, since its noise would exceed the added noise.

    Args:
        first: Outputs for a few samples.
        second: Outputs of another clean pass over the same samples.

    Raises:
        ValueError: If they differ by more than rounding.

    """
    if not torch.allclose(first, second, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"Two clean passes over the same samples differ by up to {(first - second).abs().max():.2g}: the model "
            "draws random numbers in eval mode, and noise stability would rank these. Define `acquisition_step` to "
            "return the outputs without sampling."
        )
