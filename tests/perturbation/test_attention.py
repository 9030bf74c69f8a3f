import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_al.perturbation.attention import can_be_opened, open_attention
from tests.perturbation.networks import made, normal

LENGTH, KEYS, SAMPLES, WIDTH, HEADS = 5, 6, 3, 8, 2


def masks() -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(LENGTH, KEYS, generator=generator) < 0.3
    by_head = torch.rand(SAMPLES * HEADS, LENGTH, KEYS, generator=generator) < 0.3
    hidden[:, 0], by_head[..., 0] = False, False  # somewhere to look
    return {"none": None, "bool": hidden, "float": normal(LENGTH, KEYS), "by head": by_head}


def paddings() -> dict[str, Tensor | None]:
    padding = torch.zeros(SAMPLES, KEYS, dtype=torch.bool)
    padding[1, -2:], padding[2, 3:] = True, True
    return {"none": None, "bool": padding, "float": normal(SAMPLES, KEYS, seed=3)}


def attention_and_inputs(batch_first: bool, same: bool = False, bias: bool = True):
    attention = made(lambda: nn.MultiheadAttention(WIDTH, HEADS, bias=bias, dropout=0.3, batch_first=batch_first))
    inputs = [normal(SAMPLES, length, WIDTH, seed=seed) for seed, length in enumerate((LENGTH, KEYS, KEYS))]
    inputs = [tensor if batch_first else tensor.transpose(0, 1) for tensor in inputs]
    return attention, inputs[1:2] * 3 if same else inputs


def assert_same(attention: nn.MultiheadAttention, inputs: list[Tensor], **options) -> None:
    projected = []

    def project(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        projected.append(weight)
        return F.linear(inputs, weight, bias)

    expected, found = attention(*inputs, **options), open_attention(attention, project, *inputs, **options)
    assert torch.equal(torch.cat(projected), attention.in_proj_weight)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-14)
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", paddings())
@pytest.mark.parametrize("mask", masks())
def test_attention_in_the_open_masks_as_torch_does(mask, padding, need_weights, batch_first):
    attention, inputs = attention_and_inputs(batch_first)
    options = {"attn_mask": masks()[mask], "key_padding_mask": paddings()[padding], "need_weights": need_weights}
    assert_same(attention, inputs, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("average", [True, False])
def test_attention_in_the_open_gives_the_same_weights(average, same, batch_first, bias):
    attention, inputs = attention_and_inputs(batch_first, same, bias)
    assert_same(attention, inputs, average_attn_weights=average)


def test_attention_in_the_open_takes_the_hint_of_a_causal_mask():
    attention, inputs = attention_and_inputs(batch_first=True, same=True)
    mask = nn.Transformer.generate_square_subsequent_mask(KEYS, dtype=torch.float64)
    for need_weights in (True, False):
        assert_same(attention, inputs, attn_mask=mask, is_causal=True, need_weights=need_weights)


class Other(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("attention", "opens"),
    [
        (nn.MultiheadAttention(8, 2), True),
        (nn.MultiheadAttention(8, 2, bias=False, batch_first=True), True),
        (nn.MultiheadAttention(8, 2, kdim=6), False),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), False),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), False),
        (Other(8, 2), False),
        (nn.Linear(8, 2), False),
    ],
)
def test_only_attention_that_is_known_is_opened(attention, opens):
    assert can_be_opened(attention) is opens
