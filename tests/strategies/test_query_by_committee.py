import copy
import pickle
import re

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import TensorDataset

from lightning_al import ActiveLearningDataModule, EntropyAcquisition, run_cycles
from lightning_al.acquisition.query import Query
from lightning_al.model.weight_swap import copy_weights
from lightning_al.numerics.seeding import make_generator, seeded
from lightning_al.strategies.query_by_committee import QueryByCommitteeAcquisition
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.runs import make_trainer

DISAGREEMENTS = ["vote_entropy", "consensus_entropy", "kl_divergence"]


class Trained(list):
    """Every network as it was after its training, in double precision, in a list that copies of a module share."""

    def __deepcopy__(self, memo):
        return self

    def append(self, module):
        module = copy.deepcopy(module)
        super().append(module.double().eval())


class Toy(ToyClassifier):
    def __init__(self):
        super().__init__()
        self.trained = Trained()

    def on_train_end(self):
        self.trained.append(self)


def make_data(dataset=None, **options):
    return ActiveLearningDataModule(
        ToyDataset() if dataset is None else dataset, **{"initial_size": 20, "batch_size": 8, **options}
    )


def fit(acquisition, *callbacks, model=None, data=None, **options):
    data = make_data() if data is None else data
    with seeded(0):
        model = Toy() if model is None else model
        make_trainer(acquisition, *callbacks, **{"max_epochs": 3, **options}).fit(model, data)
    return model, data


def by_hand(modules, inputs):
    """Every disagreement of whole networks, in NumPy: dense outputs as (K, N, C, positions)."""
    with torch.no_grad():
        logits_kncp = torch.stack([module(inputs.double()).reshape(len(inputs), -1, 1) for module in modules])
    if inputs.ndim > 2:
        logits_kncp = logits_kncp.reshape(len(modules), len(inputs), -1, inputs[0, 0].numel())
    probs_kncp = logits_kncp.softmax(2).numpy()
    consensus = probs_kncp.mean(0)
    divergence = (probs_kncp * np.log(probs_kncp / consensus)).sum(2).mean(0)
    winners = probs_kncp.argmax(2)
    votes = np.stack([(winners == label).mean(0) for label in range(probs_kncp.shape[2])], 1)
    return {
        "vote_entropy": -(votes * np.log(np.where(votes > 0, votes, 1))).sum(1).mean(1),
        "consensus_entropy": -(consensus * np.log(consensus)).sum(1).mean(1),
        "kl_divergence": divergence.mean(1),
    }


def check(data, modules, inputs, disagreement):
    """Compare the last query, its order included, with the networks' disagreement by hand."""
    taken = set(data.pool.labeled_by(data.pool.cycle - 1))
    candidates = [index for index in range(data.pool.size) if index not in taken]
    scores = by_hand(modules, inputs[candidates])
    query = data.pool.history[-1]
    expected = dict(zip(candidates, scores[disagreement], strict=True))
    np.testing.assert_allclose(query.scores, [expected[index] for index in query.indices], rtol=1e-4, atol=2e-6)
    assert max(query.scores) > 1e-3
    # rounded, so that double and single precision agree on which scores are equal
    order = np.lexsort((-scores["consensus_entropy"], -scores[disagreement].round(5)))
    assert query.indices == [candidates[row] for row in order[: len(query.indices)]]


# ---------------------------------------------------------------- members that it trains


@pytest.mark.parametrize("disagreement", DISAGREEMENTS)
def test_scores_are_the_disagreement_of_the_networks_it_trained(disagreement):
    model, data = fit(QueryByCommitteeAcquisition(7, members=4, disagreement=disagreement))
    assert len(model.trained) == 4
    check(data, model.trained, ToyDataset().points, disagreement)
    weights = [module.net[0].weight for module in model.trained]
    assert all(not torch.equal(weights[i], weights[j]) for i in range(4) for j in range(i))


def test_votes_are_tied_and_the_consensus_decides():
    model, data = fit(QueryByCommitteeAcquisition(30))
    scores = data.pool.history[-1].scores
    assert len(set(scores)) < 5
    check(data, model.trained, ToyDataset().points, "vote_entropy")


class Frozen(Toy):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Start(Callback):
    def setup(self, trainer, pl_module, stage):
        self.weights = copy_weights(pl_module)


@pytest.mark.parametrize("reinitialize", [True, False])
def test_members_start_afresh_or_from_where_the_fit_started(reinitialize):
    start = Start()
    model, _ = fit(QueryByCommitteeAcquisition(7, reinitialize=reinitialize), start, model=Frozen())
    same = [torch.equal(module.net[0].weight.float(), start.weights["net.0.weight"]) for module in model.trained]
    assert same == ([True, False, False] if reinitialize else [True, True, True])


def test_a_bootstrap_makes_other_members():
    weights = [
        fit(QueryByCommitteeAcquisition(7, members=2, bootstrap=bootstrap))[0].trained[1].net[0].weight
        for bootstrap in (False, True)
    ]
    assert not torch.equal(*weights)


def test_the_seed_decides_who_they_are():
    def members(acquisition, **options):
        return [module.net[0].weight for module in fit(acquisition, data=make_data(**options))[0].trained]

    first = members(QueryByCommitteeAcquisition(7, members=2))
    same = members(QueryByCommitteeAcquisition(7, members=2, seed=0))  # the datamodule's
    other = members(QueryByCommitteeAcquisition(7, members=2, seed=1))
    assert torch.equal(first[1], same[1])
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_every_cycle_has_a_committee_of_its_own(tmp_path):
    acquisition, models = QueryByCommitteeAcquisition(6, disagreement="kl_divergence"), []
    data = make_data()

    def make(cycle):
        models.append(Toy())
        return make_trainer(acquisition, max_epochs=2), models[-1]

    records = run_cycles(make, data, cycles=3, run_dir=tmp_path, config={})
    assert [record["queried"] for record in records] == [6, 6, 6]
    assert [len(model.trained) for model in models] == [3, 3, 3]
    check(data, models[-1].trained, ToyDataset().points, "kl_divergence")
    weights = [module.net[0].weight for model in models for module in model.trained]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 9


def test_members_start_elsewhere_in_every_cycle():
    data = make_data()
    starts = [fit(QueryByCommitteeAcquisition(7), model=Frozen(), data=data)[0].trained[1:] for _ in range(2)]
    weights = [module.net[0].weight for trained in starts for module in trained]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 4


def test_what_the_first_process_trained_counts(monkeypatch):
    def broadcast(self, value, src=0):
        return {name: tensor + 0.5 for name, tensor in value.items()} if isinstance(value, dict) else value

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", broadcast)
    model, data = fit(QueryByCommitteeAcquisition(7, members=2, disagreement="kl_divergence"))
    with torch.no_grad():
        for tensor in model.trained[1].state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.5)
    check(data, model.trained, ToyDataset().points, "kl_divergence")


def test_it_is_small_again_after_the_fit():
    acquisition, plain = QueryByCommitteeAcquisition(7, members=2), EntropyAcquisition(7)

    class Held(Callback):
        def on_train_end(self, trainer, pl_module):
            self.start = acquisition._start

    held = Held()
    fit(acquisition, held, model=ToyClassifier(), max_epochs=1)
    fit(plain, model=ToyClassifier(), max_epochs=1)  # Lightning leaves something on every callback
    assert isinstance(held.start, ToyClassifier)
    assert len(pickle.dumps(acquisition)) < len(pickle.dumps(plain)) + 300
    assert pickle.loads(pickle.dumps(acquisition)).members == 2


@pytest.mark.parametrize("option", [{"fast_dev_run": True}, {"max_epochs": 1, "precision": "bf16-mixed"}], ids=str)
def test_members_train_as_the_trainer_does(option):
    model, data = fit(QueryByCommitteeAcquisition(7, members=2, disagreement="kl_divergence"), **option)
    assert len(model.trained) == 2
    if "fast_dev_run" in option:
        assert data.pool.cycle == 0
    else:
        check(data, model.trained, ToyDataset().points, "kl_divergence")


# ---------------------------------------------------------------- any module, any output


class Dense(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
        self.trained = Trained()

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_train_end(self):
        self.trained.append(self)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


@pytest.mark.parametrize("disagreement", DISAGREEMENTS)
def test_dense_scores_are_means_over_the_positions(disagreement):
    generator = make_generator(0)
    images = torch.randn(30, 2, 5, 6, generator=generator)
    dataset = TensorDataset(images, torch.randint(3, (30, 5, 6), generator=generator))
    model, data = fit(
        QueryByCommitteeAcquisition(4, disagreement=disagreement),
        model=Dense(),
        data=make_data(dataset, initial_size=12, batch_size=6),
    )
    check(data, model.trained, images, disagreement)


@pytest.mark.usefixtures("unrehearsed")
def test_a_routine_that_nobody_here_wrote(tmp_path, monkeypatch):
    from torch_uncertainty.routines import ClassificationRoutine

    committee = []
    prepare = QueryByCommitteeAcquisition.prepare

    def remember(self, context):
        prepare(self, context)
        committee.extend({name: tensor.clone() for name, tensor in member.items()} for member in self._committee)

    monkeypatch.setattr(QueryByCommitteeAcquisition, "prepare", remember)
    net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
    routine = ClassificationRoutine(
        model=net, num_classes=4, loss=nn.CrossEntropyLoss(), optim_recipe=torch.optim.Adam(net.parameters(), 0.02)
    )
    dataset = ToyDataset()
    _, data = fit(
        QueryByCommitteeAcquisition(7, disagreement="kl_divergence"),
        model=routine,
        data=make_data(dataset, val_dataset=dataset),
        logger=CSVLogger(tmp_path),
        num_sanity_val_steps=0,
    )
    modules = [copy.deepcopy(routine).double().eval() for _ in committee]
    for module, weights in zip(modules, committee, strict=True):
        module.load_state_dict(weights)
    assert all(torch.equal(tensor, routine.state_dict()[name]) for name, tensor in committee[0].items())
    # the optimizer that the routine was given trained each member, and not the routine again
    accuracies = [(module(dataset.points.double()).argmax(1) == dataset.targets).float().mean() for module in modules]
    assert min(accuracies) > 0.4
    check(data, modules, dataset.points, "kl_divergence")


def test_one_output_has_no_votes():
    class Regression(ToyClassifier):
        def training_step(self, batch, batch_idx):
            return self(batch[0]).square().mean()

    with pytest.raises(ValueError, match=r"Regression has one output per sample"):
        fit(QueryByCommitteeAcquisition(7, members=2), model=Regression(classes=1), max_epochs=1)


# ---------------------------------------------------------------- members from files


def write_checkpoints(folder):
    """Return files of two other networks, as Lightning writes them and as torch does, and the networks."""
    data = make_data()
    with seeded(1):
        models = [Toy(), Toy()]
        trainer = make_trainer(EntropyAcquisition(5), max_epochs=3)
        trainer.fit(models[0], data)
    trainer.save_checkpoint(folder / "one.ckpt")
    torch.save(models[1].state_dict(), folder / "two.pt")
    return [str(folder / "one.ckpt"), str(folder / "two.pt")], [copy.deepcopy(m).double().eval() for m in models]


@pytest.mark.parametrize("disagreement", DISAGREEMENTS)
def test_scores_are_the_disagreement_with_the_networks_in_files(disagreement, tmp_path):
    files, others = write_checkpoints(tmp_path)
    acquisition = QueryByCommitteeAcquisition(7, checkpoints=files, disagreement=disagreement)
    model, data = fit(acquisition)
    assert len(model.trained) == 1, "nothing more is trained"
    check(data, [*model.trained, *others], ToyDataset().points, disagreement)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(ToyClassifier(classes=5).state_dict(), tmp_path / "other.pt")
    acquisition = QueryByCommitteeAcquisition(7, checkpoints=[str(tmp_path / "other.pt")])
    with pytest.raises(ValueError, match=r"(?s)'.*other.pt' does not fit Toy: .*size mismatch for net.4"):
        fit(acquisition, max_epochs=1)


# ---------------------------------------------------------------- choices and arguments


def test_rows_are_ranked_by_the_first_column_and_ties_by_the_second():
    rows = torch.tensor([[0.5, 0.1], [0.7, 0.2], [0.5, 0.3], [0.0, 9.0], [0.7, 0.2]])
    acquisition = QueryByCommitteeAcquisition(4)
    query = Query(rows, [10, 11, 12, 13, 14], 4, make_generator(0))
    assert acquisition.select(query) == [11, 14, 12, 10]
    assert acquisition.rows_to_gather(rows, 3).tolist() == [1, 4, 2]
    assert acquisition.score(rows).tolist() == rows[:, 0].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": 1}, "`QueryByCommitteeAcquisition(members=1)`: expected at least 2"),
        ({"disagreement": "kl"}, "`QueryByCommitteeAcquisition(disagreement='kl')`: expected one of ('vote_entropy',"),
        ({"checkpoints": []}, "`QueryByCommitteeAcquisition(checkpoints=[])`: expected a list of at least one file"),
        ({"checkpoints": __file__}, "expected a list of at least one file"),
        ({"checkpoints": [__file__, "nowhere.ckpt"]}, "there is no file 'nowhere.ckpt'"),
        ({"checkpoints": [__file__], "bootstrap": True}, "bootstrap=True)` set how members are trained"),
        ({"checkpoints": [__file__], "reinitialize": False}, "(reinitialize=False, bootstrap=False)` set how"),
    ],
)
def test_refuses_what_makes_no_committee(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QueryByCommitteeAcquisition(7, **arguments)
