import logging
import re
from functools import partial

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.functional import normalize

from lightning_al import (
    Acquisition,
    ActiveLearningDataModule,
    BADGEAcquisition,
    BALDAcquisition,
    CoreSetAcquisition,
    EntropyAcquisition,
    LeastConfidenceAcquisition,
    MarginAcquisition,
    Mixture,
    NoiseStabilityAcquisition,
    ProbCoverAcquisition,
    RandomAcquisition,
    TypiClustAcquisition,
    UncertaintyHerding,
    functional,
)
from lightning_al.numerics.seeding import seeded
from lightning_al.testing import ToyClassifier, ToyDataset
from tests.wrappers.fits import alone, fit, picks_of

SCORED = {
    "margin": (MarginAcquisition, lambda scores: 1 + scores),
    "entropy": (EntropyAcquisition, lambda scores: scores),
    "least_confidence": (LeastConfidenceAcquisition, lambda scores: scores),
    "badge": (BADGEAcquisition, lambda scores: scores),
    "bald": (partial(BALDAcquisition, passes=4), lambda scores: scores.clamp(min=0)),
    "noise_stability": (partial(NoiseStabilityAcquisition, passes="inf"), lambda scores: scores),
    "deviations": (partial(NoiseStabilityAcquisition, passes=3, selection="k-center"), lambda scores: scores),
}


def vectors(acquisition):
    """Return the query of the other acquisition, its scores, and the directions of the features of both parts."""
    prepared, query = alone(acquisition)
    _, features = alone(TypiClustAcquisition(7))
    return query, prepared.score(query.pool), features.pool, features.labeled


@pytest.mark.parametrize("name", SCORED)
def test_herds_by_the_scores_of_the_other_acquisition(name):
    factory, weigh = SCORED[name]
    query, scores, points, labeled = vectors(factory(7))
    width = functional.neighbor_width(points)
    weights = weigh(scores) ** 0.5
    rows = functional.herding(points, 7, labeled=labeled, width=width, weights=weights).tolist()
    labeling = fit(UncertaintyHerding(7, factory, exponent=0.5)).pool.history[1]
    assert labeling.indices == [query.indices[row] for row in rows]
    assert labeling.scores == pytest.approx(scores[rows].tolist(), rel=1e-5)
    assert set(labeling.indices) != {query.indices[row] for row in scores.topk(7).indices.tolist()}


@pytest.mark.parametrize("width", [0.3, "neighbors", "labeled"])
def test_around_random_it_is_max_herding_of_any_width(width):
    query, _, points, labeled = vectors(EntropyAcquisition(7))
    rules = {"neighbors": functional.neighbor_width(points), "labeled": functional.labeled_width(labeled)}
    rows = functional.herding(points, 7, labeled=labeled, width=rules.get(width, width))
    data = fit(UncertaintyHerding(7, RandomAcquisition, width=width))
    assert data.pool.history[1].indices == query.pick(rows)
    assert data.pool.history[1].scores is None


def test_a_temperature_divides_the_logits_that_the_other_acquisition_scores():
    class Tempered(ToyClassifier):
        def forward(self, points):
            logits = super().forward(points)
            return logits if self.training else 20 * logits

    def picks(model, **options):
        with seeded(0):
            return picks_of(UncertaintyHerding(7, MarginAcquisition, embeddings="input", **options), model=model())

    assert picks(ToyClassifier, temperature=0.05) == picks(Tempered) != picks(ToyClassifier)


def test_metrics_of_the_other_acquisition_are_those_of_its_rows():
    prepared, query = alone(UncertaintyHerding(7, partial(NoiseStabilityAcquisition, passes=4)))
    stability, expected = alone(NoiseStabilityAcquisition(7, passes=4))
    assert prepared.metrics(query) == stability.metrics(expected)


def data_to_validate(targets=None):
    part = ToyDataset(size=60, seed=1)
    targets = part.targets if targets is None else targets
    validation = torch.utils.data.TensorDataset(part.points, targets)
    return ActiveLearningDataModule(ToyDataset(), initial_size=20, batch_size=32, val_dataset=validation)


class Overconfident(ToyClassifier):
    def forward(self, points):
        logits = super().forward(points)
        return logits if self.training else 300 * logits

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def test_a_temperature_is_fitted_on_the_validation_data(caplog):
    def picks(temperature):
        acquisition = UncertaintyHerding(7, MarginAcquisition, embeddings="input", temperature=temperature)
        with seeded(0):
            return picks_of(acquisition, model=Overconfident(), data=data_to_validate())

    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fitted = picks("validation")
    temperature = float(re.search(r"temperature ([\d.]+)", caplog.text)[1])
    assert temperature > 5
    assert fitted == picks(temperature) != picks(1.0)


def test_a_temperature_needs_validation_data_with_classes():
    acquisition = UncertaintyHerding(7, MarginAcquisition, temperature="validation")
    with pytest.raises(MisconfigurationException, match="the data has no `val_dataloader`"):
        fit(acquisition)
    with pytest.raises(ValueError, match="expected the class of each sample in a batch of validation data"):
        fit(acquisition, model=Overconfident(), data=data_to_validate(torch.rand(60)))


def test_probabilities_have_no_temperature():
    class Sure(ToyClassifier):
        def forward(self, points):
            logits = super().forward(points)
            return logits if self.training else logits.softmax(1)

    message = r"`temperature=2\.0`: Sure returns probabilities, but a temperature divides logits"
    with pytest.raises(ValueError, match=message):
        fit(UncertaintyHerding(7, MarginAcquisition, temperature=2.0), model=Sure())


class Halves(Acquisition):
    """Scores below its bound."""

    def measure(self, predictor, batch):
        return -predictor.probabilities(batch).amax(1)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (CoreSetAcquisition, r"acquisition=CoreSetAcquisition\)`: it has no score per sample\. Wrap one that ranks"),
        (partial(CoreSetAcquisition, embeddings="a.npy"), r"acquisition=CoreSetAcquisition\)`: it has no score"),
        (Halves, r"acquisition=Halves\)`: expected scores of at least Halves\.min_score = 0\.0, got -0\.\d+\. Wrap"),
    ],
)
def test_an_acquisition_without_suitable_scores_is_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        fit(UncertaintyHerding(7, factory))


@pytest.mark.parametrize(
    "options",
    [
        {"width": 0.0},
        {"width": "wide"},
        {"temperature": "test"},
        {"exponent": 0.0},
        {"temperature": -1.0},
        {"width": float("inf")},
    ],
)
def test_arguments_out_of_range_are_refused(options):
    ((name, value),) = options.items()
    message = (
        rf"`UncertaintyHerding\(.*{name}={re.escape(repr(value))}.*\)`: expected positive numbers; the width may be"
    )
    with pytest.raises(ValueError, match=message):
        UncertaintyHerding(7, MarginAcquisition, **options)


BOUNDED = {
    "UncertaintyHerding": lambda **options: UncertaintyHerding(7, MarginAcquisition, **options),
    "ProbCoverAcquisition": lambda **options: ProbCoverAcquisition(7, radius=0.3, **options),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_strategies_of_quadratic_cost_draw_a_bounded_number_of_candidates_and_announce_it(name, caplog):
    assert BOUNDED[name]().max_candidates == 10_000
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        _, query = alone(BOUNDED[name](candidates=50))
        _, again = alone(BOUNDED[name](candidates=50))
        _, of_all = alone(BOUNDED[name](candidates=None))
    assert len(query.indices) == 50 < len(of_all.indices)
    assert query.indices == again.indices == sorted(query.indices)
    assert (
        caplog.text.count(f"{name}: its cost grows with the square of the candidates, so each query draws 50 of") == 2
    )
    for wrong in (0, True, 0.5):
        with pytest.raises(ValueError, match=rf"`{name}\(candidates={wrong}\)`: expected an integer of at least 1"):
            BOUNDED[name](candidates=wrong)


def test_a_mixture_draws_no_more_candidates_than_its_parts_take():
    parts = [MarginAcquisition, partial(UncertaintyHerding, acquisition=MarginAcquisition, candidates=40)]
    _, query = alone(Mixture(6, parts))
    assert len(query.indices) == 40


def test_scores_of_all_candidates_travel():
    wrapper = UncertaintyHerding(7, EntropyAcquisition)
    assert wrapper.rows_to_gather(torch.rand(50, 3), 7) is None
    _, query = alone(wrapper)
    _, entropies = alone(EntropyAcquisition(7))
    torch.testing.assert_close(query.candidate_scores, entropies.pool)
    torch.testing.assert_close(normalize(query.pool[:, 1:]), query.pool[:, 1:])
