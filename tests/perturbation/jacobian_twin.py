"""The expected score of noise stability once more, from explicit Jacobians in float64: what the closed form must equal.

Written from DESIGN.md ("The limit of infinitely many passes, in closed form") without looking at the package, and slow
on purpose: the whole Jacobian of one sample after another, squared and summed element by element.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

VARIANCE = {"gaussian": 1.0, "uniform": 1 / 3, "laplace": 2.0}


def twin(
    model: nn.Module,
    batch: Any,
    *,
    magnitude: float = 1e-3,
    relative: bool = True,
    distribution: str = "gaussian",
    scope: str = "global",
    output: str = "softmax",
    noisy: Sequence[str] | None = None,
    call: Callable[[Any], Tensor] = lambda outputs: outputs,
) -> Tensor:
    """Return R(x) of every sample in float64.

    Args:
        model: Left alone.
        batch: A tensor of samples, or a tuple of such.
        noisy: Names of the parameters that get noise; None for all that train.
        call: Maps what the model returns to outputs (B, C).

    """
    model = _double(model)
    names = names_of(model) if noisy is None else list(noisy)
    steps = step_variances(model, names, magnitude, relative, distribution, scope)
    jacobians = sample_jacobians(model, batch, names, output, call)
    # s_l^2 ||J_l(x)||_F^2, summed over the parameters
    scores = [sum(steps[name] * float((own[name] * own[name]).sum()) for name in names) for own in jacobians]
    return torch.tensor(scores, dtype=torch.float64)


def names_of(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def step_variances(
    model: nn.Module, names: Sequence[str], magnitude: float, relative: bool, distribution: str, scope: str
) -> dict[str, float]:
    r"""Return s_l^2: m^2 ||t||^2 / d over all parameters, or over each one, or m^2 Var(D)."""
    values = {name: model.get_parameter(name).detach().double() for name in names}
    variances = {}
    for name in names:
        if relative:
            together = names if scope == "global" else [name]
            square = sum(float((values[other] * values[other]).sum()) for other in together)
            variances[name] = magnitude**2 * square / sum(values[other].numel() for other in together)
        else:
            variances[name] = magnitude**2 * VARIANCE[distribution]
    return variances


def sample_jacobians(
    model: nn.Module,
    batch: Any,
    names: Sequence[str],
    output: str = "softmax",
    call: Callable[[Any], Tensor] = lambda outputs: outputs,
) -> list[dict[str, Tensor]]:
    """Return, for each sample, the Jacobians (C, ...) of what distances are measured on, by name of the parameter."""
    model = _double(model)
    parts = batch if isinstance(batch, tuple) else (batch,)
    parts = tuple(part.double() if part.is_floating_point() else part for part in parts)
    parameters = {name: model.get_parameter(name).detach() for name in names}

    def measured(values: dict[str, Tensor], sample: tuple[Tensor, ...]) -> Tensor:
        raw = call(functional_call(model, values, sample))[0]
        if output == "softmax":
            powers = torch.exp(raw - raw.detach().max())
            return powers / powers.sum()
        return 1 / (1 + torch.exp(-raw)) if output == "sigmoid" else raw

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it has no derivative
    try:
        with torch.no_grad():  # of the Jacobians themselves
            return [
                # one output after another: recurrence has no rule for several at once
                jacrev(measured, chunk_size=1)(parameters, tuple(part[place : place + 1] for part in parts))
                for place in range(len(parts[0]))
            ]
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _double(model: nn.Module) -> nn.Module:
    """Copy a model, without the exceptions that training makes for rows of padding or frequent ones: noise has none."""
    model = copy.deepcopy(model).double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.scale_grad_by_freq, layer.sparse = False, False
        if isinstance(layer, nn.Embedding):  # a bag leaves its padding out of the outputs, too
            layer.padding_idx = None
    return model
