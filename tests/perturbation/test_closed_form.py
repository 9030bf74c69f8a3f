import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lightning_al.model.predictor import Predictor
from lightning_al.perturbation.closed_form import ClosedForm
from lightning_al.perturbation.noise import Noise
from lightning_al.scoring.progress import Bar
from tests.perturbation.jacobian_twin import VARIANCE, names_of, sample_jacobians, step_variances, twin
from tests.perturbation.networks import NETWORKS, POINTS, made, mlp, normal
from tests.perturbation.scored import assert_exact, closed_form, flags, picture_of, scores_of
from tests.snapshot import random_picture
from tests.sweep import NOISES


def logits(outputs):
    return outputs["logits"] if isinstance(outputs, dict) else outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_equals_the_jacobian(name):
    make, inputs = NETWORKS[name]
    model = made(make)
    # no parameter may be lost beside larger ones, so each counts by its own norm
    scores = scores_of(model, inputs, scope="tensor")
    assert_exact(scores, twin(model, inputs, scope="tensor", call=logits))


@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize(("distribution", "scope", "relative"), NOISES)
def test_every_noise_and_output_equals_the_jacobian(distribution, scope, relative, output):
    model = made(mlp)
    options = {"distribution": distribution, "scope": scope, "relative": relative, "output": output, "magnitude": 0.02}
    assert_exact(scores_of(model, POINTS, **options), twin(model, POINTS, **options))


@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity"])
def test_more_classes_than_one_eigendecomposition_takes_equal_the_jacobian(output):
    model = made(partial(mlp, 40))
    assert_exact(scores_of(model, POINTS, output=output), twin(model, POINTS, output=output))


@pytest.mark.parametrize("outputs", [2, 5, 40])
def test_a_model_that_ends_in_a_softmax_gets_no_second_one(outputs):
    model = made(partial(mlp, outputs, nn.Softmax(1)))
    scores = scores_of(model, POINTS)
    assert_exact(scores, twin(model, POINTS, output="identity"))
    assert_exact(scores, scores_of(model[:-1], POINTS))


@pytest.mark.parametrize("output", ["sigmoid", "identity"])
def test_one_output_is_exact_in_one_pass(output):
    model = made(partial(mlp, 1))
    for directions in (1, 2, "all"):
        found = scores_of(model, POINTS, output=output, directions=directions)
        assert_exact(found, twin(model, POINTS, output=output))


def test_frozen_parameters_get_no_noise():
    model = made(mlp)
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    assert_exact(scores_of(model, POINTS), twin(model, POINTS, noisy=["2.weight"]))


@pytest.mark.parametrize(
    ("patterns", "noisy"),
    [
        (["2"], ["2.weight", "2.bias"]),
        (["[02]"], ["0.weight", "0.bias", "2.weight", "2.bias"]),
        (["0", "*"], ["0.weight", "0.bias", "2.weight", "2.bias"]),
    ],
)
def test_noise_is_confined_to_the_named_modules(patterns, noisy):
    model = made(mlp)
    assert_exact(scores_of(model, POINTS, modules=patterns), twin(model, POINTS, noisy=noisy))


def test_parts_of_an_attention_may_be_frozen_or_named_alone():
    for name in ("self-attention", "self-attention, sequence first", "encoder"):
        make, inputs = NETWORKS[name]
        model = made(make)
        out = [key for key in names_of(model) if ".out_proj." in key]
        assert_exact(scores_of(model, inputs, modules=["out_proj"]), twin(model, inputs, noisy=out))
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("in_proj_weight" in key or "head" in key)
        assert_exact(scores_of(model, inputs), twin(model, inputs))


def test_an_unused_layer_changes_nothing():
    model = made(mlp)
    before = scores_of(model, POINTS)
    model[1].side = nn.Linear(30, 30)
    assert torch.equal(scores_of(model, POINTS), before)


# ---------------------------------------------------------------- the limit of finite passes


@pytest.mark.parametrize("output", ["softmax", "identity"])
@pytest.mark.parametrize(
    ("distribution", "scope", "relative"),
    [
        ("gaussian", "global", True),
        ("gaussian", "tensor", True),
        ("gaussian", "global", False),
        ("uniform", "global", False),
        ("laplace", "tensor", False),
    ],
)
def test_it_is_what_the_mean_over_very_many_passes_tends_to(distribution, scope, relative, output):
    r"""One pass has the size X = ||J e||^2 = e^T A e, A = J^T J, for noise e of the covariance diag(s^2).

    With M = J diag(s^2) J^T, E[X] = tr M is the closed form, and for independent elements of the excess kurtosis q
    Var[X] = 2 ||M||_F^2 + q sum_i s_i^4 a_ii^2, a_ii being the squared norms of the columns of J (the variance of a
    quadratic form). Relative noise is a direction u on a sphere, with a length that is fixed: Gaussian noise is
    r u for an independent r with E[r^2] = 1, so a block of a parameter's own has X = r^2 u^T A u with
    Var[X] = E[r^4] E[(u^T A u)^2] - E[X]^2 >= Var[u^T A u], while products of two parameters' noise, uncorrelated with
    the rest by symmetry, have the same variance either way. The Gaussian's variance is therefore an upper bound.
    The mean over K passes has the standard deviation sqrt(Var[X] / K), and five of them fail once in a million draws.
    Terms of higher order: those of third order vanish by symmetry; of fourth order, s^2 ~ 1e-7 of the whole, nothing.
    """
    passes, magnitude = 20_000, 1e-3
    model, inputs = made(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))), normal(4, 2)
    options = {"magnitude": magnitude, "distribution": distribution, "scope": scope, "relative": relative}
    names = names_of(model)
    clean = {name: model.get_parameter(name).detach() for name in names}

    def measured(values: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(model, values, inputs)
        return outputs.softmax(1) if output == "softmax" else outputs

    with torch.no_grad():
        noise = _noise(clean, passes, **options)
        moved = vmap(lambda step: measured({name: clean[name] + step[name] for name in names}))(noise)
        mean = (moved - measured(clean)).square().sum(2).mean(0)
    variances = step_variances(model, names, magnitude, relative, distribution, scope)
    excess = {"gaussian": 0.0, "uniform": -1.2, "laplace": 3.0}[distribution]
    deviations = []
    for jacobians in sample_jacobians(model, inputs, names, output):
        scaled = torch.cat([math.sqrt(variances[name]) * jacobians[name].flatten(1) for name in names], 1)
        variance = 2 * (scaled @ scaled.T).square().sum() + excess * scaled.square().sum(0).square().sum()
        deviations.append(math.sqrt(float(variance) / passes))
    scores = scores_of(model, inputs, output=output, **options)
    assert ((mean - scores).abs() < 5 * torch.tensor(deviations)).all()
    assert (torch.tensor(deviations) < 0.015 * scores).all()  # or the comparison would say little


def _noise(clean, passes, magnitude, distribution, scope, relative):
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, value in clean.items():
        empty = partial(torch.empty, passes, *value.shape, dtype=torch.float64)
        if distribution == "gaussian":
            drawn[name] = empty().normal_(generator=generator)
        elif distribution == "uniform":
            drawn[name] = empty().uniform_(-1, 1, generator=generator)
        else:
            drawn[name] = empty().exponential_(generator=generator) - empty().exponential_(generator=generator)
        assert float(drawn[name].var()) == pytest.approx(VARIANCE[distribution], rel=0.05)
    squares = {name: noise.flatten(1).square().sum(1) for name, noise in drawn.items()}
    factors = {}
    for name in drawn:
        together = list(drawn) if scope == "global" else [name]
        size = math.sqrt(sum(float(clean[other].square().sum()) for other in together))
        length = torch.stack([squares[other] for other in together]).sum(0).sqrt()
        factors[name] = magnitude * size / length if relative else torch.full((passes,), magnitude)
    return {name: noise * factors[name].view(-1, *[1] * (noise.ndim - 1)) for name, noise in drawn.items()}


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("name", ["mlp", "encoder", "lstm", "positions and a class token", "attention with padding"])
def test_scores_do_not_depend_on_how_samples_are_batched(name):
    make, inputs = NETWORKS[name]
    form = closed_form(made(make), inputs, directions=2)
    with torch.no_grad():
        whole = form.scores(inputs)
        alone = torch.cat([form.scores(one) for one in inputs.split(1)])
        uneven = form.chunk_scores(list(inputs.split([2, 6, 1])))
    torch.testing.assert_close(alone, whole, rtol=1e-9, atol=0)
    torch.testing.assert_close(uneven, whole, rtol=1e-9, atol=0)


def test_single_precision_gives_the_scores_of_double_precision():
    model = made(mlp)
    exact = scores_of(model, POINTS, directions=2)
    scores = scores_of(model.float(), POINTS.float(), directions=2)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact, rtol=1e-4, atol=0)


def test_the_seed_decides_the_signs_and_nothing_else():
    model = made(partial(mlp, 6))
    once, again, other = (scores_of(model, POINTS, directions=1, seed=seed) for seed in ((0,), (0,), (1,)))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(scores_of(model, POINTS, seed=(0,)), scores_of(model, POINTS, seed=(1,)))


def test_the_progress_bar_counts_the_samples_of_each_batch():
    model, moves = made(mlp), []
    bar = Bar(20, lambda samples, status: moves.append((samples, status)))
    form = ClosedForm(Predictor(model, bar.finish_pass), POINTS, noise=Noise())
    with torch.no_grad():
        form.chunk_scores([POINTS, POINTS[:4], POINTS[:7]])
    assert moves == [(9, ""), (4, ""), (7, "")]


# ---------------------------------------------------------------- nothing is left behind


def test_module_flags_and_random_numbers_are_as_before():
    for make, inputs in NETWORKS.values():
        model = made(make)
        for place, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(place != 1)
        if hasattr(model, "embedding"):
            model.embedding.padding_idx, model.embedding.scale_grad_by_freq = 3, True
        before = picture_of(model), random_picture(), flags()
        scores_of(model, inputs)
        assert (picture_of(model), random_picture(), flags()) == before


def test_an_error_in_the_model_leaves_nothing_behind():
    make, inputs = NETWORKS["encoder"]
    model = made(make)
    form = closed_form(model, inputs)
    before = picture_of(model), flags()
    for fails in (model.encoder.layers[1].norm1, model.encoder.layers[0].self_attn.out_proj, model.head):
        handle = fails.register_forward_pre_hook(lambda *_: 1 / 0)
        with torch.no_grad(), pytest.raises(ZeroDivisionError):
            form.scores(inputs)
        handle.remove()
        assert (picture_of(model), flags()) == before


def test_outputs_for_each_position_are_refused_with_a_way_out():
    model = made(lambda: nn.Conv2d(2, 3, 3))
    with pytest.raises(ValueError, match=r'`passes="inf"`: Conv2d returns outputs of shape \(3, 4, 4\).*`passes=10`'):
        ClosedForm(Predictor(model), normal(4, 2, 6, 6), noise=Noise())


def test_a_model_that_is_random_in_eval_mode_is_refused():
    class Random(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(())

    with pytest.raises(ValueError, match="eval mode"):
        closed_form(made(lambda: Random(5, 3)), POINTS)
