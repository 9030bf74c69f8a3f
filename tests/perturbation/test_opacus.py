"""Norms of single samples' gradients as the library for differential privacy finds them, in ways of its own."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_al.noise import Noise
from tests.perturbation.networks import made, normal, tokens
from tests.perturbation.scored import assert_exact, closed_form, parts_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, about what it will leave out
    # not among the test requirements: its wheel holds a top-level `examples`, which hides that of this project
    opacus = pytest.importorskip("opacus", reason="pip install opacus into an environment of its own")


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 1),
    )


class Block(nn.Module):
    """Attention with a single head and a small network, each behind a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        weights = (self.query(y) @ self.key(y).mT / x.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out(weights @ self.value(y))
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(ids))).mean(1))


@pytest.mark.filterwarnings("ignore")  # its hooks meet what torch no longer likes
@pytest.mark.parametrize(
    ("make", "inputs"), [(convolutional, normal(9, 3, 6, 9)), (Transformer, tokens(9, 6))], ids=["conv", "transformer"]
)
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_scores_are_the_weighted_norms_of_gradients_that_opacus_finds(
    make: Callable[[], nn.Module], inputs: Tensor, scope: str
) -> None:
    model = made(make)
    form = closed_form(model, inputs, output="identity", scope=scope)
    assert set(parts_of(form)) == {"LayerPart"}
    with torch.no_grad():
        scores = form.scores(inputs)
    variances = Noise(scope=scope).variances(list(model.parameters()))
    # it watches only what trains; there is no dropout here
    wrapped = opacus.GradSampleModule(model.train(), batch_first=True, loss_reduction="sum")
    wrapped(inputs).sum().backward()
    norms = [parameter.grad_sample.flatten(1).square().sum(1) for parameter in model.parameters()]
    assert_exact(scores, sum(variance * norm for variance, norm in zip(variances, norms, strict=True)))
