"""Seeded draws for the tests of the selectors, and a check of how often each outcome came up."""

import numpy as np
import pytest
import torch
from torch import Tensor

# of what is drawn, whose frequencies are compared with probabilities
few_or_many_trials = pytest.mark.parametrize("trials", [500, pytest.param(4000, marks=pytest.mark.sweep)])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def assert_frequencies(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Each cell is binomial: 5 standard deviations fail by chance once in a million cells (the seeds are fixed)."""
    trials = counts.sum()
    deviation = np.abs(counts / trials - probabilities)
    assert (deviation <= 5 * np.sqrt(probabilities * (1 - probabilities) / trials)).all(), (counts, probabilities)
