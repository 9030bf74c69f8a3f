import re
from functools import partial

import numpy as np
import pytest
import torch

from lightning_al import (
    BADGEAcquisition,
    CoreSetAcquisition,
    EntropyAcquisition,
    LeastConfidenceAcquisition,
    MarginAcquisition,
    NoiseStabilityAcquisition,
    RandomAcquisition,
    StochasticBatch,
)
from lightning_al.formulas.ranking import boltzmann, power, soft_rank
from lightning_al.strategies.bald import BALDAcquisition
from tests.wrappers.fits import alone, fit, picks_of, selection_generator

pytestmark = pytest.mark.usefixtures("unrehearsed")

PICK = {"power": power, "boltzmann": boltzmann, "soft_rank": soft_rank}


def stability(passes):
    """R(x) from the deviations of all passes, side by side."""
    return lambda rows: rows.square().sum(1) / passes


def gradient_length(rows, classes=4):
    return rows[:, :classes].norm(dim=1) * rows[:, classes:].norm(dim=1)


SCORED = {
    "entropy": (EntropyAcquisition, lambda rows: rows),
    "least_confidence": (LeastConfidenceAcquisition, lambda rows: rows),
    "bald": (partial(BALDAcquisition, passes=4), lambda rows: rows),
    "noise_stability": (partial(NoiseStabilityAcquisition, passes=3), lambda rows: rows[:, 0]),
    "topk": (partial(NoiseStabilityAcquisition, passes=3, selection="topk"), lambda rows: rows[:, 0]),
    "kmeans": (partial(NoiseStabilityAcquisition, passes=3, selection="kmeans++"), stability(3)),
    "k_center": (partial(NoiseStabilityAcquisition, passes=3, selection="k-center"), stability(3)),
    "badge": (BADGEAcquisition, gradient_length),
}


@pytest.mark.parametrize("name", SCORED)
def test_picks_by_power_of_the_other_acquisitions_scores(name):
    factory, score = SCORED[name]
    _, query = alone(factory(7))
    scores = score(query.pool)
    data = fit(StochasticBatch(7, factory))
    labeling = data.pool.history[1]
    assert labeling.indices == query.pick(power(scores, 7, generator=selection_generator()))
    assert set(labeling.indices) != set(query.pick(scores.topk(7).indices))
    expected = [float(scores[query.indices.index(index)]) for index in labeling.indices]
    np.testing.assert_allclose(labeling.scores, expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("noise", ["boltzmann", "soft_rank"])
def test_picks_by_the_noise_and_the_temperature_it_was_given(noise, temperature):
    _, query = alone(MarginAcquisition(7))
    expected = PICK[noise](query.pool, 7, generator=selection_generator(), temperature=temperature)
    assert picks_of(StochasticBatch(7, MarginAcquisition, noise=noise, temperature=temperature)) == query.pick(expected)


def test_is_the_power_selection_of_noise_stability():
    whole = NoiseStabilityAcquisition(7, passes=3, selection="power")
    assert picks_of(StochasticBatch(7, partial(NoiseStabilityAcquisition, passes=3, selection="topk"))) == picks_of(
        whole
    )


@pytest.mark.parametrize("noise", PICK)
def test_hardly_any_noise_leaves_the_largest_scores(noise):
    assert picks_of(StochasticBatch(7, EntropyAcquisition, noise, temperature=1e-9)) == picks_of(EntropyAcquisition(7))


def test_the_seed_of_the_other_acquisition_is_that_of_the_noise():
    def picks(seed):
        return picks_of(StochasticBatch(7, partial(BADGEAcquisition, seed=seed)))

    _, query = alone(BADGEAcquisition(7))
    expected = power(gradient_length(query.pool), 7, generator=selection_generator(seed=5))
    assert picks(5) == query.pick(expected)
    assert picks(None) == picks(0) != picks(5)


def test_every_cycle_draws_anew():
    data = fit(StochasticBatch(7, EntropyAcquisition))
    _, query = alone(EntropyAcquisition(7), data=data)
    again = fit(StochasticBatch(7, EntropyAcquisition))
    picks = picks_of(StochasticBatch(7, EntropyAcquisition), data=again)
    assert picks == query.pick(power(query.pool, 7, generator=selection_generator(cycle=1)))


def test_power_of_a_negative_score_is_refused():
    with pytest.raises(ValueError, match=r"takes logarithms of scores, got -0\.\d+\. Use noise=\"soft_rank\""):
        fit(StochasticBatch(7, MarginAcquisition))


@pytest.mark.parametrize("factory", [CoreSetAcquisition, RandomAcquisition])
def test_an_acquisition_without_scores_is_refused(factory):
    message = rf"`StochasticBatch\(acquisition={factory.__name__}\)`: it has no score per sample\. Use it as it is"
    with pytest.raises(ValueError, match=message):
        fit(StochasticBatch(7, factory))


@pytest.mark.parametrize(
    "options",
    [
        {"noise": "gumbel"},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
    ],
)
def test_arguments_out_of_range_are_refused(options):
    (name, value), *_ = options.items()
    message = rf"`StochasticBatch\(.*{name}={re.escape(repr(value))}.*\)`: expected one of \('power', 'boltzmann', 's"
    with pytest.raises(ValueError, match=message):
        StochasticBatch(7, EntropyAcquisition, **options)


def test_scores_travel_whole():
    """No process may keep what the noise could raise to the top."""
    wrapper = StochasticBatch(7, EntropyAcquisition)
    assert wrapper.rows_to_gather(torch.rand(50), 7) is None
    assert EntropyAcquisition(7).rows_to_gather(torch.rand(50), 7) is not None
