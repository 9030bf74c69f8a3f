import re
from functools import partial

import pytest
import torch
import transformers
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, mobilenet_v2, resnet18
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50

from lightning_al.formulas.badge import hypothetical_residuals
from lightning_al.model.features import Features
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import make_generator
from tests.snapshot import module_picture, random_picture


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=make_generator(seed))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def read(module: nn.Module, batch, name: str | None = None) -> tuple[Tensor, Tensor]:
    """Read as a query does, and check that nothing else changes."""
    before, numbers = module_picture(module), random_picture()
    features = Features(Predictor(module), batch, name)
    read = features(batch)
    assert module_picture(module) == before
    assert random_picture() == numbers
    assert not read[1].requires_grad
    return read


# ---------------------------------------------------------------- models, with their features by hand


class MLP(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        # as wide as the output, so that the number of outputs alone does not say which layer is the last
        self.net = nn.Sequential(
            nn.Linear(4, 3),
            nn.BatchNorm1d(3),
            nn.Tanh(),
            nn.Linear(3, 30),
            nn.ReLU(inplace=True),
            nn.Linear(30, outputs),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.head(self.lstm(sequences)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self, per_token: bool = False) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.head, self.per_token = nn.Linear(8, 3), per_token

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.encoder(tokens)
        return self.head(hidden if self.per_token else hidden.mean(1))


class Dense(nn.Module):
    """A pixel classifier with another one on the side, which is called last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.side = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 1), nn.Conv2d(2, 3, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.body(images).relu()), "aux": self.side(images)}


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(input=self.body(inputs).tanh())


class Squeezed(MLP):
    def __init__(self) -> None:
        super().__init__(outputs=1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs).squeeze(1)


class Changed(nn.Module):
    """Changes the input of its last layer after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        outputs = self.head(hidden)
        hidden.zero_()
        return outputs


class Step(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs)

    def predict_step(self, batch, batch_idx):
        return self(batch)


class NoGrad(Step):
    @torch.no_grad()
    def predict_step(self, batch, batch_idx):
        return self(batch)


class Inference(Step):
    @torch.inference_mode()
    def predict_step(self, batch, batch_idx):
        return self(batch)


def resnet_features(model, images):
    hidden = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    return model.layer4(model.layer3(model.layer2(model.layer1(hidden)))).mean((2, 3))


def vit_features(model, images):
    tokens = model._process_input(images)
    return model.encoder(torch.cat([model.class_token.expand(len(images), -1, -1), tokens], dim=1))[:, 0]


def segmentation_features(model, images):
    hidden = model.backbone(images)["out"]
    for layer in list(model.classifier)[:-1]:
        hidden = layer(hidden)
    return hidden.mean((2, 3))


def mlp_features(model, inputs):
    return model.net[:-1](inputs)


IMAGES, ROWS, TOKENS = normal(3, 3, 32, 32), normal(7, 4), normal(6, 5, 8)
SEGMENTATION = {"num_classes": 4, "aux_loss": True, "weights": None, "weights_backbone": None}
ViT = partial(
    VisionTransformer,
    image_size=32,
    patch_size=8,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    mlp_dim=32,
    num_classes=5,
)
# How to make a model, a batch, and its features by hand.
MODELS = {
    "ResNet": (partial(resnet18, num_classes=5), IMAGES, resnet_features),
    "MobileNet": (
        partial(mobilenet_v2, num_classes=5),
        IMAGES,
        lambda model, images: model.features(images).mean((2, 3)),
    ),
    "ViT": (ViT, IMAGES, vit_features),
    "FCN": (partial(fcn_resnet50, **SEGMENTATION), IMAGES[:2], segmentation_features),
    "DeepLab": (partial(deeplabv3_resnet50, **SEGMENTATION), IMAGES[:2], segmentation_features),
    "MLP": (MLP, ROWS, mlp_features),
    "regression": (partial(MLP, 1), ROWS, mlp_features),
    "squeezed regression": (Squeezed, ROWS, mlp_features),
    "LSTM": (Recurrent, normal(6, 5, 4), lambda model, batch: model.lstm(batch)[0][:, -1]),
    "transformer": (Encoder, TOKENS, lambda model, tokens: model.encoder(tokens).mean(1)),
    "token classifier": (partial(Encoder, True), TOKENS, lambda model, tokens: model.encoder(tokens).mean(1)),
    "dense with a side head": (
        Dense,
        normal(3, 2, 6, 7),
        lambda model, images: model.body(images).relu().mean((2, 3)),
    ),
    "called by keyword": (ByKeyword, ROWS, lambda model, rows: model.body(rows).tanh()),
    "changed in place": (Changed, ROWS, lambda model, rows: model.body(rows)),
}


LARGE = ("ResNet", "MobileNet", "ViT", "FCN", "DeepLab")
CASES = [(case, None) for case in MODELS]
CASES += [(case, step) for case in MODELS if case not in LARGE for step in (Step, NoGrad, Inference)]


@pytest.mark.parametrize(("case", "step"), CASES)
def test_features_are_the_input_of_the_last_linear_layer(case, step):
    make, batch, by_hand = MODELS[case]
    model = seeded(make)
    with torch.no_grad():
        expected_outputs, expected = Predictor(model)(batch), by_hand(model, batch)
    outputs, features = read(model if step is None else step(model).eval(), batch)
    torch.testing.assert_close(outputs, expected_outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert len(features.unique(dim=0)) == len(batch)


@pytest.mark.parametrize("case", ["MLP", "ViT", "LSTM", "transformer"])
def test_the_factors_of_badge_are_those_of_the_gradient(case):
    make, batch, _ = MODELS[case]
    model = seeded(make).double()
    with torch.no_grad():
        predictor = Predictor(model)
        outputs, features = Features(predictor, batch.double())(batch.double())
        assert features.dtype == torch.float64
        factors = hypothetical_residuals(predictor.to_probabilities(outputs)), features
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    for row in range(len(batch)):
        logits = model(batch[row : row + 1].double())
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), head.weight)
        torch.testing.assert_close(torch.outer(factors[0][row], factors[1][row]), gradient)


# ---------------------------------------------------------------- features by name


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.unused = nn.Conv1d(4, 5, 2), nn.LSTM(5, 6, batch_first=True), nn.Linear(2, 2)
        self.body = nn.Sequential(nn.Linear(6, 7), nn.ReLU(inplace=True))
        self.head = nn.Linear(7, 3)

    def forward(self, sequences: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.conv(sequences.mT).mT)
        return self.head(self.body(hidden[:, -1]))


def test_the_output_of_a_named_module_is_averaged_over_its_positions():
    model, batch = seeded(Named), normal(6, 5, 4)
    with torch.no_grad():
        channels = model.conv(batch.mT)
        hidden = model.lstm(channels.mT)[0]
        linear = model.body[0](hidden[:, -1])
    assert (linear < 0).any()  # which the next layer sets to zero in place
    expected = {
        "conv": channels.mean(2),
        "lstm": hidden.mean(1),
        "body.0": linear,
        "body.1": linear.relu(),
        "body": linear.relu(),
        "head": model.head(linear.relu()).detach(),
    }
    for name, features in expected.items():
        torch.testing.assert_close(read(model, batch, name)[1], features)


def test_a_named_map_is_averaged_over_its_positions():
    model = seeded(MODELS["ResNet"][0])
    with torch.no_grad():
        expected = model.maxpool(model.relu(model.bn1(model.conv1(IMAGES)))).mean((2, 3))
    torch.testing.assert_close(read(model, IMAGES, "maxpool")[1], expected)


@pytest.mark.parametrize("name", ["encoder.layers.0", "encoder.layers.0.linear1", "encoder"])
def test_named_tokens_of_a_transformer_are_averaged(name):
    model = seeded(Encoder)
    hidden = model.encoder.layers[0](TOKENS)
    expected = {"encoder": model.encoder(TOKENS), "encoder.layers.0": hidden}
    features = read(model, TOKENS, name)[1]
    assert features.shape == (6, 16 if "linear" in name else 8)
    if name in expected:
        torch.testing.assert_close(features, expected[name].mean(1).detach())


class Padded(Encoder):
    def forward(self, tokens: Tensor) -> Tensor:
        mask = torch.arange(tokens.shape[1]).expand(len(tokens), -1) > 2
        return self.head(self.encoder(tokens, src_key_padding_mask=mask)[:, 0])


# torch's own, when a transformer packs its padded batch
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
def test_a_layer_of_a_transformer_that_packs_its_padded_batch():
    model = seeded(Padded)
    mask = (torch.arange(5) > 2).expand(6, -1)
    expected = model.encoder.layers[0](TOKENS, src_key_padding_mask=mask).mean(1)  # with gradients nothing is packed
    torch.testing.assert_close(read(model, TOKENS, "encoder.layers.0")[1], expected.detach())


def test_directions_have_length_1():
    with torch.no_grad():
        features = Features(Predictor(seeded(MLP)), ROWS)
        vectors, directions = features(ROWS)[1], features.directions(ROWS)
    torch.testing.assert_close(directions, vectors / vectors.norm(dim=1, keepdim=True))


def test_a_batch_of_one_and_low_precision_and_other_batches():
    model = seeded(MLP).bfloat16()
    with torch.no_grad():
        features = Features(Predictor(model), [ROWS.bfloat16(), torch.zeros(7)])
        whole, one = features(ROWS.bfloat16())[1], features({"x": ROWS[:1].bfloat16()})[1]
    assert whole.dtype == torch.float32
    assert one.shape == (1, 30)
    torch.testing.assert_close(one, whole[:1], rtol=0.02, atol=0.02)


# ---------------------------------------------------------------- what cannot be read


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs).relu()
        return torch.cat([self.one(hidden), self.two(hidden)], dim=1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(9, 6), nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6))

    def forward(self, words: Tensor) -> Tensor:
        return F.linear(self.body(self.embedding(words).mean(1)), self.embedding.weight)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6), nn.Linear(6, 3)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.head(self.lstm(sequences.transpose(0, 1))[0][-1])


CALLED = "Pass features= the name of a module whose output describes a sample; called last: "
REFUSED = {
    "two heads": (
        TwoHeads,
        ROWS,
        None,
        f"`features`: found no linear layer with 5 outputs at the end of TwoHeads. {CALLED}'body' (7, 6), 'one' (7, 2)",
    ),
    "tied": (
        Tied,
        torch.arange(8).view(4, 2),
        None,
        f"no linear layer with 9 outputs at the end of Tied. {CALLED}'embedding' (4, 2, 6), 'body.0' (4, 9), "
        "'body.1' (4, 9), 'body.2' (4, 6), 'body' (4, 6).",
    ),
    "no layer": (
        nn.Flatten,
        normal(3, 2, 2),
        None,
        f"no linear layer with 4 outputs at the end of Flatten. {CALLED}none",
    ),
    "misspelled": (
        Named,
        normal(6, 5, 4),
        "bdy.0",
        "`features='bdy.0'`: Named has no such module. Did you mean one of body.0",
    ),
    "nothing close": (
        MLP,
        ROWS,
        "zzz",
        "`features='zzz'`: MLP has no such module. Did you mean one of net, net.0, net.1, net.2, net.3, net.4, net.5?",
    ),
    "the whole model": (MLP, ROWS, "", "`features=''`: MLP has no such module. Did you mean one of"),
    "never called": (
        Named,
        normal(6, 5, 4),
        "unused",
        f"`features`: 'unused' of Named is not called in a forward pass. {CALLED}'conv' (6, 5, 4), 'body.0' (6, 7)",
    ),
    "time first": (
        TimeFirst,
        normal(6, 5, 4),
        "lstm",
        "`features`: expected one row per sample, got Tensor(5, 6, 6) of torch.float32 from 'lstm' for 6 samples. "
        f"{CALLED}",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_it_cannot_read(case):
    make, batch, name, message = REFUSED[case]
    model = seeded(make)
    before = module_picture(model)
    with pytest.raises(ValueError, match=re.escape(message)), torch.no_grad():
        Features(Predictor(model), batch, name)
    assert module_picture(model) == before


class Failing(MLP):
    def forward(self, inputs: Tensor) -> Tensor:
        super().forward(inputs)
        raise RuntimeError("no memory")


@pytest.mark.parametrize("name", [None, "net.0"])
def test_an_exception_leaves_no_hook(name):
    model = seeded(Failing)
    before = module_picture(model)
    with pytest.raises(RuntimeError, match="no memory"):
        Features(Predictor(model), ROWS, name)
    assert module_picture(model) == before
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_first_tensor_of_a_hugging_face_output_is_taken():
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).eval()
    batch = {"input_ids": torch.randint(0, 20, (4, 5)), "attention_mask": torch.ones(4, 5, dtype=torch.long)}
    _, features = Features(Predictor(model), batch, "bert.encoder")(batch)
    hidden = model.bert(**batch).last_hidden_state
    torch.testing.assert_close(features, hidden.mean(1))
