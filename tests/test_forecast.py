import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from lightning_al import forecast
from lightning_al.forecast import RIDGES, Forecast, fit_forecast

DOUBLE = torch.float64


def some_samples(count: int = 40, columns: int = 3, seed: int = 0, noise: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of unequal scales, noisy targets that bend with them, and weights."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, columns, generator=generator, dtype=DOUBLE)
    features = features * torch.tensor([10.0, 1.0, 0.01][:columns]) + 5
    targets = (features[:, 0] / 10).sin() + features[:, 1].square() / 4
    targets += noise * torch.randn(count, generator=generator, dtype=DOUBLE)
    return features, targets, torch.rand(count, generator=generator, dtype=DOUBLE) + 0.05


def standardized(features: Tensor) -> np.ndarray:
    return ((features - features.mean(0)) / features.std(0)).numpy()


def regression(one: np.ndarray, targets: np.ndarray, weights: np.ndarray, ridge: float, width: float) -> KernelRidge:
    """Fit another one's regression to targets around a mean of zero."""
    return KernelRidge(kernel="rbf", gamma=1 / (2 * width**2), alpha=ridge).fit(one, targets, sample_weight=weights)


def median_distance(anchors: np.ndarray) -> float:
    distances = sorted(float(np.linalg.norm(one - other)) for row, one in enumerate(anchors) for other in anchors[:row])
    return distances[(len(distances) - 1) // 2]


def left_out_error(anchors: np.ndarray, targets: np.ndarray, weights: np.ndarray, ridge: float, width: float) -> float:
    """Leave one sample out, fit to the others, foretell it, and so on."""
    errors = []
    for left in range(len(anchors)):
        kept = np.arange(len(anchors)) != left
        model = regression(anchors[kept], targets[kept], weights[kept], ridge, width)
        errors.append(targets[left] - model.predict(anchors[[left]])[0])
    return float(np.sqrt(np.average(np.square(errors), weights=weights)))


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_leave_one_out_error_is_that_of_as_many_refits(monkeypatch, ridge, weighted):
    monkeypatch.setattr(forecast, "RIDGES", (ridge,))
    features, targets, weights = some_samples()
    weights = weights if weighted else torch.ones_like(weights)
    found = fit_forecast(features, targets, weights)
    anchors, mean = standardized(features), float(np.average(targets, weights=weights))
    expected = left_out_error(anchors, targets.numpy() - mean, weights.numpy(), ridge, median_distance(anchors))
    assert found.error == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("columns", [2, 3])
def test_forecasts_are_those_of_kernel_ridge_regression(monkeypatch, ridge, columns):
    monkeypatch.setattr(forecast, "RIDGES", (ridge,))
    features, targets, weights = some_samples(60, columns)
    fit, new = features[:40], features[40:]
    found = fit_forecast(fit, targets[:40], weights[:40])
    anchors, mean = standardized(fit), float(np.average(targets[:40], weights=weights[:40]))
    width = median_distance(anchors)
    model = regression(anchors, targets[:40].numpy() - mean, weights[:40].numpy(), ridge, width)
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.width == pytest.approx(width, rel=1e-12)
    for part in (fit, new):
        expected = mean + model.predict(((part - fit.mean(0)) / fit.std(0)).numpy())
        np.testing.assert_allclose(found(part).numpy(), expected, rtol=1e-6, atol=1e-8)


def test_the_ridge_is_the_one_that_foretells_best(monkeypatch):
    chosen = []
    for noise in (0.0, 0.3, 3.0):
        features, targets, weights = some_samples(noise=noise)
        found = fit_forecast(features, targets, weights)
        errors = []
        for ridge in RIDGES:
            with monkeypatch.context() as patch:
                patch.setattr(forecast, "RIDGES", (ridge,))
                single = fit_forecast(features, targets, weights)
            errors.append(single.error)
            if single.error == found.error:
                assert torch.equal(single.coefficients, found.coefficients)
        assert found.error == min(errors)
        chosen.append(RIDGES[errors.index(min(errors))])
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]  # more noise asks for more


def test_the_error_is_that_of_samples_never_seen():
    features, targets, _ = some_samples(1400, noise=0.5)
    found = fit_forecast(features[:200], targets[:200], torch.ones(200))
    misses = found(features[200:]) - targets[200:]
    assert found.error == pytest.approx(float(misses.square().mean().sqrt()), rel=0.1)
    assert found.error > 0.5  # no forecast beats the noise


def test_heavy_samples_are_foretold_better():
    features, targets, _ = some_samples(100, noise=1.0)
    heavy = torch.arange(100) < 50
    errors = []
    for weights in (torch.where(heavy, 1.0, 1e-3), torch.where(heavy, 1e-3, 1.0)):
        misses = (fit_forecast(features, targets, weights)(features) - targets).abs()
        errors.append((float(misses[heavy].mean()), float(misses[~heavy].mean())))
    assert errors[0][0] < errors[1][0]
    assert errors[0][1] > errors[1][1]


def test_far_from_all_samples_a_forecast_falls_back_to_their_mean():
    features, targets, weights = some_samples()
    found = fit_forecast(features, targets, weights)
    mean = float(np.average(targets, weights=weights))
    for distance in (1e3, 1e9, -1e30):
        torch.testing.assert_close(
            found(features + distance), torch.full((40,), mean, dtype=DOUBLE), rtol=1e-12, atol=0
        )
    assert float((found(features) - mean).abs().max()) > 0.5


@pytest.mark.parametrize("constant", [0.0, 1.0, -7e8, 1e-30])
def test_features_that_never_vary_change_nothing(constant):
    features, targets, weights = some_samples()
    wider = torch.cat([torch.full((40, 1), constant, dtype=DOUBLE), features], 1)
    found, expected = fit_forecast(wider, targets, weights), fit_forecast(features, targets, weights)
    assert found.error == pytest.approx(expected.error, rel=1e-9)
    torch.testing.assert_close(found(wider), expected(features), rtol=1e-9, atol=1e-9)


def test_without_any_feature_that_varies_the_mean_is_foretold():
    _, targets, weights = some_samples()
    same = torch.full((40, 2), 3.0, dtype=DOUBLE)
    found = fit_forecast(same, targets, weights)
    assert found.width == 1
    mean = float(np.average(targets, weights=weights))
    torch.testing.assert_close(found(same), torch.full((40,), mean, dtype=DOUBLE), rtol=1e-9, atol=0)
    spread = float(np.sqrt(np.average((targets - mean) ** 2, weights=weights)))
    assert spread < found.error < 1.1 * spread


@pytest.mark.parametrize("copies", [2, 5])
def test_a_sample_that_comes_twice_is_one_of_twice_the_weight(monkeypatch, copies):
    monkeypatch.setattr(forecast, "RIDGES", (1e-2,))
    features, targets, weights = some_samples()
    repeated = fit_forecast(features.repeat(copies, 1), targets.repeat(copies), weights.repeat(copies))
    assert np.isfinite(repeated.error)
    anchors, mean = standardized(features), float(np.average(targets, weights=weights))
    scale = (repeated.scale / features.std(0)).numpy()  # of more samples, the same spread is estimated a little smaller
    model = regression(
        anchors / scale, targets.numpy() - mean, copies * weights.numpy(), ridge=1e-2, width=repeated.width
    )
    expected = mean + model.predict(anchors / scale)
    np.testing.assert_allclose(repeated(features).numpy(), expected, rtol=1e-6)


def test_samples_that_are_nearly_all_the_same_are_no_obstacle():
    features, targets, weights = some_samples()
    features[5:], targets[5:] = features[5], targets[5]
    found = fit_forecast(features, targets, weights)
    assert found.width == 1  # the median distance is zero
    assert np.isfinite(found.error)
    torch.testing.assert_close(found(features[5:]), targets[5:], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forecast_is_fitted_in_double_precision_and_asked_in_any(dtype):
    features, targets, weights = (part.float() for part in some_samples())
    found = fit_forecast(features, targets, weights)
    parts = (found.anchors, found.coefficients, found.center, found.scale)
    assert {part.dtype for part in parts} == {DOUBLE}
    expected = fit_forecast(features.double(), targets.double(), weights.double())
    assert all(map(torch.equal, parts, (expected.anchors, expected.coefficients, expected.center, expected.scale)))
    asked = found(features.to(dtype))
    assert asked.dtype == dtype
    torch.testing.assert_close(asked.double(), expected(features.double()), rtol=0, atol=1e-3)


def test_no_sample_asks_for_no_forecast():
    features, targets, weights = some_samples()
    assert fit_forecast(features, targets, weights)(features[:0]).shape == (0,)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_few_samples_are_enough(count):
    features, targets, weights = some_samples(count)
    found = fit_forecast(features, targets, weights)
    assert isinstance(found, Forecast)
    assert found(features).isfinite().all()
    assert 0 < found.error < 10
