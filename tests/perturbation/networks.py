"""Small networks, each awkward in a way of its own for whoever wants the gradient of single samples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.perturbation.awkward import (
    Containers,
    Doubled,
    LayerScale,
    Positions,
    Standardized,
    Then,
    attend_one_by_one,
    attend_to_some,
    attend_to_the_past,
    attention,
    cell_by_cell,
    encoder,
    in_place,
    recurrent,
    rows_in_another_order,
    tied,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape: int, below: int = 11, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a network in float64 and eval mode, with nothing left at zero or one and statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_()
                if name.endswith("running_var"):
                    buffer.uniform_(0.5, 2)
    return model


def _body(run: Callable[..., Any], **makers: Callable[[], nn.Module | nn.Parameter]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        own = {name: maker() for name, maker in makers.items()}
        return Then(run, body=nn.Linear(5, 8), **({} if "head" in own else {"head": nn.Linear(8, 3)}), **own)

    return make


def _convolution(conv: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def mlp(outputs: int = 3, *last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs), *last)


POINTS, SEQUENCES, IMAGES, IDS = normal(9, 5), normal(9, 5, 8), normal(9, 3, 6, 5), tokens(9, 6)
STEPS = normal(9, 4, 4)

# by name: how it is made, what goes in
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, POINTS),
    "a layer called twice": (
        _body(
            lambda model, x: model.head(model.twice(model.twice(model.body(x)).tanh())), twice=partial(nn.Linear, 8, 8)
        ),
        POINTS,
    ),
    "tied weights": (tied, IDS),
    "positions and a class token": (
        lambda: nn.Sequential(Positions(), nn.Linear(8, 4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
        SEQUENCES,
    ),
    "scales of features": (
        lambda: nn.Sequential(nn.Linear(8, 8), LayerScale((8,)), nn.Tanh(), nn.Flatten(), nn.Linear(40, 3)),
        SEQUENCES,
    ),
    "scales of channels": (lambda: nn.Sequential(LayerScale((3, 1, 1)), nn.Flatten(), nn.Linear(90, 3)), IMAGES),
    "a scalar": (
        _body(lambda model, x: model.head(model.body(x).tanh()) * model.t, t=lambda: nn.Parameter(torch.ones(()))),
        POINTS,
    ),
    "prelu": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(48, 3)), IMAGES),
    "self-attention": (attention, SEQUENCES),
    "self-attention, sequence first": (partial(attention, batch_first=False), SEQUENCES),
    "cross-attention": (partial(attention, True), SEQUENCES),
    "cross-attention, sequence first": (partial(attention, True, batch_first=False), SEQUENCES),
    "attention without biases": (partial(attention, True, bias=False), SEQUENCES),
    "attention with keys of another width": (partial(attention, True, 6, kdim=6, vdim=6), SEQUENCES),
    "attention with a bias as a key": (partial(attention, add_bias_kv=True), SEQUENCES),
    "attention with a zero as a key": (partial(attention, add_zero_attn=True), SEQUENCES),
    "attention with padding": (partial(attention, run=attend_to_some), SEQUENCES),
    "attention to the past": (partial(attention, run=attend_to_the_past), SEQUENCES),
    "encoder": (encoder, IDS),
    "encoder, sequence first": (partial(encoder, batch_first=False), IDS),
    "encoder, norm first": (partial(encoder, norm_first=True, activation="gelu"), IDS),
    "lstm": (partial(recurrent, nn.LSTM, 10, num_layers=2, bidirectional=True), STEPS),
    "lstm with a projection, sequence first": (
        partial(recurrent, nn.LSTM, 3, batch_first=False, proj_size=3),
        STEPS,
    ),
    "gru": (partial(recurrent, nn.GRU, 5), STEPS),
    "gru cell": (
        _body(lambda model, x: model.head(model.cell(x, model.body(x))), cell=partial(nn.GRUCell, 5, 8)),
        POINTS,
    ),
    "weight norm": (lambda: _convolution(lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), IMAGES),
    "a standardized weight": (lambda: _convolution(lambda: Standardized(3, 4, 3)), IMAGES),
    "a layer that computes something else": (lambda: nn.Sequential(Doubled(5, 8), Doubled(8, 3)), POINTS),
    "a parameter without a call of its layer": (
        _body(lambda model, x: F.linear(model.body(x).relu(), model.head.weight, model.head.bias)),
        POINTS,
    ),
    "a layer called by a keyword": (_body(lambda model, x: model.head(input=model.body(input=x).relu())), POINTS),
    "bilinear": (_body(lambda model, x: model.head(model.body(x), x), head=partial(nn.Bilinear, 8, 5, 3)), POINTS),
    "several rows per sample": (
        lambda: Then(
            lambda model, x: model.head(model.body(x.flatten(0, 1)).tanh().unflatten(0, (-1, x.shape[1])).sum(1)),
            body=nn.Linear(8, 6),
            head=nn.Linear(6, 3),
        ),
        SEQUENCES,
    ),
    "rows in another order": (
        lambda: Then(rows_in_another_order, body=nn.Linear(8, 6), head=nn.Linear(6, 3)),
        SEQUENCES,
    ),
    "activations in place": (
        lambda: Then(
            in_place,
            conv=nn.Conv2d(3, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            again=nn.Conv2d(4, 4, 1),
            relu=nn.ReLU(inplace=True),
            head=nn.Linear(4, 3),
        ),
        IMAGES,
    ),
    "a branch that comes back as a dict": (
        _body(lambda model, x: {"logits": model.head(model.body(x).relu())}),
        POINTS,
    ),
    "parameters in containers": (Containers, POINTS),
    "a bag of tokens": (
        lambda: nn.Sequential(
            nn.EmbeddingBag(11, 4, mode="mean", padding_idx=2, scale_grad_by_freq=True), nn.Tanh(), nn.Linear(4, 3)
        ),
        IDS,
    ),
    "attention to one sample at a time": (
        partial(attention, batch_first=False, run=attend_one_by_one),
        SEQUENCES,
    ),
    "a cell over a sequence": (lambda: Then(cell_by_cell, cell=nn.GRUCell(8, 6), head=nn.Linear(6, 3)), SEQUENCES),
    "encoder and decoder": (
        lambda: Then(
            lambda model, ids: model.head(model.both(model.embedding(ids), model.embedding(ids.flip(1))).mean(1)),
            embedding=nn.Embedding(11, 8),
            both=nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
            head=nn.Linear(8, 3),
        ),
        IDS,
    ),
}
