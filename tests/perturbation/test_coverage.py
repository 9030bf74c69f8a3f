from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from lightning_al.perturbation.coverage import UncountableError
from tests.perturbation.awkward import Then
from tests.perturbation.jacobian_twin import names_of, twin
from tests.perturbation.networks import IDS, IMAGES, NETWORKS, POINTS, SEQUENCES, made, normal
from tests.perturbation.scored import EXACT, assert_exact, closed_form, flags, parts_of, picture_of, scores_of
from tests.sweep import sampled


def body_and_head(run, **layers) -> nn.Module:
    return made(lambda: Then(run, body=nn.Linear(5, 8), head=nn.Linear(8, 3), **layers))


# ---------------------------------------------------------------- who counts what


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", {"LayerPart": ["0.bias", "0.weight", "2.bias", "2.weight"]}),
        (
            "a layer called twice",
            {
                "LayerPart": ["body.bias", "body.weight", "head.bias", "head.weight"],
                "ModulePart": ["twice.bias", "twice.weight"],
            },
        ),
        ("tied weights", {"LayerPart": ["decoder.bias"], "ModulePart": ["embedding.weight"]}),
        (
            "positions and a class token",
            {"BarePart": ["0.positions", "0.token"], "LayerPart": ["1.bias", "1.weight", "4.bias", "4.weight"]},
        ),
        ("scales of channels", {"BarePart": ["0.gamma"], "LayerPart": ["2.bias", "2.weight"]}),
        (
            "self-attention, sequence first",
            {
                "AttentionPart": ["attention.in_proj_bias", "attention.in_proj_weight"],
                "LayerPart": ["head.bias", "head.weight"],
                "ModulePart": ["attention.out_proj.bias", "attention.out_proj.weight"],
            },
        ),
        (
            "rows in another order",
            {"LayerPart": ["head.bias", "head.weight"], "ModulePart": ["body.bias", "body.weight"]},
        ),
        ("activations in place", {"LayerPart": sorted(names_of(NETWORKS["activations in place"][0]()))}),
        (
            "encoder",
            {
                "AttentionPart": [
                    f"encoder.layers.{layer}.self_attn.in_proj_{kind}" for layer in "01" for kind in ("bias", "weight")
                ],
                "LayerPart": sorted(name for name in names_of(NETWORKS["encoder"][0]()) if "in_proj" not in name),
            },
        ),
    ],
)
def test_each_parameter_is_counted_once_and_by_the_cheapest_part(name, expected):
    make, inputs = NETWORKS[name]
    assert parts_of(closed_form(made(make), inputs)) == expected


@pytest.mark.parametrize("name", sampled(NETWORKS, list(NETWORKS)[::5]))
def test_no_parameter_is_lost_or_counted_twice(name):
    make, inputs = NETWORKS[name]
    model = made(make)
    counted = [name for own in parts_of(closed_form(model, inputs)).values() for name in own]
    assert sorted(counted) == sorted(names_of(model))


def test_a_layer_that_computes_something_else_is_not_taken_for_its_class():
    make, inputs = NETWORKS["a layer that computes something else"]
    assert "LayerPart" not in parts_of(closed_form(made(make), inputs))


# ---------------------------------------------------------------- named, not approximated


def detached(model, x: Tensor) -> Tensor:
    return model.head(model.body(x).relu().detach())


def without_gradients(model, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.head(model.body(x).relu())


def partly_without_gradients(model, x: Tensor) -> Tensor:
    with torch.no_grad():
        hidden = model.body(x)
    return model.head(hidden)


def of_the_batch(model, x: Tensor) -> Tensor:
    return model.head(model.norm(model.body(x)))


def overwritten(model, x: Tensor) -> Tensor:
    hidden = model.body(x).exp()
    outputs = model.head(hidden)
    hidden.zero_()
    return outputs


def computed_anew(model, x: Tensor) -> Tensor:
    return model.head(checkpoint(torch.tanh, model.body(x), use_reentrant=True))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (detached, r"^body\.weight, body\.bias: the forward pass cuts off their gradient"),
        (partly_without_gradients, r"^body\.weight, body\.bias: the forward pass cuts off their gradient"),
        (without_gradients, r"^body\.weight, body\.bias, head\.weight, head\.bias: the forward pass cuts off"),
        (overwritten, r"^body\.weight, .*: one of the variables needed for gradient computation has been modified"),
        (computed_anew, r"^body\.weight, .*: When use_reentrant=True, torch.utils.checkpoint is incompatible"),
    ],
)
def test_what_has_no_gradient_is_named(run, message):
    model = body_and_head(run)
    before = picture_of(model), flags()
    with pytest.raises(UncountableError, match=message):
        closed_form(model, POINTS)
    assert (picture_of(model), flags()) == before


def test_statistics_of_the_batch_are_named_with_what_stands_before_them():
    model = body_and_head(of_the_batch, norm=nn.BatchNorm1d(8, track_running_stats=False))
    with pytest.raises(UncountableError, match=r"^body\.weight, body\.bias.*: no gradient of single samples"):
        closed_form(model, POINTS)
    # what stands behind has single samples
    head = closed_form(model, POINTS, modules=["head"])
    assert parts_of(head) == {"LayerPart": ["head.bias", "head.weight"]}


def test_a_long_list_of_names_is_cut():
    model = made(lambda: nn.Sequential(*(nn.Linear(5, 5) for _ in range(4)), nn.Flatten()))
    model[-1].forward = lambda x: x.detach()
    with pytest.raises(UncountableError, match=r"^0\.weight, 0\.bias, 1\.weight, 1\.bias, 2\.weight, 2\.bias, \.\.\.:"):
        closed_form(model, POINTS)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rows_that_are_cut_down_in_the_forward_pass_are_named(kind):
    model = made(
        lambda: nn.Sequential(kind(11, 4, max_norm=1.0), nn.Flatten(), nn.Linear(24 if kind is nn.Embedding else 4, 3))
    )
    with pytest.raises(UncountableError, match=r"^0\.weight: the forward pass cuts its rows down to `max_norm`"):
        closed_form(model, IDS)
    assert parts_of(closed_form(model, IDS, modules=["2"])) == {"LayerPart": ["2.bias", "2.weight"]}


def test_a_packed_sequence_is_counted():
    def run(model, ids: Tensor) -> Tensor:
        lengths = (ids != 10).sum(1).clamp(min=1)
        packed = pack_padded_sequence(model.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        return model.head(model.rnn(packed)[1][0][-1])

    layers = {"embedding": nn.Embedding(11, 4), "rnn": nn.LSTM(4, 5, batch_first=True), "head": nn.Linear(5, 3)}
    model = made(lambda: Then(run, **layers))
    scores = scores_of(model, IDS, relative=False)
    # packing has no Jacobian by `torch.func`
    parameters = list(model.parameters())
    for probs, score in zip(model(IDS).softmax(1), scores, strict=True):
        gradients = [torch.autograd.grad(prob, parameters, retain_graph=True) for prob in probs]
        expected = sum(float(gradient.square().sum()) for own in gradients for gradient in own)
        assert float(score) == pytest.approx(1e-6 * expected, rel=EXACT)


def test_a_parameter_whose_effect_is_cut_and_does_not_matter_counts_as_zero():
    def run(model, x: Tensor) -> Tensor:
        return model.head(model.body(x).tanh()) + 0 * model.side(x).detach().sum()

    model = body_and_head(run, side=nn.Linear(5, 2))
    assert_exact(scores_of(model, POINTS, relative=False), twin(model, POINTS, relative=False))


def test_recomputed_activations_are_counted():
    def run(model, x: Tensor) -> Tensor:
        return model.head(checkpoint(lambda y: model.body(y).tanh(), x, use_reentrant=False))

    kept = body_and_head(lambda model, x: model.head(model.body(x).tanh()))
    assert_exact(scores_of(body_and_head(run), POINTS), scores_of(kept, POINTS))


# ---------------------------------------------------------------- batches that differ


def test_a_layer_called_more_often_for_a_later_batch_is_an_error():
    def run(model, x: Tensor) -> Tensor:
        hidden = model.body(x).tanh()
        for _ in range(1 if x.shape[0] == len(POINTS) or x.shape[0] <= 7 else 2):
            hidden = model.more(hidden)
        return model.head(hidden)

    form = closed_form(body_and_head(run, more=nn.Linear(8, 8)), POINTS)
    with pytest.raises(RuntimeError, match=r"Then called other layers for this batch than for the first one.*=30"):
        form.scores(normal(10, 5))


def test_a_layer_left_out_for_a_later_batch_is_an_error():
    def run(model, x: Tensor) -> Tensor:
        hidden = model.body(x).tanh()
        return model.head(model.more(hidden) if len(x) < 10 else hidden)

    form = closed_form(body_and_head(run, more=nn.Linear(8, 8)), POINTS)
    with pytest.raises(RuntimeError, match="called other layers for this batch"):
        form.scores(normal(10, 5))


@pytest.mark.parametrize("samples", sampled([1, 2, 7, 8, 30], [1, 30]))
def test_a_first_batch_of_any_size_will_do(samples):
    make, inputs = NETWORKS["encoder"]
    model = made(make)
    first = inputs.repeat(4, 1)[:samples]
    form = closed_form(model, first)
    with torch.no_grad():
        found = form.scores(inputs)
    torch.testing.assert_close(found, twin(model, inputs), rtol=EXACT, atol=0)


def test_samples_as_many_as_positions_or_features_are_not_mistaken():
    for name, size in (("self-attention, sequence first", 5), ("positions and a class token", 6), ("lstm", 4)):
        make, inputs = NETWORKS[name]
        model = made(make)
        inputs = inputs[:size]
        assert_exact(scores_of(model, inputs), twin(model, inputs))


def test_statistics_of_an_image_alone_are_no_statistics_of_the_batch():
    norm = partial(nn.InstanceNorm2d, 3, affine=True)
    model = made(lambda: nn.Sequential(norm(), nn.Flatten(), nn.Linear(90, 3)))
    assert_exact(scores_of(model, IMAGES), twin(model, IMAGES))


def test_two_inputs_are_taken_from_a_batch_by_name():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, images: Tensor, mask: Tensor) -> Tensor:
            return self.head((self.body(images).tanh() * mask.unsqueeze(2)).sum(1))

    model, mask = made(Two), (SEQUENCES[..., 0] > 0).double()
    found = scores_of(model, {"images": SEQUENCES, "mask": mask})
    assert_exact(found, twin(model, (SEQUENCES, mask)))
