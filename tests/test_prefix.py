import weakref
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_al.noise import Noise, noisy_parameters
from lightning_al.perturb import perturbed
from lightning_al.prefix import CleanPrefix, record_prefix
from lightning_al.seeding import make_generator

Forward = Callable[[], Tensor]


class Count(TorchDispatchMode):
    """Counts the operators that really run: a mode inside of this one may have recalled others."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def seeded_model(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, below: int) -> Tensor:
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(0))


def record(forward: Forward, noisy: Sequence[Tensor]) -> tuple[Tensor, CleanPrefix | None]:
    with torch.no_grad():
        return record_prefix(forward, noisy)


def replay(forward: Forward, noisy: Sequence[Tensor], magnitude: float = 0.3) -> tuple[Counter[str], Counter[str]]:
    """Check two noisy passes bit for bit, and return the operators of a pass in full and of one that replays."""
    clean, prefix = record(forward, noisy)
    assert prefix is not None
    with torch.no_grad():
        assert torch.equal(clean, forward())
        for seed in range(2):  # the first pass must leave the recording as it was
            with perturbed(noisy, Noise(magnitude).draw(noisy, make_generator(seed))):
                with Count() as full:
                    expected = forward()
                with Count() as spared:
                    found = prefix.run(forward)
            assert not torch.equal(expected, clean)
            assert torch.equal(found, expected)
        assert torch.equal(prefix.run(forward), clean)
    return full.of, spared.of


def replay_modules(model: nn.Module, forward: Forward, modules: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    return replay(forward, noisy_parameters(model, forward, modules))


# ---------------------------------------------------------------- models that nobody here wrote


@pytest.mark.parametrize(
    ("modules", "convolutions"), [(["layer4", "fc"], 5), (["fc"], 0), (["layer1.0.conv2"], 18), (["layer4.1.bn2"], 0)]
)
def test_a_resnet_runs_only_the_convolutions_that_the_noise_reaches(modules, convolutions):
    model = seeded_model(lambda: torchvision.models.resnet18(num_classes=3))
    images = normal(2, 3, 32, 32)
    full, spared = replay_modules(model, lambda: model(images), modules)
    assert full["convolution"] == 20
    assert spared["convolution"] == convolutions


@pytest.mark.parametrize("fast", [True, False])
def test_a_vision_transformer_runs_only_its_last_block(fast):
    model = seeded_model(lambda: torchvision.models.VisionTransformer(32, 16, 3, 2, 16, 32, num_classes=3))
    images = normal(2, 3, 32, 32)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        full, spared = replay_modules(model, lambda: model(images), ["encoder_layer_2", "heads"])
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert (full["native_layer_norm"], spared["native_layer_norm"]) == (7, 3)  # two a block, and the last one
    assert (full["convolution"], spared["convolution"]) == (1, 0)
    assert (full["_native_multi_head_attention"], spared["_native_multi_head_attention"]) == (
        (3, 1) if fast else (0, 0)
    )


SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_labels": 3}


@pytest.mark.parametrize("masked", [False, True])
def test_a_language_model_runs_only_its_last_block(masked):
    config = transformers.BertConfig(**SIZES, num_attention_heads=2)
    model = seeded_model(lambda: transformers.BertForSequenceClassification(config))
    ids, mask = tokens(2, 7, below=50), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids}
    full, spared = replay_modules(model, lambda: model(**inputs).logits, ["layer.2", "classifier"])
    assert (full["addmm"], spared["addmm"]) == (20, 8)  # six a block, pooler and classifier
    assert (full["embedding"], spared["embedding"]) == (3, 0)
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert (full[attention], spared[attention]) == (3, 1)


def test_a_decoder_that_counts_positions_runs_only_its_last_block():
    config = transformers.LlamaConfig(**SIZES, num_attention_heads=2, pad_token_id=0)
    model = seeded_model(lambda: transformers.LlamaForSequenceClassification(config))
    ids, mask = tokens(2, 7, below=50), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    full, spared = replay_modules(
        model, lambda: model(input_ids=ids, attention_mask=mask).logits, ["layers.2", "score"]
    )
    assert (full["embedding"], spared["embedding"]) == (1, 0)
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert (full[attention], spared[attention]) == (3, 1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_of_the_transformer_encoder_are_not_recorded():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder, head = seeded_model(lambda: nn.TransformerEncoder(layer, 2)), nn.Linear(8, 3)
    x, mask = normal(4, 5, 8), torch.zeros(4, 5, dtype=torch.bool)
    mask[1, 3:] = mask[0, 4:] = True

    def forward() -> Tensor:
        return head(encoder(x, src_key_padding_mask=mask).mean(1))

    output, prefix = record(forward, list(head.parameters()))
    assert prefix is None
    with torch.no_grad():
        assert torch.equal(output, forward())


# ---------------------------------------------------------------- architectures


class UNet(nn.Module):
    """Skip connections lead around the middle, one of them to the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])
        self.middle = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.up = nn.ModuleList([nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x).relu()
        second = self.down[1](nn.functional.max_pool2d(first, 2)).relu_()
        deep = self.middle(second)
        wide = nn.functional.interpolate(self.up[0](torch.cat([deep, second], 1)).relu(), scale_factor=2)
        return self.up[1](torch.cat([wide, first], 1))


@pytest.mark.parametrize(
    ("modules", "convolutions"),
    [(["middle"], 4), (["middle.2"], 3), (["up"], 2), (["up.1"], 1), (["down.1"], 5), (["down.1", "up.1"], 5)],
)
def test_skip_connections_carry_what_is_clean_around_the_noise(modules, convolutions):
    model = seeded_model(UNet)
    images = normal(2, 2, 8, 8)
    full, spared = replay_modules(model, lambda: model(images), modules)
    assert full["convolution"] == 6
    assert spared["convolution"] == convolutions


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(6, 5, batch_first=True)
        self.lstm = nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(self.lstm(self.encoder(x)[0])[0][:, -1])


def test_a_noisy_lstm_reads_what_a_clean_one_wrote():
    model = seeded_model(Recurrent)
    ids = tokens(3, 4, below=11)
    full, spared = replay_modules(model, lambda: model(ids), ["lstm", "head"])
    assert (full["embedding"], spared["embedding"]) == (1, 0)
    assert (full["mkldnn_rnn_layer"], spared["mkldnn_rnn_layer"]) == (5, 4)


def test_under_a_noisy_head_not_a_single_operator_of_an_lstm_runs():
    model = seeded_model(Recurrent)
    ids = tokens(3, 4, below=11)
    spared = replay_modules(model, lambda: model(ids), ["head"])[1]
    # the head's own two, and memory that is not read; `detach` recalls what the head reads
    assert {name: count for name, count in spared.items() if name != "empty_strided"} == {
        "t": 1,
        "addmm": 1,
        "detach": 1,
    }


def test_an_lstm_that_starts_from_zero_runs_once_under_a_noisy_head():
    lstm, head = seeded_model(lambda: nn.LSTM(4, 5, batch_first=True)), nn.Linear(5, 2)
    x = normal(3, 4, 4)
    full, spared = replay(lambda: head(lstm(x)[0][:, -1]), list(head.parameters()))
    assert (full["mkldnn_rnn_layer"], spared["mkldnn_rnn_layer"]) == (1, 0)


def test_a_frozen_backbone_runs_once():
    backbone = seeded_model(lambda: torchvision.models.squeezenet1_1(num_classes=5)).requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    images = normal(2, 3, 32, 32)
    noisy = noisy_parameters(model, lambda: model(images))
    assert len(noisy) == 4
    full, spared = replay(lambda: model(images), noisy)
    assert (full["convolution"], spared["convolution"]) == (26, 0)
    assert (full["addmm"], spared["addmm"]) == (2, 2)


def test_frozen_and_noisy_layers_may_alternate():
    model = seeded_model(lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(6))))
    x = normal(3, 4)
    full, spared = replay(lambda: model(x), [model[2].bias, model[4].weight])
    # clean layers behind the noise run as well, and of the first noisy one only the transposed weight is clean
    assert (full["addmm"], spared["addmm"]) == (6, 4)
    assert (full["t"], spared["t"]) == (6, 1)


def test_a_tied_weight_is_noisy_wherever_it_is_used():
    embedding, middle, decoder = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11)
    decoder.weight = embedding.weight
    ids, x = tokens(3, 4, below=11), normal(3, 6)

    def forward() -> Tensor:
        return decoder(embedding(ids).mean(1) + middle(x))

    full, spared = replay(forward, [embedding.weight])
    assert (full["embedding"], spared["embedding"]) == (1, 1)
    assert (full["addmm"], spared["addmm"]) == (2, 1)


# ---------------------------------------------------------------- operators that share or change memory

X = normal(3, 4)


def relu_in_place(body: nn.Linear, head: nn.Linear) -> Tensor:
    return head(nn.functional.relu(body(X), inplace=True))


def slices(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    return head(h.view(4, 3).t()) + h[:, ::2] + h.expand(2, 3, 4)[1].unbind(1)[3].unsqueeze(1)


def chunks(body: nn.Linear, head: nn.Linear) -> Tensor:
    left, right = body(X).chunk(2, 1)
    return head(torch.cat([right, left], 1)) * left


def several_results(body: nn.Linear, head: nn.Linear) -> Tensor:
    values, order = body(X).sort(1)
    return head(values).gather(1, order.clamp(max=1)[:, :2])


def written_through_a_view(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    h[:, :2].zero_()
    h.add_(1)
    return head(h) + h[:, :2]


def read_in_two_states(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    before = h.relu()
    h.mul_(2)
    return head(h) + head(before)


def noisy_in_place(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    return head(h).mul_(2).add_(h[:, :2]).clamp_(min=-1)


def noise_copied_into_noisy_memory(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    out = head(h)
    out[:, 0] = h[:, 0]
    return out


def a_function_with_out(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    torch.add(h, 1, out=h)
    return head(h)


def complex_numbers(body: nn.Linear, head: nn.Linear) -> Tensor:
    spectrum = torch.fft.fft(body(X))
    return head(torch.view_as_real(spectrum).flatten(1)[:, :4]) + spectrum.real[:, :2]


def literal_tensors(body: nn.Linear, head: nn.Linear) -> Tensor:
    return head(body(X)) * torch.tensor([1.0, 2.0]) + X.new_ones(3, 2)


def numbers_read_from_clean_tensors(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    return head(h) * h.abs().max().item() if bool((h < 100).all()) else head(h)


SHARING = [
    relu_in_place,
    slices,
    chunks,
    several_results,
    written_through_a_view,
    read_in_two_states,
    noisy_in_place,
    noise_copied_into_noisy_memory,
    a_function_with_out,
    complex_numbers,
    literal_tensors,
    numbers_read_from_clean_tensors,
]


@pytest.mark.parametrize("forward", SHARING, ids=lambda forward: forward.__name__)
def test_shared_and_rewritten_memory_is_recalled_as_it_was_read(forward):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body, head = nn.Linear(4, 4), nn.Linear(4, 2)
    full, spared = replay(lambda: forward(body, head), list(head.parameters()))
    heads = full["addmm"] - 1
    assert spared["addmm"] == heads  # the body alone is spared


def clean_written_after_a_noisy_read(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    s = head(h)
    h.add_(1)
    return s + h[:, :2]


def clean_written_through_a_view_after_a_noisy_read(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    s = head(h.view(3, 4))
    h[:, 0] = 0
    return s + h[:, :2]


def clean_memory_filled_with_noise(body: nn.Linear, head: nn.Linear) -> Tensor:
    h, out = body(X), torch.zeros(3, 2)
    out[:, 1:] = head(h)[:, 1:]
    return out


def clean_memory_as_noisy_out(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    torch.mul(h, head(h).sum(), out=h)
    return h


@pytest.mark.parametrize(
    "forward",
    [
        clean_written_after_a_noisy_read,
        clean_written_through_a_view_after_a_noisy_read,
        clean_memory_filled_with_noise,
        clean_memory_as_noisy_out,
    ],
    ids=lambda forward: forward.__name__,
)
def test_clean_memory_that_changes_under_noise_is_not_recorded(forward):
    body, head = nn.Linear(4, 4), nn.Linear(4, 2)
    output, prefix = record(lambda: forward(body, head), list(head.parameters()))
    assert prefix is None
    with torch.no_grad():
        assert torch.equal(output, forward(body, head))


# ---------------------------------------------------------------- what Python reads


def layers() -> tuple[nn.Linear, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(4, 4), nn.Linear(4, 2)


@pytest.mark.parametrize(
    "factory", [lambda: torch.zeros(3, 4), lambda: torch.arange(4.0), lambda: torch.full((4,), 2.0)]
)
def test_tensors_made_from_nothing_do_not_stop_a_replay(factory):
    body, head = layers()
    full, spared = replay(lambda: head(body(X) + factory()), list(head.parameters()))
    assert (full["addmm"], spared["addmm"]) == (2, 1)


def number(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    out = head(h)
    return out + h[:, :2] * out.abs().max().item()


def listed(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    return torch.tensor(head(h).tolist()) + h[:, :2]


def listed_beside_noise(body: nn.Linear, head: nn.Linear) -> Tensor:
    out = head(body(X))
    return out + torch.tensor(out.tolist())


def listed_lengths(body: nn.Linear, head: nn.Linear) -> Tensor:
    lengths = (X > -100).sum(1).tolist()  # 4, 4, 4
    parts = head(body(X)).repeat(4, 1).split(lengths)
    return torch.stack([part.mean(0) for part in parts])


def mask_as_an_array(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    return head(h) * float((h > 0).numpy().sum())


def many_rows(body: nn.Linear, head: nn.Linear) -> Tensor:
    out = head(body(X))
    rows = (out > 0).nonzero()
    return out + torch.ones(len(rows), 2).sum(0)


def clean_setting_of_noise(body: nn.Linear, head: nn.Linear) -> Tensor:
    h = body(X)
    out = head(h)
    return out + h.clamp(max=float(out.max()))[:, :2]


@pytest.mark.parametrize(
    "forward",
    [number, listed, listed_beside_noise, listed_lengths, mask_as_an_array, many_rows, clean_setting_of_noise],
    ids=lambda forward: forward.__name__,
)
def test_values_that_python_reads_are_right(forward):
    body, head = layers()
    prefix = record(lambda: forward(body, head), list(head.parameters()))[1]
    if prefix is None:
        assert forward is listed  # by the operators alone, the noise does not reach that output
        return
    with torch.no_grad():
        head.bias.add_(10.0)
        expected = forward(body, head)
        lucky = [torch.full((3,), -7) for _ in range(1000)]  # leave no lucky numbers in memory that is not initialized
        del lucky
        assert torch.equal(prefix.run(lambda: forward(body, head)), expected)


def test_what_python_alone_reads_stays_in_memory():
    body, head = layers()

    def forward() -> Tensor:
        h = body(X)
        lengths = (h > -100).sum(1).tolist()
        return torch.stack([part.mean(0) for part in head(h).repeat(4, 1).split(lengths)])

    full, spared = replay(forward, list(head.parameters()))
    assert (full["addmm"], spared["addmm"]) == (2, 1)
    assert (full["gt"], spared["gt"]) == (full["sum"], spared["sum"]) == (1, 0)


# ---------------------------------------------------------------- nothing to spare


def test_an_output_that_noise_does_not_reach_has_no_prefix():
    body, head = layers()
    side = nn.Linear(4, 2)

    def forward() -> Tensor:
        h = body(X)
        side(h)
        return head(h).softmax(1)

    output, prefix = record(forward, list(side.parameters()))
    assert prefix is None
    with torch.no_grad():
        assert torch.equal(output, forward())


def sparse(body: nn.Linear, head: nn.Linear) -> Tensor:
    return head(torch.sparse.mm(torch.eye(3).to_sparse(), body(X)))


def quantized(body: nn.Linear, head: nn.Linear) -> Tensor:
    return head(torch.quantize_per_tensor(body(X), 0.1, 0, torch.qint8).dequantize())


def conjugated(body: nn.Linear, head: nn.Linear) -> Tensor:
    return head(torch.view_as_complex(body(X).view(3, 2, 2)).conj().real.repeat(1, 2))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("forward", [sparse, quantized, conjugated], ids=lambda forward: forward.__name__)
def test_tensors_without_plain_strided_memory_are_not_recorded(forward):
    body, head = layers()
    output, prefix = record(lambda: forward(body, head), list(head.parameters()))
    assert prefix is None
    with torch.no_grad():
        assert torch.equal(output, forward(body, head))


def test_a_model_that_is_noisy_from_the_start_has_no_prefix():
    model = seeded_model(lambda: torchvision.models.resnet18(num_classes=3))
    images = normal(2, 3, 32, 32)
    output, prefix = record(lambda: model(images), list(model.parameters()))
    assert prefix is None
    with torch.no_grad():
        assert torch.equal(output, model(images))


def test_preprocessing_without_parameters_is_no_layer_to_spare():
    model = nn.Linear(4, 2)
    prefix = record(lambda: model((X - X.mean()) / X.std()), list(model.parameters()))[1]
    assert prefix is None


def test_noise_in_the_first_layer_reaches_all_others():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Conv1d(3, 3, 1), nn.Linear(4, 2))
    # what is clean are transposed weights alone: one operator per linear layer behind the noise
    full, spared = replay(lambda: model(X), [model[0].weight])
    assert (full["addmm"], full["convolution"]) == (spared["addmm"], spared["convolution"]) == (2, 1)
    assert record(lambda: model[:3](X), list(model[0].parameters()))[1] is None


# ---------------------------------------------------------------- another path


class Branching(nn.Module):
    """Takes another path once its noisy head says so."""

    def __init__(self, usual: str, other: str) -> None:
        super().__init__()
        self.body, self.head, self.extra = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2)
        self.usual, self.other = usual, other

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        out = self.head(h)
        path = self.other if bool(out.sum() > 50) else self.usual
        if path == "short":
            return out
        if path == "noisy":
            return out.tanh() + h[:, :2]
        return self.extra(self.body(h)[:, :2]) + out  # layers that are clean


@pytest.mark.parametrize("other", ["short", "noisy", "clean"])
@pytest.mark.parametrize("usual", ["short", "noisy", "clean"])
def test_a_pass_that_takes_another_path_is_run_in_full(usual, other):
    model = seeded_model(lambda: Branching(usual, other))
    noisy = list(model.head.parameters())
    clean, prefix = record(lambda: model(X), noisy)
    assert prefix is not None
    with torch.no_grad():
        with perturbed(noisy, [torch.zeros(2, 4), torch.full((2,), 100.0)]):
            expected = model(X)
            for _ in range(2):
                assert torch.equal(prefix.run(lambda: model(X)), expected)
        # a pass on the recorded path replays again
        with Count() as spared:
            assert torch.equal(prefix.run(lambda: model(X)), clean)
    assert spared.of["addmm"] == 1


def test_an_error_of_the_model_comes_out_and_no_mode_stays_behind():
    body, head = nn.Linear(4, 4), nn.Linear(4, 2)
    broken = []

    def forward() -> Tensor:
        out = head(body(X))
        if broken:
            raise KeyError("the model's own")
        return out

    prefix = record(forward, list(head.parameters()))[1]
    assert prefix is not None
    broken.append(True)
    with pytest.raises(KeyError, match="the model's own"):
        prefix.run(forward)
    with pytest.raises(KeyError, match="the model's own"):
        record(forward, list(head.parameters()))
    with Count() as count:
        body(X)
    assert count.of["addmm"] == 1  # neither recalled nor recorded


# ---------------------------------------------------------------- memory


def test_only_what_noise_reads_stays_in_memory():
    model = nn.Sequential(nn.Linear(4, 500), nn.Linear(500, 300), nn.Tanh(), nn.Linear(300, 7), nn.Linear(7, 2))
    outputs: list[weakref.ref[Tensor]] = []
    for layer in model:
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(weakref.ref(output)))
    prefix = record(lambda: model(X), list(model[4].parameters()))[1]
    assert prefix is not None
    assert [output() is not None for output in outputs] == [False, False, False, True, False]
    assert prefix.nbytes == 3 * 7 * 4


def test_a_skip_connection_is_kept_next_to_the_main_path():
    model = seeded_model(UNet)
    images = normal(2, 2, 8, 8)
    prefix = record(lambda: model(images), list(model.middle.parameters()))[1]
    assert prefix is not None
    assert prefix.nbytes == 4 * (2 * 4 * 8 * 8 + 2 * 4 * 4 * 4)


def test_views_of_one_memory_are_counted_once():
    body, head = nn.Linear(4, 6), nn.Linear(2, 2)

    def forward() -> Tensor:
        h = body(X)
        return sum(head(part) for part in h.split(2, 1)) + h[:, :2]

    prefix = record(forward, list(head.parameters()))[1]
    assert prefix is not None
    assert prefix.nbytes == 3 * 6 * 4


def test_the_recording_lets_go_of_everything_when_it_is_dropped():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    outputs: list[weakref.ref[Tensor]] = []
    model[0].register_forward_hook(lambda layer, inputs, output: outputs.append(weakref.ref(output)))
    prefix = record(lambda: model(X), list(model[1].parameters()))[1]
    assert outputs[0]() is not None
    del prefix
    assert outputs[0]() is None


class Cached(nn.Module):
    """Writes what it saw into a buffer of its own, as caches of masks and positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = layers()
        self.register_buffer("cache", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.cache.copy_(self.body(x))
        return self.head(self.cache)


def test_memory_that_outlives_the_pass_is_not_recorded():
    model = Cached()
    assert record(lambda: model(X), list(model.head.parameters()))[1] is None


def test_a_batch_that_is_written_to_is_not_recorded():
    body, head = layers()
    x = X.clone()
    assert record(lambda: head(body(x.view(3, 4).mul_(1.0))), list(head.parameters()))[1] is None
