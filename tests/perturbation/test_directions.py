import decimal
import itertools
from decimal import Decimal

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from lightning_al.perturbation.directions import MOST_CLASSES, output_directions
from tests.digits import digits, trained_net
from tests.perturbation.networks import normal
from tests.perturbation.scored import scores_of

RESPONSES = ("softmax", "probabilities", "sigmoid", "identity")


def outputs_of(response: str, classes: int, samples: int = 4) -> Tensor:
    outputs = 2 * normal(samples, classes)
    return outputs.softmax(1) if response == "probabilities" else outputs


def response_jacobian(outputs: Tensor, response: str) -> Tensor:
    """Return S (B, C, C), written out."""
    if response == "softmax":
        probs = outputs.softmax(1)
        return torch.diag_embed(probs) - probs.unsqueeze(2) * probs.unsqueeze(1)
    if response == "sigmoid":
        return torch.diag_embed(outputs.sigmoid() * (1 - outputs.sigmoid()))
    return torch.eye(outputs.shape[1], dtype=outputs.dtype).expand(len(outputs), -1, -1)


def outer_sum(vectors: Tensor) -> Tensor:
    return torch.einsum("dbc,dbe->bce", vectors, vectors)


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("classes", [2, 3, 10, MOST_CLASSES, MOST_CLASSES + 1, 40])
def test_all_directions_add_up_to_the_whole_response(response, classes):
    outputs = outputs_of(response, classes)
    vectors = output_directions(outputs, response, "all", normal(classes))
    jacobian = response_jacobian(outputs, response)
    torch.testing.assert_close(outer_sum(vectors), jacobian @ jacobian.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("response", ["sigmoid", "identity"])
def test_a_single_output_is_exact_with_one_direction(response):
    outputs = normal(4, 1)
    (vector,) = output_directions(outputs, response, 1, normal(1))
    torch.testing.assert_close(vector.square(), response_jacobian(outputs, response).squeeze(2).square())


@pytest.mark.parametrize("directions", [1, 2, 3, 100])
@pytest.mark.parametrize(("response", "classes"), [("softmax", 3), ("softmax", 40), ("sigmoid", 3), ("identity", 2)])
def test_there_are_no_more_vectors_than_asked_for_or_needed(response, classes, directions):
    vectors = output_directions(outputs_of(response, classes).float(), response, directions, normal(classes))
    needed = classes - (response == "softmax" and classes <= MOST_CLASSES)  # a constant does not move a softmax
    if response == "softmax" and classes > MOST_CLASSES:
        needed = MOST_CLASSES
    assert vectors.shape == (min(directions, needed), 4, classes)
    assert vectors.dtype == torch.float32


# ---------------------------------------------------------------- signs


def basis(outputs: Tensor, response: str) -> Tensor:
    """Return orthonormal rows (C, C) for one sample (1, C), in the order of their importance."""
    classes = outputs.shape[1]
    if response in ("sigmoid", "identity"):
        return torch.eye(classes, dtype=torch.float64)
    probs = outputs.softmax(1) if response == "softmax" else outputs
    jacobian = torch.diag(probs[0]) - torch.outer(probs[0], probs[0])
    top = probs[0].topk(min(classes, MOST_CLASSES)).indices
    rows = torch.eye(classes, dtype=torch.float64)
    rows[top] = 0
    rows[top.unsqueeze(1), top] = torch.linalg.eigh(jacobian[top][:, top]).eigenvectors.T.flip(0)
    return rows


def mean_over(patterns: Tensor, outputs: Tensor, response: str, directions: int) -> Tensor:
    rows = basis(outputs, response)
    # the product of `generic` and a vector of the basis is then its sign in the pattern
    each = [outer_sum(output_directions(outputs, response, directions, signs @ rows)) for signs in patterns]
    return torch.stack(each).mean(0)


@pytest.mark.parametrize("directions", [1, 2, 3])
@pytest.mark.parametrize("response", RESPONSES)
def test_the_mean_over_all_patterns_of_signs_is_exact(response, directions):
    outputs = outputs_of(response, 5, samples=1)
    patterns = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)), dtype=torch.float64)
    jacobian = response_jacobian(outputs, response)
    found = mean_over(patterns, outputs, response, directions)
    torch.testing.assert_close(found, jacobian @ jacobian.mT, rtol=0, atol=1e-12)
    assert (outer_sum(output_directions(outputs, response, 1, normal(5))) - found).abs().max() > 1e-3


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("response", RESPONSES)
def test_signs_are_right_beyond_the_classes_of_one_eigendecomposition(response, directions):
    # the columns of a Hadamard matrix are orthogonal, so its rows average every product of two signs to zero
    patterns = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(6):
        patterns = torch.cat([torch.cat([patterns, patterns], 1), torch.cat([patterns, -patterns], 1)])
    outputs = outputs_of(response, 40, samples=1)
    jacobian = response_jacobian(outputs, response)
    found = mean_over(patterns[:, :40], outputs, response, directions)
    torch.testing.assert_close(found, jacobian @ jacobian.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("classes", [4, 40])
def test_a_sign_does_not_depend_on_the_companions_in_the_batch(response, classes):
    outputs, generic = outputs_of(response, classes, samples=12), normal(classes, seed=1)
    whole = output_directions(outputs, response, 2, generic)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(output_directions(outputs[order], response, 2, generic), whole[:, order])
    for sample in range(12):
        alone = output_directions(outputs[sample : sample + 1], response, 2, generic)
        torch.testing.assert_close(alone[:, 0], whole[:, sample])


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("directions", [1, 2, "all"])
@pytest.mark.parametrize("gap", [5, 30, 60])
def test_a_very_confident_sample_keeps_its_digits(gap, directions):
    logits = [float(gap), 0.0, -1.0, -3.5]
    with decimal.localcontext(prec=120):
        powers = [Decimal(logit).exp() for logit in logits]
        probs = [power / sum(powers) for power in powers]
        jacobian = [[(p if i == j else 0) - p * q for j, q in enumerate(probs)] for i, p in enumerate(probs)]
        exact = [[sum(a * b for a, b in zip(one, two, strict=True)) for two in jacobian] for one in jacobian]
    outputs = torch.tensor([logits], dtype=torch.float64)
    found = outer_sum(output_directions(outputs, "softmax", directions, normal(4)))
    # eigenvectors are orthogonal, so their signs do not matter for the trace
    trace = float(sum(exact[place][place] for place in range(4)))
    assert float(found.diagonal(dim1=1, dim2=2).sum()) == pytest.approx(trace, rel=1e-9)
    if directions == "all":
        expected = torch.tensor([[[float(number) for number in row] for row in exact]], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * trace)


# ---------------------------------------------------------------- agreement


@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity"])
def test_more_directions_never_agree_less(output):
    images, net = digits().tensors[0][200:500].double(), trained_net().double()
    exact = scores_of(net, images, output=output)
    found = [scores_of(net, images, output=output, directions=directions) for directions in (1, 2, 3, "all")]
    agreement = [float(spearman_corrcoef(scores, exact)) for scores in found]
    assert agreement == sorted(agreement)
    assert agreement[-1] == 1
    if output == "softmax":
        assert agreement[1] > 0.98
