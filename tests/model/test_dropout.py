import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_al.functional import bald
from lightning_al.model.dropout import DROPOUT, check_dropout, check_passes, dropout, dropout_passes
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import derive_seed, make_generator
from tests.snapshot import module_picture, random_picture


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=make_generator(seed))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


@torch.no_grad()
def run(module: nn.Module, batch: Tensor, *entropy: int) -> Tensor:
    (outputs,) = dropout_passes(Predictor(module), batch, [entropy], "identity")
    return outputs


class Apply(nn.Module):
    """Calls a layer as often as asked for, and stacks what comes out along the last dimension."""

    acquisition_class_dim = -1

    def __init__(self, *layers: nn.Module, calls: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.calls = calls

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([layer(inputs) for _ in range(self.calls) for layer in self.layers], dim=-1)


def drop(layer: nn.Module, inputs: Tensor, *entropy: int) -> Tensor:
    with dropout(layer, *entropy):
        return layer(inputs)


# ---------------------------------------------------------------- what a module does to one sample

P = 0.3
# The shape of a sample, and of the part of it that is kept or dropped as a whole.
SHAPES = {
    nn.Dropout: ((4000,), ()),
    nn.Dropout1d: ((4000, 3), (3,)),
    nn.Dropout2d: ((4000, 3, 2), (3, 2)),
    nn.Dropout3d: ((4000, 3, 2, 2), (3, 2, 2)),
    nn.AlphaDropout: ((4000,), ()),
    nn.FeatureAlphaDropout: ((4000, 3), (3,)),
}
ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
# What a self-normalizing network's activation saturates at (Klambauer et al. 2017), and the affine map behind the drop.
SATURATION = -1.7580993408473766
SCALE = ((1 - P) * (1 + P * SATURATION**2)) ** -0.5


def test_every_class_of_dropout_is_tried():
    of_torch = {
        value for name, value in vars(nn).items() if isinstance(value, type) and re.search(r"Dropout\d?d?$", name)
    }
    assert set(SHAPES) == set(DROPOUT) == of_torch


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", DROPOUT)
def test_a_module_drops_as_in_training(kind, inplace):
    shape, unit = SHAPES[kind]
    layer, inputs = kind(P, inplace=inplace).eval(), normal(2, *shape) + 5
    before = inputs.clone()
    dropped = drop(layer, inputs, 0)
    assert torch.equal(inputs, before)
    offset = -SCALE * SATURATION * P if kind in ALPHA else 0.0
    if_kept = inputs * SCALE + offset if kind in ALPHA else inputs / (1 - P)
    if_dropped = torch.full_like(inputs, SCALE * SATURATION + offset if kind in ALPHA else 0.0)
    kept = torch.isclose(dropped, if_kept, rtol=1e-4)
    torch.testing.assert_close(dropped, torch.where(kept, if_kept, if_dropped), rtol=1e-4, atol=1e-5)
    whole = kept.flatten(2) if unit else kept.unsqueeze(2)
    assert torch.equal(whole.all(2), whole.any(2))  # channels go as a whole
    assert torch.equal(kept[0], kept[1])
    # six standard deviations of a binomial share
    assert abs(float(whole[0, :, 0].float().mean()) - (1 - P)) < 6 * math.sqrt(P * (1 - P) / 4000)
    # the module itself gives no other values
    torch.manual_seed(0)
    own = kind(P).train()(inputs)
    own_kept = torch.isclose(own, if_kept, rtol=1e-4)
    torch.testing.assert_close(own, torch.where(own_kept, if_kept, if_dropped), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout])
def test_positions_of_one_channel_go_together_and_channels_do_not(kind):
    kept = drop(kind(0.5).eval(), torch.ones(1, *SHAPES[kind][0]), 0)[0].flatten(1)
    assert bool((kept == kept[:, :1]).all())
    assert len(kept[:, 0].unique()) == 2


def test_elements_of_one_channel_do_not_go_together():
    kept = drop(nn.Dropout(0.5).eval(), torch.ones(1, 3, 400), 0)[0] > 0
    assert len({tuple(row) for row in kept.tolist()}) == 3


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("kind", DROPOUT)
def test_the_ends_of_the_rate(kind, p):
    inputs = normal(3, *SHAPES[kind][0])
    torch.testing.assert_close(drop(kind(p).eval(), inputs, 0), kind(p).train()(inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_of_the_inputs_stays(dtype):
    dropped = drop(nn.Dropout(0.5).eval(), torch.ones(2, 50, dtype=dtype), 0)
    assert dropped.dtype == dtype
    assert dropped.unique().tolist() == [0.0, 2.0]


# ---------------------------------------------------------------- one mask per draw


class Sums(nn.Module):
    """Batch normalization and every kind of dropout on the way to three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3))
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(96, 20), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(20, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).flatten(1))


def test_a_sample_meets_one_mask_in_whatever_batch():
    model, images = seeded(Sums), normal(12, 2, 6, 6)
    whole = run(model, images, 3, 1)
    assert not torch.allclose(whole, model(images), atol=1e-3)
    order = torch.randperm(12, generator=make_generator(1))
    torch.testing.assert_close(run(model, images[order], 3, 1), whole[order])
    torch.testing.assert_close(torch.cat([run(model, part, 3, 1) for part in images.split([1, 7, 4])]), whole)
    torch.testing.assert_close(run(model, torch.cat([normal(5, 2, 6, 6, seed=9), images]), 3, 1)[5:], whole)
    alike = run(model, images[:1].expand(5, -1, -1, -1), 3, 1)
    torch.testing.assert_close(alike, whole[:1].expand(5, -1))


def test_other_entropy_means_other_masks_and_the_same_means_the_same():
    layer, ones = nn.Dropout(0.5).eval(), torch.ones(1, 64)
    draws = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    masks = [drop(layer, ones, *entropy) for entropy in draws]
    assert len({tuple(mask[0].tolist()) for mask in masks}) == len(draws)
    for mask, entropy in zip(masks, draws, strict=True):
        assert torch.equal(mask, drop(layer, ones, *entropy))


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d])
def test_a_mask_is_what_the_module_drops_of_one_sample_under_its_seed(kind):
    inputs, layer = normal(3, 8, 2, 2), kind(P)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(7, 4, 1))  # of the first call
        slope = layer(torch.ones(1, 8, 2, 2))
    assert torch.equal(drop(layer.eval(), inputs, 7, 4), inputs * slope)


def test_every_module_and_every_call_of_one_has_a_mask_of_its_own():
    module = Apply(nn.Dropout(0.5), nn.Dropout(0.5), calls=3).eval()
    masks = run(module, torch.ones(1, 64), 0)[0]  # read as tokens: (6, 64)
    assert masks.shape == (6, 64)
    assert len({tuple(mask) for mask in masks.tolist()}) == 6
    with dropout(module, 0):
        both = [module(torch.ones(1, 64)) for _ in range(2)]
    assert not torch.equal(*both)  # a second forward within one draw goes on counting


def test_masks_do_not_depend_on_the_global_random_numbers():
    layer, ones = nn.Dropout(0.5).eval(), torch.ones(1, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = drop(layer, ones, 0)
        torch.manual_seed(2)
        assert torch.equal(drop(layer, ones, 0), first)


def test_passes_are_lazy_and_in_the_order_of_the_draws():
    model, images = seeded(Sums), normal(4, 2, 6, 6)
    with torch.no_grad():
        passes = list(dropout_passes(Predictor(model), images, [(0,), (1,), (0,)]))
        assert torch.equal(passes[0], passes[2])
        torch.testing.assert_close(passes[1], run(model, images, 1).softmax(1))
        one = next(iter(dropout_passes(Predictor(model), images, [(1,), (0,)])))
        assert torch.equal(one, passes[1])
        assert torch.equal(model(images), seeded(Sums)(images))  # nothing drops between two passes


# ---------------------------------------------------------------- nothing else changes


def test_statistics_flags_hooks_and_random_numbers_stay():
    model, images = seeded(Sums), normal(6, 2, 6, 6) * 3 + 1
    before, numbers = module_picture(model), random_picture()
    with dropout(model, 0):
        assert not any(module.training for module in model.modules())
        model(images)
    assert module_picture(model) == before
    assert random_picture() == numbers


class Broken(Sums):
    def forward(self, images: Tensor) -> Tensor:
        super().forward(images)
        raise RuntimeError("no memory")


def test_an_exception_leaves_nothing_behind():
    model = seeded(Broken)
    before, numbers = module_picture(model), random_picture()
    with pytest.raises(RuntimeError, match="no memory"):
        run(model, normal(3, 2, 6, 6), 0)
    assert module_picture(model) == before
    assert random_picture() == numbers


class Refusing(nn.Dropout):
    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("cannot drop")
        return inputs


def test_an_exception_in_a_dropout_module_leaves_its_flag_and_hooks():
    model = nn.Sequential(nn.Linear(3, 2), Refusing(0.5)).eval()
    before, numbers = module_picture(model), random_picture()
    with pytest.raises(RuntimeError, match="cannot drop"):
        run(model, normal(3, 3), 0)
    assert module_picture(model) == before
    assert random_picture() == numbers


class AlwaysOn(nn.Dropout):
    """The usual recipe for Monte-Carlo dropout by hand."""

    def train(self, mode: bool = True) -> "AlwaysOn":
        return super().train(True)


def test_a_module_that_never_leaves_training_stays_in_it():
    model = nn.Sequential(nn.Linear(3, 20), AlwaysOn(0.5), nn.Linear(20, 2)).eval()
    before = module_picture(model)
    one = run(model, normal(5, 3), 0)
    assert torch.equal(one, run(model, normal(5, 3), 0))
    assert module_picture(model) == before
    assert model[1].training


# ---------------------------------------------------------------- dropout that is no module


class Functional(nn.Module):
    """Drops by a function, in eval mode too if asked to."""

    def __init__(self, training: bool | None = True, p: float = 0.5) -> None:
        super().__init__()
        self.hidden, self.head, self.p, self.drops_in_eval = nn.Linear(4, 64), nn.Linear(64, 3), p, training

    def forward(self, inputs: Tensor) -> Tensor:
        training = self.training if self.drops_in_eval is None else self.drops_in_eval
        return self.head(F.dropout(self.hidden(inputs).relu(), self.p, training=training))


def test_a_function_that_drops_in_eval_mode_counts_as_dropout():
    model, inputs = seeded(Functional), normal(10, 4)
    numbers = random_picture()
    check_dropout("BALD", Predictor(model), inputs)
    scores = [bald(dropout_passes(Predictor(model), inputs, [(0,), (1,), (2,)])) for _ in range(2)]
    assert torch.equal(*scores)
    assert float(scores[0].min()) > 1e-4
    assert random_picture() == numbers
    assert torch.equal(run(model, inputs, 7), run(model, inputs, 7))
    assert not torch.equal(run(model, inputs, 7), run(model, inputs, 8))


def test_consistent_masks_cannot_come_from_a_function():
    model = seeded(Functional)
    message = (
        "`Mine` needs one mask per draw for all samples, but Functional predicts another row of a batch under another"
    )
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        check_dropout("Mine", Predictor(model), normal(10, 4), consistent=True)


NO_DROPOUT = {
    "off in eval mode": lambda: Functional(training=None),
    "p=0": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.0), nn.Linear(8, 3)),
    "none": lambda: nn.Linear(4, 3),
}


@pytest.mark.parametrize("case", NO_DROPOUT)
def test_a_model_that_does_not_drop_is_refused(case):
    model = seeded(NO_DROPOUT[case])
    message = (
        rf"(?s)`Mine` compares predictions under dropout, but those of {type(model).__name__} do not change: it has no "
        r"module that drops\. .*make it an `nn\.Dropout`.*`NoiseStabilityAcquisition`"
    )
    with pytest.raises(ValueError, match=message):
        check_dropout("Mine", Predictor(model), normal(6, 4))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(6, 3)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.head(self.lstm(sequences)[0][:, -1])


def test_dropout_between_the_layers_of_a_recurrent_network_is_no_module():
    with pytest.raises(ValueError, match="those of Recurrent do not change: it has no module that drops"):
        check_dropout("Mine", Predictor(seeded(Recurrent)), normal(6, 5, 4))


class Aside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.drop, self.other = nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(inputs), "other": self.other(self.drop(inputs))}


def test_dropout_that_no_output_depends_on_is_refused():
    with pytest.raises(ValueError, match="Aside do not change: it has dropout modules that its output does not depend"):
        check_dropout("Mine", Predictor(seeded(Aside)), normal(6, 4))


@pytest.mark.parametrize("width", range(2, 10))
def test_rare_dropout_is_found_though_most_draws_agree(width):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, width), nn.Dropout(0.05), nn.Linear(width, 3)))
    with torch.no_grad():
        check_dropout("Mine", Predictor(model), normal(6, 4), consistent=True)


@pytest.mark.parametrize("batch", [normal(6, 4), [normal(6, 4), torch.arange(6)], {"x": normal(6, 4), "label": 0}])
def test_any_batch_can_be_turned_around(batch):
    with torch.no_grad():
        check_dropout("Mine", Predictor(seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout()))), batch, True)


class Encoder(nn.Module):
    """Tokens, the last of which are padding in every other sample."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True), 2)
        self.head, self.padded = nn.Linear(8, 3), padded

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens[:, :, :1] > 9).squeeze(2) if self.padded else None
        return self.head(self.encoder(tokens, src_key_padding_mask=mask)[:, 0])


# torch's own, when a transformer packs its padded batch
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("padded", [False, True])
def test_the_fast_path_of_a_transformer_does_not_skip_its_dropout(padded):
    model, tokens = seeded(lambda: Encoder(padded)), normal(6, 5, 8)
    tokens[::2, 3:] = 10.0
    with torch.no_grad():
        plain = model(tokens)
        check_dropout("Mine", Predictor(model), tokens, consistent=True)
        one, other = dropout_passes(Predictor(model), tokens, [(0,), (1,)], "identity")
        assert not torch.allclose(one, other, atol=1e-2)
        torch.testing.assert_close(run(model, tokens.flip(0), 0).flip(0), one)
        assert torch.backends.mha.get_fastpath_enabled()
        assert torch.equal(model(tokens), plain)
    with dropout(model, 0):
        torch.testing.assert_close(model(tokens), one)  # with gradients, where there is no fast path


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(tokens.transpose(0, 1)).mean(0))


def test_samples_along_another_dimension_than_the_first_are_not_taken_for_consistent():
    model, tokens = seeded(TimeFirst), normal(6, 5, 8)
    with torch.no_grad():
        check_dropout("Mine", Predictor(model), tokens)
        assert torch.equal(run(model, tokens, 0), run(model, tokens, 0))
        with pytest.raises(ValueError, match="needs one mask per draw for all samples, but TimeFirst predicts"):
            check_dropout("Mine", Predictor(model), tokens, consistent=True)


@pytest.mark.parametrize("passes", [1, 0, -3])
def test_one_draw_is_not_enough(passes):
    with pytest.raises(ValueError, match=re.escape(f"`Mine(passes={passes})`: expected at least 2 draws of dropout")):
        check_passes("Mine", passes)
    check_passes("Mine", 2)
