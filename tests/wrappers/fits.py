"""Real fits for the tests of the wrappers, and what an acquisition would see and pick on its own in the same fit."""

from unittest import mock

from lightning_al import ActiveLearningDataModule
from lightning_al.numerics.seeding import RandomStream, make_generator, seeded
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.runs import make_trainer


def fit(acquisition, *callbacks, data=None, model=None, **options):
    """Return the datamodule after a fit, the same one for every acquisition up to the query."""
    if data is None:
        data = ActiveLearningDataModule(ToyDataset(), initial_size=20, batch_size=32)
    with seeded(0):
        trainer = make_trainer(acquisition, *callbacks, **{"max_epochs": 1, **options})
        trainer.fit(ToyClassifier() if model is None else model, data)
    return data


def picks_of(acquisition, **options):
    return fit(acquisition, **options).pool.history[-1].indices


def alone(acquisition, **options):
    """Return an acquisition as it was prepared in a fit of its own, and the query that it got.

    The generator of the query is as it was at first: the picks of this fit draw nothing from it.
    """
    seen = []

    def select(prepared, query):
        seen.append((prepared, query))
        return list(query.indices[: query.budget])

    rehearse = "lightning_al.acquisition.contract.rehearse"
    with mock.patch.object(type(acquisition), "select", select), mock.patch(rehearse):
        fit(acquisition, **options)
    ((prepared, query),) = seen
    return prepared, query


def selection_generator(seed=0, cycle=0):
    return make_generator(RandomStream.SELECTION, seed, cycle)
