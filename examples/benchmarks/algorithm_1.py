"""Algorithm 1 of the paper as a reader would write it: K deep copies, K + 1 passes over a loader.

It is what the library is compared with, so it stays as plain as the paper's lines.
"""

import copy
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_al.numerics.seeding import RandomStream, make_generator


@torch.no_grad()
def algorithm_1(
    model: nn.Module,
    loader: DataLoader,
    output: Callable[[Tensor], Tensor],
    passes: int = 10,
    magnitude: float = 1e-3,
    modules: list[str] | None = None,
    seed: int = 0,
) -> Tensor:
    """Score every sample of a loader.

    Args:
        model: Maps inputs to raw outputs.
        loader: Gives (inputs, labels).
        output: What the distance is measured on, e.g. the softmax over dimension 1.
        passes: K.
        magnitude: Relative noise magnitude.
        modules: Patterns of the modules that get noise; None for all.
        seed: Seed of the noise, which is drawn in the library's order so that both see the same.

    Returns:
        (N,) scores.

    """
    device = next(model.parameters()).device
    clean = predict(model.eval(), loader, output, device)
    scores = torch.zeros(len(clean))
    for step in range(passes):
        noisy = copy.deepcopy(model)
        parameters = [
            parameter
            for name, parameter in noisy.named_parameters()
            if modules is None or any(fnmatchcase(name, f"{pattern}.*") for pattern in modules)
        ]
        generator = make_generator(RandomStream.NOISE, seed, 0, step, device=device)
        directions = [torch.empty_like(parameter).normal_(generator=generator) for parameter in parameters]
        scale = magnitude * norm(parameters) / norm(directions)
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter += scale * direction
        deviation = (predict(noisy, loader, output, device) - clean).square().sum(1)
        scores += deviation.reshape(len(deviation), -1).mean(1) / passes
    return scores


def predict(model: nn.Module, loader: DataLoader, output: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """Return the outputs for a whole loader, in memory."""
    return torch.cat([output(model(inputs.to(device))).cpu() for inputs, _ in loader])


def norm(tensors: list[Tensor]) -> float:
    """Return the Euclidean norm of all tensors together."""
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())
