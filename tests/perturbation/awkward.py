"""What awkward networks are made of: parameters without a layer, layers with a catch, and ways to run them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Then(nn.Module):
    """A function of some layers, by their names."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Positions(nn.Module):
    """A class token in front, and an embedding of the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions


class LayerScale(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Doubled(nn.Linear):
    """A linear layer by its class, but not by what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x).tanh()


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardized first."""

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), True)) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


def attend(model: Any, x: Tensor, **options: Any) -> Tensor:
    """Let a model's attention run over (B, L, 8), in whichever order it takes the dimensions."""
    first = model.attention.batch_first
    own = x if first else x.transpose(0, 1)
    key, value = (model.key(own), model.value(own)) if hasattr(model, "key") else (own, own)
    mixed = model.attention(own, key, value, **options)[0]
    return model.head(mixed.mean(1 if first else 0).tanh())


def attention(cross: bool = False, width: int = 8, run: Callable[..., Tensor] = attend, **options: Any) -> nn.Module:
    options = {"batch_first": True, **options}
    layers: dict[str, nn.Module] = {"attention": nn.MultiheadAttention(8, 2, **options), "head": nn.Linear(8, 3)}
    if cross:
        layers |= {"key": nn.Linear(8, width), "value": nn.Linear(8, width)}
    return Then(run, **layers)


def attend_to_some(model: Any, x: Tensor) -> Tensor:
    return attend(model, x, key_padding_mask=x[..., 0] > 1.0, need_weights=False)


def attend_to_the_past(model: Any, x: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
    return attend(model, x, attn_mask=mask, is_causal=True, need_weights=False)


def encoder(**options: Any) -> nn.Module:
    options = {"batch_first": True, **options}
    layer = nn.TransformerEncoderLayer(8, 2, 16, **options)

    def run(model: Any, ids: Tensor) -> Tensor:
        x = model.embedding(ids)
        x = x if options["batch_first"] else x.transpose(0, 1)
        x = model.encoder(x, src_key_padding_mask=ids == 10)
        return model.head(x.mean(1 if options["batch_first"] else 0))

    return Then(
        run,
        embedding=nn.Embedding(11, 8),
        encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        head=nn.Linear(8, 3),
    )


def recurrent(kind: type[nn.RNNBase], features: int, **options: Any) -> nn.Module:
    options = {"batch_first": True, **options}

    def run(model: Any, x: Tensor) -> Tensor:
        x = x if options["batch_first"] else x.transpose(0, 1)
        last = model.rnn(x)[0].select(1 if options["batch_first"] else 0, -1)
        return model.head(last)

    return Then(run, rnn=kind(4, 5, **options), head=nn.Linear(features, 3))


def tied() -> nn.Module:
    model = Then(
        lambda model, ids: model.decoder(model.embedding(ids).mean(1).tanh()),
        embedding=nn.Embedding(11, 6),
        decoder=nn.Linear(6, 11),
    )
    model.decoder.weight = model.embedding.weight
    return model


class Containers(nn.Module):
    """Parameters that belong to containers, which are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(torch.randn(5, 5)) for _ in range(2)])
        self.shifts = nn.ParameterDict({"first": nn.Parameter(torch.randn(5))})
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x @ self.matrices[0] + self.shifts["first"]).tanh() @ self.matrices[1])


def attend_one_by_one(model: Any, x: Tensor) -> Tensor:
    return torch.stack([model.head(model.attention(one, one, one)[0].mean(0)) for one in x])


def cell_by_cell(model: Any, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), model.cell.hidden_size)
    for step in x.unbind(1):
        state = model.cell(step, state)
    return model.head(state)


def rows_in_another_order(model: Any, x: Tensor) -> Tensor:
    """Run all first positions, then all second ones: the rows of one sample are not neighbors."""
    mixed = model.body(x.transpose(0, 1).flatten(0, 1)).tanh()
    return model.head(mixed.unflatten(0, (x.shape[1], -1)).sum(0))


def in_place(model: Any, x: Tensor) -> Tensor:
    x = model.relu(model.norm(model.conv(x)))
    branch = model.again(x)
    branch += x
    return model.head(model.relu(branch).mean((2, 3)))
