"""Scores of samples by formulas of probabilities, over the positions and labels that count."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_al.formulas.checks import mean_over_positions
from lightning_al.model.output import Output
from lightning_al.model.predictor import Predictor


def score_batch(formula: Callable[[Tensor], Tensor], predictor: Predictor, batch: Any, output: Output) -> Tensor:
    """Score a batch by a formula of one prediction, such as `functional.entropy`.

    Args:
        formula: Maps probabilities (N, C, ...) to scores (N,).
        predictor: The model.
        batch: A batch on its device.
        output: `"softmax"` or `"sigmoid"`.

    Returns:
        (B,) scores: the mean over the positions that count, and for a sigmoid over the labels.

    """
    return score_passes(lambda passes: formula(*passes), predictor, batch, [predictor.output(batch, output)], output)


def score_passes(
    formula: Callable[[Iterable[Tensor]], Tensor],
    predictor: Predictor,
    batch: Any,
    passes: Iterable[Tensor],
    output: Output,
) -> Tensor:
    r"""Score a batch by a formula of several predictions, such as `functional.bald`.

    A label that is present or absent is a choice of two classes, so each formula of class probabilities is one of
    labels, too: $\frac{1}{L} \sum_l s(1 - p_l, p_l)$.

    Args:
        formula: Maps predictions (N, C, ...) of the same samples to scores (N,).
        predictor: The model.
        batch: A batch on its device.
        passes: Predictions (B, C, *positions) by `predictor.output(batch, output)`, read once.
        output: What they are.

    Returns:
        (B,) scores: the mean over the positions that count, and for a sigmoid over the labels.

    """
    mask: Tensor | None = None

    def distributions() -> Iterator[Tensor]:
        nonlocal mask
        for step, probs in enumerate(passes):
            if step == 0:
                mask = predictor.position_mask(batch, probs)
                if mask is not None and output == "sigmoid":
                    mask = mask.unsqueeze(1).expand(-1, probs.shape[1], *mask.shape[1:])
            classes = torch.stack([1 - probs, probs], dim=1) if output == "sigmoid" else probs
            del probs  # the loop would keep it until the next pass is computed
            # what counts has one row for each position, (M, C)
            yield classes if mask is None else classes.movedim(1, -1)[mask]

    scores = formula(distributions())
    if mask is None:
        return scores
    return mean_over_positions(scores.new_zeros(mask.shape).masked_scatter(mask, scores), mask)
