"""A predictor whose outputs are divided by a temperature, so that probabilities are less or more sure."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_al.data.batch import describe, targets_in
from lightning_al.formulas.calibration import fit_temperature
from lightning_al.model.predictor import Predictor


class TemperedPredictor(Predictor):
    """A module as a function from a batch to its outputs over a temperature.

    Args:
        predictor: The predictor whose module and progress it takes.
        batch: A batch on the module's device, to see that the outputs are logits.
        temperature: Above 1 for probabilities closer to each other.

    Raises:
        ValueError: If the module returns probabilities, which have no temperature.

    Example:
        >>> predictor = Predictor(torch.nn.Identity())
        >>> TemperedPredictor(predictor, torch.full((2, 3), 5.0), 2.0)(torch.full((2, 3), 5.0))[0]
        tensor([2.5000, 2.5000, 2.5000])

    """

    def __init__(self, predictor: Predictor, batch: Any, temperature: float) -> None:
        outputs = predictor(batch)
        if outputs.shape[1] > 1 and torch.equal(predictor.probabilities(batch), outputs):
            raise ValueError(
                f"`temperature={temperature}`: {type(predictor.module).__name__} returns probabilities, but a "
                "temperature divides logits. Define `acquisition_step` to return logits, or use temperature=1."
            )
        vars(self).update(vars(predictor))  # the module, and how its outputs are read
        self.temperature = temperature

    def __call__(self, batch: Any) -> Tensor:
        """Return raw outputs of shape (B, C, *positions) over the temperature."""
        return super().__call__(batch) / self.temperature


def fit_temperature_on(predictor: Predictor, batches: Iterable[Any]) -> float:
    """Return the temperature with the smallest calibration error on labeled batches.

    Args:
        predictor: The model as a function from a batch to logits.
        batches: Batches of samples with their classes, that were not trained on.

    Raises:
        ValueError: If there is no batch, the outputs have several positions, or a batch has no classes.

    """
    outputs, labels = [], []
    for batch in batches:
        outputs.append(predictor(batch))
        classes = [
            target
            for target in targets_in(batch)
            if not target.is_floating_point() and target.shape == outputs[-1].shape[:1]
        ]
        if not classes:
            raise ValueError(
                f"`temperature`: expected the class of each sample in a batch of validation data, got {describe(batch)}"
                ". Pass a number instead."
            )
        labels.append(classes[0])
    if not outputs:
        raise ValueError("`temperature`: expected validation data to fit it on, got no batch. Pass a number instead.")
    return fit_temperature(torch.cat(outputs), torch.cat(labels))
