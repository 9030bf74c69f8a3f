import re

import numpy as np
import pytest
import torch

from lightning_al.formulas.calibration import calibration_error, fit_temperature
from lightning_al.numerics.seeding import make_generator


def problem(count=400, classes=5, scale=1.0):
    """Return logits, and labels that are drawn from the softmax of the logits over `scale`."""
    generator = make_generator(0)
    logits = 2 * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return scale * logits, labels


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_the_error_is_that_of_a_loop_over_bins(bins):
    logits, labels = problem()
    probs = logits.softmax(1)
    confidences, hits = probs.max(1).values.numpy(), (probs.argmax(1) == labels).numpy()
    expected = 0.0
    for low in np.arange(bins) / bins:
        inside = (confidences >= low) & (confidences < low + 1 / bins)
        if inside.any():
            expected += inside.mean() * abs(confidences[inside].mean() - hits[inside].mean())
    assert calibration_error(probs, labels, bins) == pytest.approx(expected, abs=1e-5)


def test_certain_and_right_is_calibrated():
    assert calibration_error(torch.eye(4), torch.arange(4)) == 0
    assert calibration_error(torch.eye(4), (torch.arange(4) + 1) % 4) == 1


@pytest.mark.sweep
def test_the_temperature_is_the_factor_that_logits_were_multiplied_by():
    assert fit_temperature(*problem(40_000)) == pytest.approx(1.0, abs=0.11)
    for factor in (2.5, 8.0):
        assert fit_temperature(*problem(40_000, scale=factor)) == pytest.approx(factor, rel=0.1)
    assert fit_temperature(*problem(40_000, scale=0.5)) == 1.0, "none makes probabilities surer"


@pytest.mark.parametrize("function", [calibration_error, fit_temperature])
@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.zeros(3, 1).long()])
def test_labels_of_another_shape_or_kind_are_refused(function, labels):
    message = f"`{function.__name__}(labels)`: expected integer classes of shape (N,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        function(torch.full((3, 2), 0.5), labels)
