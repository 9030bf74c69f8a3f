"""Cover the pool, most of all where another acquisition scores high."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_al.acquisition.candidates import check_bound
from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.embeddings import EmbeddingSource
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.formulas.herding import herding, labeled_width, neighbor_width
from lightning_al.model.predictor import Predictor
from lightning_al.model.tempered_predictor import TemperedPredictor, fit_temperature_on
from lightning_al.wrappers.wrapper import AcquisitionFactory, Wrapper

Width = float | Literal["neighbors", "labeled"]

# How far rounding may push a score below its bound.
_ROUNDING = 1e-5


class UncertaintyHerding(Wrapper):
    r"""Label the samples that together cover most of the pool, weighted by the scores of another acquisition.

    $i_t = \arg\max_i \sum_n u_n \max(0, k(x_n, x_i) - c_n)$, $k(a, b) = \exp(-(\|a - b\| / \sigma)^2)$

    Scores alone pick near-duplicates, and coverage alone spends labels where the model is right. Labeled samples cover
    from the start. Around `RandomAcquisition`, which has no scores, all weights are one: this is MaxHerding.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        acquisition: The class of an acquisition with one score per sample, or a `functools.partial` of it.
        embeddings: The vectors x, scaled to length 1: `"model"` for features of the trained model; `"input"` for the
            first 50 principal components of the inputs, which do not depend on an early model; or the path of a `.npy`
            file with one row per sample of the dataset, such as features of a foundation model.
        features: Name of the module whose output are the model's features; None takes the input of the last linear
            layer.
        width: The kernel's width: a positive number; `"neighbors"`, the median distance of candidates to their tenth
            neighbor; `"labeled"`, the smallest positive distance between labeled samples, as the authors do: it
            falls as labels grow, which leads from coverage to uncertainty.
        exponent: Power of the scores that weights them, positive; 0.5 for squared distances, such as noise stability.
        temperature: Divides the logits before the other acquisition scores, positive; above 1 it evens out scores.
            `"validation"` takes the one with the smallest calibration error on the validation data, at least 1; the
            authors hold 30 % of the labels out of a second training for it.
        candidates: Most candidates per query, drawn at random, since the cost grows with their square; None for all.

    Raises:
        ValueError: If an argument is out of range, or the other acquisition has no score per sample.

    Cost: that of the other acquisition, and a forward pass per candidate for `embeddings="model"`; about 2 N^2 D
        multiplications. The labeled part is measured, too.

    Example:
        >>> from lightning_al import MarginAcquisition
        >>> UncertaintyHerding(100, MarginAcquisition, embeddings="input").candidates
        10000

    References:
        Bae et al., Generalized Coverage for More Robust Low-Budget Active Learning (2024), for MaxHerding.
        Bae, Oliveira and Sutherland, Uncertainty Herding: One Active Learning Method for All Label Budgets (2025).

    """

    embedding_source: EmbeddingSource

    def __init__(
        self,
        query_size: int | float,
        acquisition: AcquisitionFactory,
        embeddings: str = "model",
        features: str | None = None,
        width: Width = "neighbors",
        exponent: float = 1.0,
        temperature: float | Literal["validation"] = 1.0,
        candidates: int | None = 10_000,
    ) -> None:
        super().__init__(query_size, acquisition)
        numbers = [exponent, *(value for value in (width, temperature) if not isinstance(value, str))]
        words = isinstance(width, str) and width not in ("neighbors", "labeled")
        words = words or (isinstance(temperature, str) and temperature != "validation")
        if words or not all(0 < number < math.inf for number in numbers):
            raise ValueError(
                f"`UncertaintyHerding(width={width!r}, exponent={exponent!r}, temperature={temperature!r})`: expected "
                'positive numbers; the width may be "neighbors" or "labeled", the temperature "validation".'
            )
        self.embeddings = embeddings
        self.features = features
        self.width = width
        self.exponent = exponent
        self.temperature = temperature
        self.candidates = candidates
        self.max_candidates = check_bound("UncertaintyHerding", candidates)
        self.embedding_source = EmbeddingSource("UncertaintyHerding", embeddings, features, unit_length=True)
        if self.inner.needs_labeled and not self.inner.needs_forward:
            self._weights(None)
        self.needs_labeled = True
        self.needs_forward = self.inner.needs_forward or not self.embedding_source.in_file

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise before training if there is no validation data for the temperature."""
        super().setup(trainer, pl_module, stage)
        data: LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and self.temperature == "validation" and not is_overridden("val_dataloader", data):
            raise MisconfigurationException(
                '`UncertaintyHerding(temperature="validation")`: the data has no `val_dataloader`. Add one, pass '
                "`ActiveLearningDataModule(val_dataset=...)`, or use a number."
            )

    def subsample_candidates(self, indices: Sequence[int], budget: int, generator: torch.Generator) -> Sequence[int]:
        """Return at most `candidates` of those that the other acquisition measures."""
        measured = self.inner.subsample_candidates(indices, budget, generator)
        return Acquisition.subsample_candidates(self, measured, budget, generator)

    def prepare(self, context: QueryContext) -> None:
        """Prepare the other acquisition and the embeddings, and raise if there are no suitable scores."""
        self._read, self._predictor = self.embedding_source.prepare(context), context.predictor
        self._shape: tuple[int, ...] = (0,)
        if not self.inner.needs_forward:
            return
        self._temperature = (
            fit_temperature_on(context.predictor, context.read_validation())
            if isinstance(self.temperature, str)
            else self.temperature
        )
        if self._temperature != 1:
            self._predictor = TemperedPredictor(context.predictor, context.batch, self._temperature)
        super().prepare(replace(context, predictor=self._predictor))
        rows = self.inner.measure_chunk(self._predictor, [context.batch])
        self._shape = tuple(rows.shape[1:])
        self._weights(self.inner.score(rows))

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return the measurements of a batch by the other acquisition, and its embeddings."""
        return self.measure_chunk(predictor, [batch])

    def measure_chunk(self, predictor: Predictor, chunk: list[Any]) -> Tensor:
        """Return the measurements of a few batches by the other acquisition, and their embeddings, side by side."""
        parts = []
        if self.inner.needs_forward:
            rows = self.inner.measure_chunk(self._predictor, chunk)
            parts.append(rows.reshape(len(rows), -1))
        if not self.embedding_source.in_file:
            parts.append(torch.cat([self._read(batch)[1] for batch in chunk]))
        return torch.cat([part.to(parts[-1]) for part in parts], dim=1)

    def select(self, query: Query) -> list[int]:
        """Choose greedily the sample that adds most to the weighted coverage."""
        begin = math.prod(self._shape) if self.needs_forward else 0
        points, labeled = self.embedding_source.of_query(query, begin)
        width = self.width
        if isinstance(width, str):
            width = neighbor_width(points) if width == "neighbors" else labeled_width(labeled)
        # an acquisition that measures nothing prefers no sample
        weights = self._weights(self.score(query.pool)) if self.inner.needs_forward else None
        return query.pick(herding(points, query.budget, labeled=labeled, width=width, weights=weights))

    def score(self, rows: Tensor) -> Tensor | None:
        """Return the scores of the other acquisition; None if it has none."""
        return self.inner.score(self._rows_of_inner(rows)) if self.inner.needs_forward else None

    def metrics(self, query: Query) -> dict[str, float]:
        """Return the metrics of the other acquisition, and a temperature that was fitted."""
        if not self.inner.needs_forward:
            return self.inner.metrics(query)
        pool, labeled = (self._rows_of_inner(rows) for rows in (query.pool, query.labeled_rows()))
        metrics = self.inner.metrics(replace(query, pool=pool, labeled=labeled))
        return {**metrics, "temperature": self._temperature} if isinstance(self.temperature, str) else metrics

    def _rows_of_inner(self, rows: Tensor) -> Tensor:
        """Return the measurements of the other acquisition, which come first, in their shape."""
        return rows[:, : math.prod(self._shape)].reshape(len(rows), *self._shape)

    def _weights(self, scores: Tensor | None) -> Tensor:
        """Return non-negative weights from scores; raise if there are none, or they are below their bound."""
        name = type(self.inner).__name__
        if scores is None:
            raise ValueError(
                f"`UncertaintyHerding(acquisition={name})`: it has no score per sample. Wrap one that ranks samples, "
                "such as MarginAcquisition, or RandomAcquisition for coverage without weights."
            )
        weights = scores - self.min_score
        if bool((weights < -_ROUNDING).any()):
            raise ValueError(
                f"`UncertaintyHerding(acquisition={name})`: expected scores of at least {name}.min_score = "
                f"{self.min_score}, got {scores.min().item():.4g}. Wrap one whose scores have a lower bound, which "
                "its `min_score` states."
            )
        return weights.clamp(min=0) ** self.exponent
