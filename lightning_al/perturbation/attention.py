"""Multi-head attention that exposes its projections: torch's uses their weights without calling a layer."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_al.perturbation.gradient_norms import Norms, linear_norms
from lightning_al.perturbation.parts import Call

Project = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def can_be_opened(attention: nn.Module) -> bool:
    """Return whether `open_attention` computes the same as a module."""
    return (
        isinstance(attention, nn.MultiheadAttention)
        and type(attention).forward is nn.MultiheadAttention.forward
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


class AttentionPart:
    """The packed input projection of an `nn.MultiheadAttention`, whose `out_proj` is then called as a layer.

    Args:
        attention: A module for which `can_be_opened` is true.
        parameters: Those of `in_proj_weight` and `in_proj_bias` that count.

    """

    def __init__(self, attention: nn.MultiheadAttention, parameters: Mapping[str, nn.Parameter]) -> None:
        self.attention = attention
        self.parameters = parameters

    @contextmanager
    def watch(self, calls: list[Call]) -> Iterator[None]:
        """Replace the forward pass by `open_attention`, and record its projections."""

        def forward(query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            if query.ndim != 3:  # not a batch
                return nn.MultiheadAttention.forward(self.attention, query, *args, **kwargs)
            call = Call(self, inputs=[])

            def project(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                output = F.linear(inputs, weight, bias)
                if output.requires_grad and self.parameters:
                    call.expect_gradient(output)
                    call.inputs.append(inputs)
                return output

            output = open_attention(self.attention, project, query, *args, **kwargs)
            if call.edges:
                calls.append(call)
            return output

        vars(self.attention)["forward"] = forward  # takes precedence over the method of the class
        try:
            yield
        finally:
            del vars(self.attention)["forward"]

    def norms(self, call: Call, gradients: Sequence[Sequence[Tensor]], samples: int) -> Norms:
        """Return the norms of the packed weight and bias, in which queries, keys and values have separate rows."""
        axis = 0 if self.attention.batch_first else 1
        packed: dict[str, list[Tensor]] = {"in_proj_weight": [], "in_proj_bias": []}
        for position, inputs in enumerate(call.inputs):
            output_gradients = [along[position].movedim(axis, 0) for along in gradients]
            norms = linear_norms(inputs.movedim(axis, 0), output_gradients, samples)
            packed["in_proj_weight"].append(norms["weight"])
            packed["in_proj_bias"].append(norms["bias"])
        return {name: torch.stack(norms).sum(0) for name, norms in packed.items()}


def open_attention(
    attention: nn.MultiheadAttention,
    project: Project,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute `nn.MultiheadAttention.forward` in eval mode, with exposed projections.

    Args:
        attention: The module with the weights.
        project: Called with inputs, weight and bias in place of `F.linear`.
        query: (B, L, E), or (L, B, E) unless `batch_first`; for all arguments see torch.
        key: (B, S, E).
        value: (B, S, E).
        key_padding_mask: (B, S).
        need_weights: Whether to return the weights of the attention.
        attn_mask: (L, S) or (B heads, L, S).
        average_attn_weights: Whether to average them over the heads.
        is_causal: A hint about `attn_mask`, which is not used.

    Returns:
        (B, L, E) or (L, B, E), and weights (B, L, S), (B, heads, L, S) or None.

    """
    heads, axis = attention.num_heads, 0 if attention.batch_first else 1
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if query is key and key is value:
        projections = project(query, weight, bias).chunk(3, -1)
    else:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        projections = tuple(map(project, (query, key, value), weight.chunk(3), biases))
    # (B, heads, length, E / heads)
    q, k, v = (part.movedim(axis, 0).unflatten(-1, (heads, -1)).transpose(1, 2) for part in projections)
    mask = _additive_mask(attn_mask, q)
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, heads))
    padding = _additive_mask(key_padding_mask, q)
    if padding is not None:
        padding = padding[:, None, None, :]
        mask = padding if mask is None else mask + padding
    weights: Tensor | None = None
    if need_weights:
        products = q @ k.mT / math.sqrt(q.shape[-1])
        weights = (products if mask is None else products + mask).softmax(-1)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2).movedim(0, axis)), weights


def _additive_mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a mask as numbers that are added before the softmax."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, -math.inf)
