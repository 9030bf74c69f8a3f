"""Small networks, each awkward in a way of its own for whoever wants the gradient of single samples."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


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


def rows_in_another_order(model: Any, x: Tensor) -> Tensor:
    """Run all first positions, then all second ones: the rows of one sample are not neighbors."""
    mixed = model.body(x.transpose(0, 1).flatten(0, 1)).tanh()
    return model.head(mixed.unflatten(0, (x.shape[1], -1)).sum(0))


def in_place(model: Any, x: Tensor) -> Tensor:
    x = model.relu(model.norm(model.conv(x)))
    branch = model.again(x)
    branch += x
    return model.head(model.relu(branch).mean((2, 3)))


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
}
