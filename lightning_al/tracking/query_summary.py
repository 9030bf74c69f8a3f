"""The summary of a query: metrics, the scores of all candidates, and previews of its first picks."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.data.initial_labels import class_labels, classes_in
from lightning_al.data.media import Media, media_of
from lightning_al.data.pool import Pool
from lightning_al.data.targets import AmbiguousTargetError, Label
from lightning_al.formulas.redundancy import redundancy
from lightning_al.model.clone import scoring_clone
from lightning_al.model.features import Features
from lightning_al.model.predictor import Predictor
from lightning_al.scoring.transfer import make_transfer
from lightning_al.storage.pool_file import Labeling
from lightning_al.storage.query_files import NUM_QUANTILES

# Picks of more classes than this log no count per class, which would be too many curves.
MAX_COUNTED_CLASSES = 50


@dataclass(frozen=True)
class PickedSample:
    """One sample that was picked, as it is displayed.

    Attributes:
        index: The dataset index.
        rank: 0 for the first pick.
        score: The score by the strategy, if it has one.
        predicted: The predicted class, or the value of a regression with one output; None for other outputs.
        label: The class, or the classes of a multi-label sample as text, if the dataset has them.
        media: The sample as a picture, a recording or a text.

    """

    index: int
    rank: int
    score: float | None
    predicted: int | float | None
    label: int | str | None
    media: Media | None


@dataclass(frozen=True)
class QuerySummary:
    """The summary of a query.

    Attributes:
        pool: The pool after the query, whose picks are the last entry of its history.
        metrics: Numbers by name: those of the strategy, `candidates`, and if they can be computed `redundancy`,
            `label_entropy` (nats) and `label/<class>` (how many of each class were labeled).
        candidate_scores: (N,) scores of all candidates, on the CPU; None where the strategy has none.
        picks: The first picks.

    """

    pool: Pool
    metrics: Mapping[str, float]
    candidate_scores: Tensor | None
    picks: Sequence[PickedSample]

    @property
    def labeling(self) -> Labeling:
        """The picks of the query."""
        return self.pool.history[-1]

    @property
    def labeled_before(self) -> int:
        """How many labeled samples the cycle trained on."""
        return self.pool.num_labeled - len(self.labeling)

    @property
    def quantiles(self) -> list[float] | None:
        """The 0, 5, ..., 100 % quantiles of the scores of all candidates."""
        if self.candidate_scores is None or not len(self.candidate_scores):
            return None
        ordered = self.candidate_scores.double().sort().values  # torch.quantile takes 16 million numbers at most
        rows = torch.linspace(0, len(ordered) - 1, NUM_QUANTILES).round().long()
        quantiles: list[float] = ordered[rows].tolist()
        return quantiles


def summarize_query(
    trainer: Trainer,
    module: LightningModule,
    prepare: Callable[[LightningModule], None],
    metrics: Mapping[str, float],
    candidate_scores: Tensor | None,
    num_preview_samples: int,
) -> QuerySummary:
    """Summarize the last query by one more forward pass over its picks; on the first process, without the others.

    Args:
        trainer: The trainer at fit end; its datamodule's pool has the picks already.
        module: Its module; a clone of it predicts.
        prepare: Loads the weights that scored into the clone.
        metrics: Metrics of the query by name.
        candidate_scores: (N,) scores of all candidates.
        num_preview_samples: How many picks get a preview.

    Returns:
        The summary.

    """
    datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    with scoring_clone(trainer, module, on_all_processes=False) as clone:
        prepare(clone)
        loader = datamodule.pool_dataloader(datamodule.pool.history[-1].indices, shard=False)
        predictor, transfer = Predictor(clone), make_transfer(trainer, clone)
        outputs, features = _forward(predictor, (transfer(part.batch) for part in loader))
    labeling = datamodule.pool.history[-1]
    labels = _known_labels(datamodule, loader.dataset)
    predicted = _predicted(outputs)
    all_metrics = {**metrics, **_class_metrics(labels)}
    if features is not None and len(features) > 1:
        all_metrics["redundancy"] = float(redundancy(features))
    picks = [
        PickedSample(
            index,
            rank,
            labeling.scores[rank] if labeling.scores else None,
            predicted[rank] if predicted else None,
            _displayed(labels[rank]) if labels else None,
            media_of(loader.dataset[rank][1]),
        )
        for rank, index in enumerate(labeling.indices[:num_preview_samples])
    ]
    return QuerySummary(
        datamodule.pool, all_metrics, None if candidate_scores is None else candidate_scores.cpu(), picks
    )


def _forward(predictor: Predictor, batches: Any) -> tuple[list[Tensor], Tensor | None]:
    """Return the outputs, and the features (n, D) if the model has a last linear layer."""
    outputs: list[Tensor] = []
    features: list[Tensor] = []
    reader: Features | None = None
    for position, batch in enumerate(batches):
        if position == 0:
            try:
                reader = Features(predictor, batch)
            except ValueError:  # no linear layer at the end
                reader = None
        if reader is None:
            outputs.append(predictor(batch).cpu())
            continue
        output, feature = reader(batch)
        outputs.append(output.cpu())
        features.append(feature.cpu())
    return outputs, torch.cat(features) if features else None


def _predicted(outputs: list[Tensor]) -> list[int] | list[float] | None:
    if any(output.ndim != 2 for output in outputs):
        return None
    rows = torch.cat(outputs)
    predicted: list[int] | list[float] = rows.argmax(1).tolist() if rows.shape[1] > 1 else rows[:, 0].tolist()
    return predicted


def _known_labels(datamodule: ActiveLearningDataModule, view: Any) -> list[Label] | None:
    if datamodule.labels is not None:  # people are yet to be asked
        return None
    try:
        return class_labels(view.dataset, view.indices, datamodule.label_key)
    except AmbiguousTargetError as error:
        rank_zero_info(f"The classes of the picks are not counted. {error}")
        return None
    except ValueError:  # a regression, a mask, or no label yet
        return None


def _displayed(label: Label) -> int | str:
    return label if isinstance(label, int) else ", ".join(map(str, label))


def _class_metrics(labels: Sequence[Label] | None) -> dict[str, float]:
    if not labels:
        return {}
    counts = Counter(name for label in labels for name in classes_in(label))
    shares = [count / counts.total() for count in counts.values()]
    metrics = {"label_entropy": -sum(share * math.log(share) for share in shares) + 0.0}
    if len(counts) <= MAX_COUNTED_CLASSES:
        metrics |= {f"label/{label}": float(counts[label]) for label in sorted(counts)}
    return metrics
