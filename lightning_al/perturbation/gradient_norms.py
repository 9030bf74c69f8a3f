r"""Squared norms of per-sample gradients, from a layer's input and the gradient at its output.

The gradient of one sample with respect to a weight is a sum of outer products over the positions $t$ at which the layer
is applied, $G = \sum_t g_t a_t^T$. Its squared norm is also $\langle g g^T, a a^T \rangle$, in products of T x T, which
is far cheaper where positions are few. A convolution is a linear layer on windows.

Each function for a layer takes the inputs (B, ...), gradients of the same samples along D directions, and the number of
rows per sample; it returns squared norms (B, D) by name of the parameter.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norms: TypeAlias = dict[str, Tensor]
LayerNorms: TypeAlias = Callable[[Any, Tensor, Sequence[Tensor], int], Norms]

# Numbers in the windows or weight gradients held at a time: 16 MB in single precision, to bound memory.
SLICE_NUMBERS = 2**22


def layer_gradient_norms(layer: nn.Module, inputs: Tensor, gradients: Sequence[Tensor], samples: int) -> Norms:
    """Return the squared norms of every sample's gradients with respect to the parameters of a layer.

    Args:
        layer: One of `LAYER_NORMS`.
        inputs: (B r, ...) inputs of the layer; r consecutive rows belong to one sample.
        gradients: D tensors of the shape of its output.
        samples: B.

    Returns:
        (B, D) squared norms for `"weight"` and, where there is one, `"bias"`.

    Cost: about one forward pass of the layer for each direction, less where its output has few positions.

    Example:
        >>> layer, inputs, gradient = nn.Linear(2, 1), torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])
        >>> layer_gradient_norms(layer, inputs, [gradient], samples=1)
        {'weight': tensor([[100.]]), 'bias': tensor([[4.]])}

    References:
        Goodfellow, Efficient Per-Example Gradient Computations, 2015. Rochette, Manoel and Tramel, Efficient
        Per-Example Gradient Computations in Convolutional Neural Networks, 2019. Li, Tramer, Liang and Hashimoto,
        Large Language Models Can Be Strong Differentially Private Learners, 2022 (the T x T products).

    """
    norms = known_norms(layer)
    assert norms is not None
    rows = len(inputs) // samples
    size = rows * max(1, SLICE_NUMBERS // (rows * _numbers_per_row(layer, inputs, gradients)))
    parts = [
        norms(layer, inputs[start : start + size], [gradient[start : start + size] for gradient in gradients], rows)
        for start in range(0, len(inputs), size)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _numbers_per_row(layer: Any, inputs: Tensor, gradients: Sequence[Tensor]) -> int:
    """Return how many numbers one row of the inputs needs at a time: windows, and products of either kind."""
    weight = next(layer.parameters())
    if weight.ndim == 1:
        return int(inputs[0].numel())
    kernel = torch.Size(getattr(layer, "kernel_size", ())).numel()
    positions: int = gradients[0][0].numel() // weight.shape[0]
    count: int = max(inputs[0].numel() * kernel, len(gradients) * min(weight.numel(), positions**2))
    return count


def outer_product_norms(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the squared norms of sums of outer products.

    Args:
        rows: (B, T, D, O) gradients at T positions, along D directions.
        columns: (B, T, I) inputs at these positions.

    Returns:
        (B, D) squared norms of the D matrices (O, I) of each sample.

    """
    _, positions, directions, width = rows.shape
    fan_in = columns.shape[2]
    if positions == 1:
        return rows.square().sum((1, 3)) * columns.square().sum((1, 2)).unsqueeze(1)
    norms: Tensor
    if positions * (fan_in + directions * width) < directions * width * fan_in:
        rows = rows.transpose(1, 2)  # (B, D, T, O)
        norms = ((rows @ rows.mT) * (columns @ columns.mT).unsqueeze(1)).sum((2, 3))
    else:
        products = rows.flatten(2).mT @ columns  # (B, D O, I)
        norms = torch.linalg.vector_norm(products.unflatten(1, (directions, width)), dim=(2, 3)).square()
    return norms


def linear_norms(inputs: Tensor, gradients: Sequence[Tensor], samples: int) -> Norms:
    """Return the norms (B, D) of a linear layer, from its inputs (B r, ..., in) and gradients (B r, ..., out)."""
    columns = inputs.reshape(samples, -1, inputs.shape[-1])
    stacked = torch.stack([gradient.reshape(samples, -1, gradient.shape[-1]) for gradient in gradients], 2)
    return {"weight": outer_product_norms(stacked, columns), "bias": _bias_norms(stacked)}


def _linear(layer: nn.Linear, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    return linear_norms(inputs, gradients, len(inputs) // rows)


def _convolution(layer: Any, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    stacked, padded = _by_position(gradients, rows), _pad(layer, inputs)
    depthwise = layer.groups == layer.in_channels > 1
    norms = (
        _depthwise_norms(layer, padded, gradients, rows) if depthwise else _window_norms(layer, padded, stacked, rows)
    )
    return {"weight": norms, "bias": _bias_norms(stacked)}


def _transposed_convolution(layer: Any, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    # a convolution with exchanged roles: the inputs act as the gradient, and the gradient is cut into windows
    sides = [padding for padding in reversed(layer.padding) for _ in range(2)]
    # a padded output may have room for more windows than there are inputs
    places = [(size - 1) * stride + 1 for size, stride in zip(inputs.shape[2:], layer.stride, strict=True)]
    spans = [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    stacked = _by_position([inputs], rows)
    norms = []
    for gradient in gradients:
        padded = F.pad(gradient, sides)
        for dimension, (place, span) in enumerate(zip(places, spans, strict=True), start=2):
            padded = padded.narrow(dimension, 0, place + span)
        norms.append(_window_norms(layer, padded, stacked, rows))
    return {"weight": torch.cat(norms, 1), "bias": _bias_norms(_by_position(gradients, rows))}


def _window_norms(layer: Any, padded: Tensor, stacked: Tensor, rows: int) -> Tensor:
    """Return the norms (B, D) of a convolution's weight, from gradients (B, T, D, O) and padded inputs."""
    windows = padded
    shape = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for dimension, (size, stride, dilation) in enumerate(shape, start=2):
        windows = windows.unfold(dimension, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (B r, C, *places, *kernel) to (B, G, T, K C / G), the channels innermost as they may lie in memory
    spatial, samples, groups = len(layer.kernel_size), len(padded) // rows, layer.groups
    windows = windows.unflatten(0, (samples, rows)).unflatten(2, (groups, -1))
    places, kernel = range(4, 4 + spatial), range(4 + spatial, 4 + 2 * spatial)
    windows = windows.permute(0, 2, 1, *places, *kernel, 3)
    columns = windows.reshape(samples * groups, stacked.shape[1], -1)
    by_group = stacked.unflatten(3, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)  # (B G, T, D, O / G)
    norms: Tensor = outer_product_norms(by_group, columns).unflatten(0, (samples, groups)).sum(1)
    return norms


def _depthwise_norms(layer: Any, padded: Tensor, gradients: Sequence[Tensor], rows: int) -> Tensor:
    """Return the norms (B, D) of a depthwise convolution, whose windows are too narrow for products of matrices."""
    spans = [
        (stride * (size - 1) + 1, stride) for size, stride in zip(gradients[0].shape[2:], layer.stride, strict=True)
    ]
    kernel_offsets = [
        range(0, size * dilation, dilation) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    norms = padded.new_zeros(len(padded) // rows, len(gradients))
    for starts in product(*kernel_offsets):
        places = [slice(start, start + span, stride) for start, (span, stride) in zip(starts, spans, strict=True)]
        window: tuple[Any, ...] = (slice(None), slice(None), *places)
        shifted = padded[window].unsqueeze(2)  # (B r, C, 1, *places)
        along = [gradient.unflatten(1, (layer.groups, -1)) * shifted for gradient in gradients]
        norms += summed_norms([weight_gradient.flatten(3).sum(3).flatten(1) for weight_gradient in along], rows)
    return norms


def _pad(layer: Any, inputs: Tensor) -> Tensor:
    """Pad the inputs (B r, C, *places) as a convolution does."""
    sizes, dilations = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        totals = [dilation * (size - 1) for size, dilation in zip(sizes, dilations, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(0, 0)] * len(sizes) if layer.padding == "valid" else [(side, side) for side in layer.padding]
    sides = [side for pair in reversed(pairs) for side in pair]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(inputs, sides, mode) if any(sides) else inputs


def _batch_norm(layer: Any, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    normalized = F.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
    return _channel_affine(normalized, gradients, rows)


def _instance_norm(layer: Any, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    running = layer.running_mean, layer.running_var
    alone = not layer.track_running_stats
    normalized = F.instance_norm(inputs, *running, use_input_stats=alone, eps=layer.eps)
    return _channel_affine(normalized, gradients, rows)


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    return _channel_affine(F.group_norm(inputs, layer.num_groups, eps=layer.eps), gradients, rows)


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    normalized = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return _feature_affine(normalized, gradients, rows, len(layer.normalized_shape))


def _rms_norm(layer: nn.RMSNorm, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    normalized = F.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return _feature_affine(normalized, gradients, rows, len(layer.normalized_shape))


def _channel_affine(normalized: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    """Return the norms of a scale and a shift per channel of (B r, C, ...)."""
    normalized = normalized.flatten(2) if normalized.ndim > 2 else normalized.unsqueeze(2)
    weight, bias = [], []
    for gradient in gradients:
        gradient = gradient.reshape(normalized.shape)
        weight.append((gradient * normalized).sum(2))
        bias.append(gradient.sum(2))
    return {"weight": summed_norms(weight, rows), "bias": summed_norms(bias, rows)}


def _feature_affine(normalized: Tensor, gradients: Sequence[Tensor], rows: int, dimensions: int) -> Norms:
    """Return the norms of a scale and a shift per feature of (B r, ..., *features)."""
    flat = normalized.flatten(-dimensions).flatten(1, -2) if normalized.ndim > dimensions + 1 else normalized.flatten(1)
    flat = flat.reshape(len(normalized), -1, flat.shape[-1])
    weight = [(gradient.reshape(flat.shape) * flat).sum(1) for gradient in gradients]
    bias = [gradient.reshape(flat.shape).sum(1) for gradient in gradients]
    return {"weight": summed_norms(weight, rows), "bias": summed_norms(bias, rows)}


def _embedding(layer: nn.Embedding, inputs: Tensor, gradients: Sequence[Tensor], rows: int) -> Norms:
    # a row of the table gets the sum over all positions of its token; noise changes that of the padding, too
    samples, tokens = len(inputs) // rows, inputs.reshape(len(inputs) // rows, -1)
    owners = torch.arange(samples, device=tokens.device).unsqueeze(1)
    keys, entries = torch.unique(tokens + owners * layer.num_embeddings, return_inverse=True)
    norms = []
    for gradient in gradients:
        flat = gradient.reshape(-1, gradient.shape[-1])
        sums = flat.new_zeros(len(keys), flat.shape[1]).index_add_(0, entries.flatten(), flat)
        norms.append(flat.new_zeros(samples).index_add_(0, keys // layer.num_embeddings, sums.square().sum(1)))
    return {"weight": torch.stack(norms, 1)}


def _by_position(tensors: Sequence[Tensor], rows: int) -> Tensor:
    """Return (B, T, D, C) of D tensors (B r, C, *places), where T runs over the r rows and the places."""
    flat = [tensor.flatten(2).mT.reshape(len(tensor) // rows, -1, tensor.shape[1]) for tensor in tensors]
    return torch.stack(flat, 2)


def _bias_norms(stacked: Tensor) -> Tensor:
    return stacked.sum(1).square().sum(2)


def summed_norms(gradients: Sequence[Tensor], rows: int) -> Tensor:
    """Return (B, D) squared norms of D gradients (B r, P), of which r rows make one sample."""
    return torch.stack([gradient.unflatten(0, (-1, rows)).sum(1).square().sum(1) for gradient in gradients], 1)


LAYER_NORMS: dict[type[nn.Module], LayerNorms] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed_convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _batch_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.Embedding: _embedding,
}


def known_norms(layer: nn.Module) -> LayerNorms | None:
    """Return the function for the norms of a layer, or None; a subclass of a known layer may compute otherwise."""
    return next((norms for kind, norms in LAYER_NORMS.items() if isinstance(layer, kind)), None)
