"""What a query did: figures, the scores of all candidates, and the first of its picks for a person to look at."""

import csv
import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.data.initial_labels import class_labels
from lightning_al.data.media import Media, media_of, save_media
from lightning_al.data.pool import Pool
from lightning_al.functional import redundancy
from lightning_al.model.clone import scoring_clone
from lightning_al.model.features import Features
from lightning_al.model.predictor import Predictor
from lightning_al.scoring.transfer import make_transfer
from lightning_al.storage.atomic_write import write_atomically

QUANTILES = 21  # 0, 5, ..., 100 %
MOST_CLASSES = 50  # that are counted one by one
COLUMNS = ("index", "rank", "score", "predicted", "label", "file", "text")


@dataclass(frozen=True)
class Picked:
    """One sample that was picked, as a person sees it.

    Attributes:
        index: Of the dataset.
        rank: 0 for the first pick.
        score: What the strategy measured, if that is a number.
        predicted: The predicted class, or the value of a regression with one output; None for other outputs.
        label: The class, where the dataset knows it.
        media: What the dataset gives, as a picture, a recording or a text.

    """

    index: int
    rank: int
    score: float | None
    predicted: int | float | None
    label: int | None
    media: Media | None


@dataclass(frozen=True)
class Outcome:
    """What a query did.

    Attributes:
        pool: The pool after it; the last entry of its history is what the query labeled.
        figures: Numbers by name: what the strategy reports, `candidates`, and as far as they are known `redundancy`,
            `label_entropy` (nats) and `label/<class>` (how many of each class were labeled).
        scores: (N,) scores of all candidates, on the CPU; None where the strategy has none.
        shown: The first picks.

    """

    pool: Pool
    figures: Mapping[str, float]
    scores: Tensor | None
    shown: Sequence[Picked]

    @property
    def quantiles(self) -> list[float] | None:
        """The 0, 5, ..., 100 % quantiles of the scores of all candidates."""
        if self.scores is None or not len(self.scores):
            return None
        ordered = self.scores.double().sort().values  # torch.quantile takes 16 million numbers at most
        rows = torch.linspace(0, len(ordered) - 1, QUANTILES).round().long()
        found: list[float] = ordered[rows].tolist()
        return found


def observe(
    trainer: Trainer,
    module: LightningModule,
    prepare: Callable[[LightningModule], None],
    figures: Mapping[str, float],
    scores: Tensor | None,
    shown: int,
) -> Outcome | None:
    """Look at what the last query picked: one more forward pass over the picks, on the first process.

    Args:
        trainer: The trainer at fit end; its datamodule's pool has the picks already.
        module: Its module, of which a clone predicts.
        prepare: Loads the weights that scored into the clone.
        figures: What is known about the query.
        scores: (N,) scores of all candidates.
        shown: How many picks to show.

    Returns:
        The outcome; None on other processes than the first.

    """
    datamodule: ActiveLearningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    with scoring_clone(trainer, module) as clone:
        prepare(clone)
        if not trainer.is_global_zero:
            return None
        loader = datamodule.pool_dataloader(datamodule.pool.history[-1].indices, shard=False)
        predictor, transfer = Predictor(clone), make_transfer(trainer, clone)
        outputs, features = _forward(predictor, (transfer(part.batch) for part in loader))
    labeling = datamodule.pool.history[-1]
    labels = _known_labels(loader.dataset)
    predicted = _predicted(outputs)
    found = {**figures, **_class_figures(labels)}
    if features is not None and len(features) > 1:
        found["redundancy"] = float(redundancy(features))
    picks = [
        Picked(
            index,
            rank,
            labeling.scores[rank] if labeling.scores else None,
            predicted[rank] if predicted else None,
            labels[rank] if labels else None,
            media_of(loader.dataset[rank][1]),
        )
        for rank, index in enumerate(labeling.indices[:shown])
    ]
    return Outcome(datamodule.pool, found, None if scores is None else scores.cpu(), picks)


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Write an outcome for the report: `query.json`, `picked.csv` and the pictures, all or nothing.

    Args:
        outcome: What to write.
        folder: Replaced if it is there.

    """
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for pick in outcome.shown:
        media = pick.media
        file = "" if media is None or isinstance(media, str) else save_media(media, partial, str(pick.index))
        said = media if isinstance(media, str) else ""
        writer.writerow([pick.index, pick.rank, pick.score, pick.predicted, pick.label, file, said])
    write_atomically(partial / "picked.csv", text.getvalue())
    summary = {
        "strategy": outcome.pool.history[-1].strategy,
        "figures": dict(outcome.figures),
        "quantiles": outcome.quantiles,
    }
    write_atomically(partial / "query.json", json.dumps(summary, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def _forward(predictor: Predictor, batches: Any) -> tuple[list[Tensor], Tensor | None]:
    """Return the outputs, and the features (n, D) where the model has any that can be found."""
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
    found: list[int] | list[float] = rows.argmax(1).tolist() if rows.shape[1] > 1 else rows[:, 0].tolist()
    return found


def _known_labels(view: Any) -> list[int] | None:
    try:
        return class_labels(view.dataset, view.indices)
    except ValueError:  # a regression, a mask, or nobody knows yet
        return None


def _class_figures(labels: Sequence[int] | None) -> dict[str, float]:
    if not labels:
        return {}
    counts = Counter(labels)
    shares = [count / len(labels) for count in counts.values()]
    found = {"label_entropy": -sum(share * math.log(share) for share in shares) + 0.0}
    if len(counts) <= MOST_CLASSES:
        found |= {f"label/{label}": float(counts[label]) for label in sorted(counts)}
    return found
