"""Norms of single samples' gradients as other libraries find them, in ways of their own."""

import pytest
import torch
from torch import Tensor, nn

from lightning_al.perturbation.noise import Noise
from tests.perturbation.networks import made, normal, tokens
from tests.perturbation.scored import assert_exact, closed_form, parts_of, scores_of


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


MODELS = [(convolutional, normal(9, 3, 6, 9)), (Transformer, tokens(9, 6))]
each_model = pytest.mark.parametrize(("make", "inputs"), MODELS, ids=["conv", "transformer"])


@pytest.mark.filterwarnings("ignore")  # its hooks meet what torch no longer likes
@each_model
def test_scores_are_the_weighted_norms_of_gradients_that_backpack_finds(make, inputs):
    backpack = pytest.importorskip("backpack")
    extensions = pytest.importorskip("backpack.extensions")
    model = made(make)
    scores = scores_of(model, inputs, output="identity", scope="tensor")
    variances = Noise(scope="tensor").variances(list(model.parameters()))
    known = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in known:
        backpack.extend(layer)
    outputs = model(inputs)
    with backpack.backpack(extensions.BatchGrad()):
        outputs.sum().backward(retain_graph=True)
    expected = torch.zeros(len(inputs), dtype=torch.float64)
    found = 0
    for parameter, variance in zip(model.parameters(), variances, strict=True):
        if hasattr(parameter, "grad_batch"):
            gradients, found = parameter.grad_batch, found + 1
        else:  # it knows no normalization, and no tokens in double precision: one sample after another
            with backpack.disable():
                alone = [torch.autograd.grad(one, parameter, retain_graph=True)[0] for one in outputs]
            gradients = torch.stack(alone)
        expected += variance * gradients.detach().flatten(1).square().sum(1)
    assert found == sum(len(list(layer.parameters())) for layer in known)
    assert_exact(scores, expected)


@pytest.mark.filterwarnings("ignore")
@each_model
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_scores_are_the_weighted_norms_of_gradients_that_opacus_finds(make, inputs, scope):
    # not among the test requirements: its wheel holds a top-level `examples`, which hides that of this project
    opacus = pytest.importorskip("opacus", reason="pip install opacus into an environment of its own")
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
