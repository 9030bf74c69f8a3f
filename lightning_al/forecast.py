"""Foretelling a number per sample from some samples of which it is known."""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Forecast:
    r"""Kernel ridge regression with a Gaussian kernel, $\hat y(x) = m + \sum_i \alpha_i k(x, x_i)$.

    Far from all samples that it was fitted to it falls back to their mean m, so nothing is extrapolated.

    Attributes:
        anchors: (n, D) standardized features of the samples it was fitted to.
        coefficients: (n,) alpha.
        mean: m.
        center: (D,) subtracted from features.
        scale: (D,) that features are then divided by.
        width: Of the kernel, in standardized features.
        error: Root mean squared error of each sample foretold from the others.

    """

    anchors: Tensor
    coefficients: Tensor
    mean: float
    center: Tensor
    scale: Tensor
    width: float
    error: float

    def __call__(self, features: Tensor) -> Tensor:
        """Foretell (N,) numbers from (N, D) features, on their device."""
        anchors, coefficients, center, scale = (
            part.to(features) for part in (self.anchors, self.coefficients, self.center, self.scale)
        )
        return self.mean + _kernel((features - center) / scale, anchors, self.width) @ coefficients


def fit_forecast(features: Tensor, targets: Tensor, weights: Tensor) -> Forecast:
    r"""Fit a forecast, choosing the ridge by its leave-one-out error.

    With the kernel matrix $K$ of the weighted samples and $G = (K + \lambda I)^{-1}$, the residual of a sample that is
    left out is $(G y)_i / G_{ii}$.

    Args:
        features: (n, D), n at least 2.
        targets: (n,).
        weights: (n,) positive weights of the squared errors.

    Returns:
        The forecast, in double precision on the CPU.

    Cost: one eigendecomposition of an n x n matrix.

    References:
        Rifkin and Lippert, Notes on Regularized Least Squares, MIT-CSAIL-TR-2007-025, 2007.

    """
    features, targets, weights = (tensor.double().cpu() for tensor in (features, targets, weights))
    center, spread = features.mean(0), features.std(0)
    scale = torch.where(spread > 0, spread, 1.0)  # a feature that never varies tells nothing
    anchors = (features - center) / scale
    width = float(torch.pdist(anchors).median()) or 1.0
    mean = (weights * targets).sum() / weights.sum()
    roots = weights.sqrt()
    values, vectors = torch.linalg.eigh(roots.unsqueeze(1) * _kernel(anchors, anchors, width) * roots)
    projected = vectors.T @ (roots * (targets - mean))
    best = None
    for ridge in RIDGES:
        inverse = 1 / (values.clamp_min(0) + ridge)
        solution = vectors @ (inverse * projected)
        left_out = solution / (vectors.square() @ inverse)
        error = float((left_out.square().sum() / weights.sum()).sqrt())
        if best is None or error < best[0]:
            best = error, roots * solution
    assert best is not None
    return Forecast(anchors, best[1], float(mean), center, scale, width, best[0])


def _kernel(one: Tensor, other: Tensor, width: float) -> Tensor:
    return (torch.cdist(one, other) / width).square().div(-2).exp()
