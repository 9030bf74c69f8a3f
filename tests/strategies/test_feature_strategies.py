import re

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from skactiveml.pool import CoreSet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_al import ActiveLearningDataModule, functional
from lightning_al.numerics.seeding import RandomStream, derive_seed, make_generator, seeded
from lightning_al.strategies import BADGEAcquisition, CoreSetAcquisition, ProbCoverAcquisition, TypiClustAcquisition
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.runs import make_trainer
from tests.snapshot import module_picture, random_picture

STRATEGIES = [BADGEAcquisition, CoreSetAcquisition, ProbCoverAcquisition, TypiClustAcquisition]


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


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=make_generator(0))


def dense():
    return Net(nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 3, 1)))


def regressor():
    return Net(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)))


def maps():
    return TensorDataset(normal(40, 2, 5, 4), torch.randint(3, (40, 5, 4), generator=make_generator(1)))


def numbers():
    points = normal(60, 3)
    return TensorDataset(points, points.prod(dim=1, keepdim=True))


TASKS = {"classes": (ToyClassifier, ToyDataset), "numbers": (regressor, numbers), "maps": (dense, maps)}


def fit(acquisition, task="classes", *, data=None, **options):
    make, dataset = TASKS[task]
    if data is None:
        data = ActiveLearningDataModule(dataset(), **{"initial_size": 20, "batch_size": 8, **options})
    with seeded(0):
        model = make()
        make_trainer(acquisition, max_epochs=3).fit(model, data)
    return model.eval(), data


@torch.no_grad()
def by_hand(model, data, layers=slice(None, -1)):
    """Return the candidates of the last query, the labeled samples, and of both the outputs and features."""
    labeled = sorted(data.pool.labeled_by(data.pool.cycle - 1))
    candidates = [index for index in range(data.pool.size) if index not in set(labeled)]
    found = []
    for part in (candidates, labeled):
        inputs = torch.stack([data.datamodule.train[index][0] for index in part])
        features = model.net[layers](inputs)
        found += [model(inputs), features.flatten(2).mean(2) if features.ndim > 2 else features]
    return candidates, labeled, *found


def picks_of(data):
    return data.pool.history[-1].indices


# ---------------------------------------------------------------- core-set


@pytest.mark.parametrize("task", TASKS)
def test_core_set_is_that_of_scikit_activeml(task):
    # which breaks ties at random: features are distinct here
    model, data = fit(CoreSetAcquisition(9), task)
    candidates, labeled, _, pool, _, centers = by_hand(model, data)
    points = torch.cat([pool, centers]).double().numpy()
    labels = np.r_[np.full(len(candidates), np.nan), np.zeros(len(labeled))]
    rows = CoreSet(random_state=0).query(points, labels, batch_size=9)
    assert picks_of(data) == [candidates[row] for row in rows]


def test_core_set_covers_with_what_earlier_cycles_labeled():
    _, data = fit(CoreSetAcquisition(6))
    model, data = fit(CoreSetAcquisition(6), data=data)
    candidates, labeled, _, pool, _, centers = by_hand(model, data)
    assert len(labeled) == 26
    rows = CoreSet(random_state=0).query(
        torch.cat([pool, centers]).double().numpy(), np.r_[np.full(94, np.nan), np.zeros(26)], batch_size=6
    )
    assert picks_of(data) == [candidates[row] for row in rows]
    assert data.pool.history[-1].scores is None


def test_core_set_of_a_named_module():
    model, data = fit(CoreSetAcquisition(9, features="net.1"))
    candidates, _, _, pool, _, centers = by_hand(model, data, slice(2))
    assert picks_of(data) == [candidates[row] for row in functional.k_center(pool, 9, centers=centers).tolist()]
    assert picks_of(data) != picks_of(fit(CoreSetAcquisition(9))[1])


# ---------------------------------------------------------------- BADGE


def gradients(model, data):
    """Return the candidates and the gradient of each in the weight of the last layer, by autograd: (N, C, D)."""
    candidates, _, *_ = by_hand(model, data)
    found = []
    for index in candidates:
        logits = model(data.datamodule.train[index][0].unsqueeze(0))
        found += torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), model.net[-1].weight)
    return candidates, torch.stack(found)


def test_the_scores_of_badge_are_the_lengths_of_the_gradients():
    model, data = fit(BADGEAcquisition(15))
    candidates, found = gradients(model, data)
    lengths = dict(zip(candidates, found.flatten(1).norm(dim=1).tolist(), strict=True))
    query = data.pool.history[-1]
    np.testing.assert_allclose(query.scores, [lengths[index] for index in query.indices], rtol=1e-4, atol=1e-6)
    assert len(set(query.scores)) == 15


@pytest.mark.parametrize("seed", range(3))
def test_badge_draws_by_kmeans_plus_plus_over_the_gradients(seed):
    model, data = fit(BADGEAcquisition(10, seed=seed))
    candidates, found = gradients(model, data)
    generator = make_generator(RandomStream.SELECTION, seed, 0)
    rows = functional.kmeans_plus_plus(found.flatten(1), 10, generator=generator)
    assert picks_of(data) == [candidates[row] for row in rows.tolist()]


def test_badge_scores_rows_of_both_factors():
    acquisition = BADGEAcquisition(2)
    acquisition._classes = 2
    assert acquisition.score(torch.tensor([[3.0, 4.0, 2.0, 0.0, 0.0], [0.0, 1.0, 1.0, 2.0, 2.0]])).tolist() == [10, 3]


@pytest.mark.parametrize("features", [None, "net.0"])
def test_badge_refuses_outputs_at_several_positions(features):
    message = r"`BADGEAcquisition` needs one row of outputs per sample, got \(8, 3, 5, 4\): .*use `CoreSetAcquisition`"
    with pytest.raises(ValueError, match=message):
        fit(BADGEAcquisition(5, features=features), "maps")


def test_badge_needs_classes():
    with pytest.raises(ValueError, match="Net has one output per sample, and the softmax of one number is always 1"):
        fit(BADGEAcquisition(5), "numbers")


# ---------------------------------------------------------------- TypiClust and ProbCover


def directions(found):
    candidates, _, outputs, pool, _, labeled = found
    return candidates, outputs, F.normalize(pool), F.normalize(labeled)


def cluster_seed(seed, cycle):
    return derive_seed(RandomStream.CLUSTERS, seed, cycle) % 2**32


@pytest.mark.parametrize("task", TASKS)
def test_typiclust_picks_from_the_directions_of_the_features(task):
    model, data = fit(TypiClustAcquisition(7, neighbors=3, max_clusters=12, seed=5), task)
    candidates, _, pool, labeled = directions(by_hand(model, data))
    options = {"labeled": labeled, "seed": cluster_seed(5, 0)}
    rows = functional.typiclust(pool, 7, **options, neighbors=3, max_clusters=12)
    assert picks_of(data) == [candidates[row] for row in rows.tolist()]
    assert rows.tolist() != functional.typiclust(pool, 7, **options).tolist()


@pytest.mark.parametrize("task", TASKS)
def test_probcover_covers_the_directions_of_the_features(task):
    model, data = fit(ProbCoverAcquisition(5, radius=0.3), task)
    candidates, _, pool, labeled = directions(by_hand(model, data))
    within = torch.cdist(pool.double(), pool.double()) <= 0.3
    uncovered = ~(torch.cdist(labeled.double(), pool.double()) <= 0.3).any(0)
    expected = []
    while uncovered.any() and len(expected) < 5:
        gains = (within & uncovered).sum(1)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        uncovered &= ~within[expected[-1]]
    assert expected
    assert picks_of(data)[: len(expected)] == [candidates[row] for row in expected]


@pytest.mark.parametrize("task", ["classes", "maps"])
def test_probcover_finds_its_radius(task):
    model, data = fit(ProbCoverAcquisition(5, purity=0.8), task)
    candidates, outputs, pool, labeled = directions(by_hand(model, data))
    seed = cluster_seed(0, 0)
    radius = functional.purity_radius(pool, clusters=outputs.shape[1], seed=seed, purity=0.8)
    generator = make_generator(RandomStream.SELECTION, 0, 0)
    rows = functional.prob_cover(pool, 5, labeled=labeled, radius=radius, generator=generator)
    assert picks_of(data) == [candidates[row] for row in rows.tolist()]
    assert functional.purity_radius(pool, clusters=outputs.shape[1], seed=seed) < radius


def test_probcover_cannot_find_the_radius_without_classes():
    with pytest.raises(ValueError, match=r"`ProbCoverAcquisition\(radius=None\)` finds .* Net has one output. Pass a"):
        fit(ProbCoverAcquisition(5), "numbers")


@pytest.mark.parametrize("strategy", [TypiClustAcquisition, ProbCoverAcquisition])
def test_another_cycle_clusters_anew(strategy):
    _, data = fit(strategy(6), seed=1)
    model, data = fit(strategy(6), data=data)
    candidates, outputs, pool, labeled = directions(by_hand(model, data))
    assert len(labeled) == 26
    seed = cluster_seed(1, 1)
    if strategy is TypiClustAcquisition:
        rows = functional.typiclust(pool, 6, labeled=labeled, seed=seed)
    else:
        radius = functional.purity_radius(pool, clusters=outputs.shape[1], seed=seed)
        generator = make_generator(RandomStream.SELECTION, 1, 1)
        rows = functional.prob_cover(pool, 6, labeled=labeled, radius=radius, generator=generator)
    assert picks_of(data) == [candidates[row] for row in rows.tolist()]


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_module_and_the_random_numbers_stay(strategy, monkeypatch):
    pictures = []
    query = strategy.on_fit_end

    def look(self, trainer, module):
        pictures.append((module_picture(module), random_picture()))
        query(self, trainer, module)
        pictures.append((module_picture(module), random_picture()))

    monkeypatch.setattr(strategy, "on_fit_end", look)
    fit(strategy(7))
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_name_that_is_none_is_refused(strategy):
    message = "`features='net.44'`: ToyClassifier has no such module. Did you mean one of net.4"
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(strategy(7, features="net.44"))


@pytest.mark.parametrize(
    ("strategy", "arguments", "message"),
    [
        (TypiClustAcquisition, {"max_clusters": 0}, "(max_clusters=0, neighbors=20)`: expected at least 1"),
        (TypiClustAcquisition, {"neighbors": 0}, "(max_clusters=500, neighbors=0)`: expected at least 1"),
        (ProbCoverAcquisition, {"radius": 0.0}, "(radius=0.0, purity=0.95)`: expected a radius in (0, 2] or None"),
        (ProbCoverAcquisition, {"radius": 2.1}, "(radius=2.1, purity=0.95)`: expected a radius in (0, 2] or None"),
        (ProbCoverAcquisition, {"radius": -1.0}, "(radius=-1.0, purity=0.95)`: expected a radius"),
        (ProbCoverAcquisition, {"radius": float("nan")}, "(radius=nan, purity=0.95)`: expected a radius"),
        (ProbCoverAcquisition, {"purity": 0.0}, "(radius=None, purity=0.0)`: expected a radius"),
        (ProbCoverAcquisition, {"purity": 1.01}, "(radius=None, purity=1.01)`: expected a radius"),
    ],
)
def test_refuses_arguments_out_of_range(strategy, arguments, message):
    with pytest.raises(ValueError, match=re.escape(f"`{strategy.__name__}{message}")):
        strategy(7, **arguments)
