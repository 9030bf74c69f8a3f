import copy
import re

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_al import ActiveLearningDataModule
from lightning_al.model.dropout import dropout
from lightning_al.numerics.seeding import RandomStream, make_generator, seeded
from lightning_al.strategies import (
    BALDAcquisition,
    BatchBALDAcquisition,
    MCDropoutAcquisition,
    VariationRatioAcquisition,
)
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.runs import make_trainer
from tests.snapshot import module_picture, random_picture

PASSES = 6
STRATEGIES = [BALDAcquisition, BatchBALDAcquisition, MCDropoutAcquisition, VariationRatioAcquisition]


class Net(LightningModule):
    """Trains a network on pairs of inputs and targets."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        return F.mse_loss(outputs, batch[1]) if batch[1].is_floating_point() else F.cross_entropy(outputs, batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def regressor():
    return Net(nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)))


def dense():
    body = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3))
    return Net(nn.Sequential(body, nn.Conv2d(6, 3, 1)))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=make_generator(0))


def numbers():
    points = normal(60, 3)
    return TensorDataset(points, torch.stack([points.sum(1), points[:, 0] * points[:, 1]], dim=1))


def maps():
    return TensorDataset(normal(40, 2, 5, 4), torch.randint(3, (40, 5, 4), generator=make_generator(1)))


TASKS = {"classes": (ToyClassifier, ToyDataset), "numbers": (regressor, numbers), "maps": (dense, maps)}


def fit(acquisition, task="classes", *, net=None, data=None, **options):
    make, dataset = TASKS[task]
    if data is None:
        data = ActiveLearningDataModule(dataset(), **{"initial_size": 20, "batch_size": 8, **options})
    with seeded(0):
        model = make() if net is None else Net(net())
        make_trainer(acquisition, max_epochs=3).fit(model, data)
    return model, data


def by_hand(model, data, seed=0, passes=PASSES):
    """Return the candidates of the last query and their outputs under each draw, read as one batch: (K, N, C, ...)."""
    cycle = data.pool.cycle - 1
    taken = set(data.pool.labeled_by(cycle))
    candidates = [index for index in range(data.pool.size) if index not in taken]
    inputs = torch.stack([data.datamodule.train[index][0] for index in candidates])
    model = copy.deepcopy(model).eval()
    outputs = []
    with torch.no_grad():
        for step in range(passes):
            with dropout(model, RandomStream.DROPOUT, seed, cycle, step):
                outputs.append(model(inputs).double())
    return candidates, torch.stack(outputs)


def entropy(probs: np.ndarray, axis: int) -> np.ndarray:
    return -(probs * np.log(np.maximum(probs, 1e-300))).sum(axis)


def twins(outputs: Tensor) -> dict[str, np.ndarray]:
    """Return every score, from outputs (K, N, C, ...), averaged over the positions."""
    probs_kncp = outputs.flatten(3).softmax(2).numpy() if outputs.ndim > 3 else outputs.softmax(2).numpy()[..., None]
    consensus, winners = probs_kncp.mean(0), probs_kncp.argmax(2)
    votes = np.stack([(winners == label).sum(0) for label in range(probs_kncp.shape[2])])
    return {
        "predictive_entropy": entropy(consensus, 1).mean(1),
        "expected_entropy": entropy(probs_kncp, 2).mean((0, 2)),
        "bald": (entropy(consensus, 1) - entropy(probs_kncp, 2).mean(0)).mean(1),
        "variation_ratio": (1 - votes.max(0) / len(outputs)).mean(1),
        "variance": outputs.numpy().var(0).sum(1).reshape(outputs.shape[1], -1).mean(1),
    }


def check(data, candidates, scores, ties=None):
    """Compare the last query with scores by hand, its order included."""
    query = data.pool.history[-1]
    expected = dict(zip(candidates, scores, strict=True))
    np.testing.assert_allclose(query.scores, [expected[index] for index in query.indices], rtol=1e-4, atol=1e-6)
    assert max(query.scores) > 1e-3
    # rounded, so that double and single precision agree on which votes are equal
    order = np.lexsort((np.zeros(len(scores)) if ties is None else -ties, -scores.round(6)))
    assert query.indices == [candidates[row] for row in order[: len(query.indices)]]


# ---------------------------------------------------------------- scores

SCORES = [
    (BALDAcquisition, {}, "bald"),
    (MCDropoutAcquisition, {}, "predictive_entropy"),
    (MCDropoutAcquisition, {"uncertainty": "expected_entropy"}, "expected_entropy"),
    (MCDropoutAcquisition, {"uncertainty": "variance"}, "variance"),
    (VariationRatioAcquisition, {}, "variation_ratio"),
]


@pytest.mark.parametrize("task", ["classes", "maps"])
@pytest.mark.parametrize(("strategy", "options", "score"), SCORES)
def test_scores_are_those_of_the_trained_network_under_dropout(strategy, options, score, task):
    model, data = fit(strategy(9, passes=PASSES, **options), task)
    candidates, outputs = by_hand(model, data)
    scores = twins(outputs)
    ties = scores["predictive_entropy"] if score == "variation_ratio" else None
    check(data, candidates, scores[score], ties)


@pytest.mark.parametrize("strategy", [BALDAcquisition, MCDropoutAcquisition, VariationRatioAcquisition])
def test_every_cycle_and_every_seed_has_draws_of_its_own(strategy):
    score = {BALDAcquisition: "bald", MCDropoutAcquisition: "predictive_entropy"}.get(strategy, "variation_ratio")
    _, data = fit(strategy(6, passes=PASSES, seed=3), seed=8)
    model, data = fit(strategy(6, passes=PASSES, seed=3), data=data)
    assert data.pool.cycle == 2
    candidates, outputs = by_hand(model, data, seed=3)
    scores = twins(outputs)
    check(data, candidates, scores[score], scores["predictive_entropy"] if score == "variation_ratio" else None)
    assert not torch.allclose(outputs, by_hand(model, data, seed=8)[1])


def test_without_a_seed_it_is_that_of_the_datamodule():
    model, data = fit(BALDAcquisition(5, passes=PASSES), seed=8)
    candidates, outputs = by_hand(model, data, seed=8)
    check(data, candidates, twins(outputs)["bald"])


def test_the_variance_of_a_regressor():
    model, data = fit(MCDropoutAcquisition(9, passes=PASSES, uncertainty="variance"), "numbers")
    candidates, outputs = by_hand(model, data)
    assert outputs.shape == (PASSES, 40, 2)
    check(data, candidates, twins(outputs)["variance"])


def test_votes_are_few_and_their_ties_decided_by_the_entropy():
    model, data = fit(VariationRatioAcquisition(25, passes=PASSES))
    assert len(set(data.pool.history[-1].scores)) < PASSES
    candidates, outputs = by_hand(model, data)
    scores = twins(outputs)
    check(data, candidates, scores["variation_ratio"], scores["predictive_entropy"])


# ---------------------------------------------------------------- BatchBALD


def greedy(outputs: Tensor, budget: int) -> list[int]:
    """Pick by the joint mutual information, summed over every combination of classes."""
    probs_nkc = outputs.softmax(2).transpose(0, 1).numpy()
    conditional = entropy(probs_nkc, 2).mean(1)
    picks, given_km = [], np.ones((probs_nkc.shape[1], 1))
    for _ in range(budget):
        joint_nkmc = given_km[None, :, :, None] * probs_nkc[:, :, None, :]
        gains = entropy(joint_nkmc.mean(1).reshape(len(probs_nkc), -1), 1) - conditional
        gains[picks] = -np.inf
        picks.append(int(gains.argmax()))
        given_km = joint_nkmc[picks[-1]].reshape(len(given_km), -1)
    return picks


def test_batch_bald_is_greedy_in_the_joint_information():
    model, data = fit(BatchBALDAcquisition(5, passes=PASSES))  # 4^5 configurations: the last pick sees 4^4 exactly
    candidates, outputs = by_hand(model, data)
    assert data.pool.history[-1].indices == [candidates[row] for row in greedy(outputs, 5)]


def test_batch_bald_estimates_with_few_configurations():
    _, exact = fit(BatchBALDAcquisition(8, passes=PASSES, configurations=10**5))
    _, rough = fit(BatchBALDAcquisition(8, passes=PASSES, configurations=4))
    picks = [data.pool.history[-1].indices for data in (exact, rough)]
    assert picks[0][:2] == picks[1][:2]  # there are 4 configurations of one sample
    assert picks[0] != picks[1]


# ---------------------------------------------------------------- the user's model


class Always(nn.Module):
    """Drops by a function, on in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 32), nn.Linear(32, 4)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(F.dropout(self.hidden(points).relu(), 0.3))


class InTraining(Always):
    def forward(self, points: Tensor) -> Tensor:
        return self.head(F.dropout(self.hidden(points).relu(), 0.3, training=self.training))


@pytest.mark.parametrize("strategy", [BALDAcquisition, MCDropoutAcquisition, VariationRatioAcquisition])
def test_a_function_that_drops_in_eval_mode_is_dropout(strategy):
    picks = [fit(strategy(7, passes=PASSES), net=Always)[1].pool.history[-1] for _ in range(2)]
    assert picks[0].indices == picks[1].indices
    assert picks[0].scores == picks[1].scores


def test_batch_bald_refuses_a_function_that_drops():
    message = "`BatchBALDAcquisition` needs one mask per draw for all samples, but Net predicts another row of a batch"
    with pytest.raises(ValueError, match=message):
        fit(BatchBALDAcquisition(7, passes=PASSES), net=Always)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("net", [InTraining, lambda: nn.Linear(3, 4)])
def test_a_model_that_does_not_drop_is_refused(strategy, net):
    message = rf"`{strategy.__name__}` compares predictions under dropout, but those of Net do not change: it has no"
    with pytest.raises(ValueError, match=message + "(?s:.*)`NoiseStabilityAcquisition`"):
        fit(strategy(7, passes=PASSES), net=net)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_module_and_the_random_numbers_stay(strategy, monkeypatch):
    pictures = []
    query = strategy.on_fit_end

    def look(self, trainer, module):
        pictures.append((module_picture(module), random_picture()))
        query(self, trainer, module)
        pictures.append((module_picture(module), random_picture()))

    monkeypatch.setattr(strategy, "on_fit_end", look)
    fit(strategy(7, passes=PASSES))
    assert pictures[0] == pictures[1]


# ---------------------------------------------------------------- what they refuse


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_output_has_no_classes(strategy):
    data = ActiveLearningDataModule(TensorDataset(normal(60, 3), normal(60, 1)), initial_size=20, batch_size=8)

    def net():
        return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))

    with pytest.raises(ValueError, match="Net has one output per sample, and the softmax of one number is always 1"):
        fit(strategy(7, passes=PASSES), net=net, data=data)


def test_batch_bald_refuses_outputs_at_several_positions():
    message = r"`BatchBALDAcquisition\(output='softmax'\)` needs one .* \(8, 3, 5, 4\): .*Use `BALDAcquisition\("
    with pytest.raises(ValueError, match=message):
        fit(BatchBALDAcquisition(7, passes=PASSES), "maps")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("passes", [1, 0, -2])
def test_refuses_a_single_draw(strategy, passes):
    with pytest.raises(ValueError, match=re.escape(f"`{strategy.__name__}(passes={passes})`: expected at least 2")):
        strategy(7, passes=passes)


def test_refuses_other_arguments():
    message = "`MCDropoutAcquisition(uncertainty='entropy')`: expected one of ('predictive_entropy', 'expected_entropy'"
    with pytest.raises(ValueError, match=re.escape(message)):
        MCDropoutAcquisition(7, uncertainty="entropy")
    with pytest.raises(ValueError, match=re.escape("`BatchBALDAcquisition(configurations=0)`: expected at least 1.")):
        BatchBALDAcquisition(7, configurations=0)
