"""The cycle that waits for people: what is asked, and when there are enough answers to train."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lightning_al.data.datamodule import ActiveLearningDataModule
from lightning_al.data.sample_sources import find_names, sources_of
from lightning_al.storage.labels_file import Labels
from lightning_al.storage.query_files import read_query
from lightning_al.storage.queue_file import Kind, Queue, QueuedSample, write_queue
from lightning_al.storage.run_folder import RunFolder

# Seconds between two looks at the file of labels.
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Answers:
    """What people answer between the cycles of a run.

    Args:
        datamodule: The data; without `labels` it knows every target, and nobody is asked.
        folder: The run folder.
        config: The settings of the run, which are kept with its first question.
        min_answers: The share of the samples of a query that must be answered, in (0, 1].
        wait: Look again every two seconds until there are enough answers.

    """

    datamodule: ActiveLearningDataModule
    folder: RunFolder
    config: Mapping[str, Any]
    min_answers: float
    wait: bool

    def are_enough(self, cycle: int, *, overwrite: bool = False) -> bool:
        """Return whether a cycle can train; if not, write what it asks, and wait if that is wanted.

        Args:
            cycle: The cycle that is about to train.
            overwrite: Set an old run aside before the first question.

        """
        labels = self.datamodule.labels
        if labels is None:
            return True
        if cycle == 0:
            if overwrite:
                self.folder.set_aside()
            self.folder.write_config(self.config)
        has_data = not hasattr(self.datamodule, "pool")  # a pool that was read from its file has none yet
        if has_data:
            _set_up(self.datamodule)
        announced = False
        while not self._suffice(labels, cycle):
            if not announced:
                if not has_data:
                    _set_up(self.datamodule)
                _write_queue(self.datamodule, labels, self.folder, cycle)
                rank_zero_info(self._sentence(labels, cycle))
                announced = True
            if not self.wait:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _suffice(self, labels: Labels, cycle: int) -> bool:
        labels.read()
        num_answers, num_asked = self._count(labels, cycle)
        return num_answers >= self.min_answers * num_asked and len(self.datamodule.labeled_indices(cycle)) > 0

    def _sentence(self, labels: Labels, cycle: int) -> str:
        num_answers, num_asked = self._count(labels, cycle)
        then = "; training begins by itself" if self.wait else ", and run the same command again"
        return (
            f"Cycle {cycle} waits for people: {num_asked - num_answers} of {num_asked} samples have no label. Label "
            f"them with `lightning-al label {self.folder.path}`{then}."
        )

    def _count(self, labels: Labels, cycle: int) -> tuple[int, int]:
        """Return how many samples of a query are answered, and how many were asked."""
        asked = self.datamodule.pool.history[cycle].index_array
        return sum(index in labels for index in asked), len(asked)


@rank_zero_only
def _write_queue(datamodule: ActiveLearningDataModule, labels: Labels, folder: RunFolder, cycle: int) -> None:
    """Write what is not answered, earlier queries included, the latest one first."""
    pool = datamodule.pool
    kind: Kind = "number" if labels.classes is None else "classes" if labels.multi_label else "class"
    predictions = _predictions(folder, cycle, kind)
    view: Any = datamodule.pool_dataloader([], shard=False).dataset
    paths = _paths(view.dataset)
    samples = []
    for labeling in reversed(pool.history[: cycle + 1]):
        scores: list[Any] = labeling.scores or [None] * len(labeling)
        samples += [
            QueuedSample(index, _existing(paths.get(index)), predictions.get(index), score=score)
            for index, score in zip(labeling.index_array, scores, strict=True)
            if index not in labels
        ]
    path = os.path.relpath(labels.path, folder.path)
    write_queue(folder.path, Queue(cycle, path, kind, labels.classes or [], samples))


def _set_up(datamodule: ActiveLearningDataModule) -> None:
    rank_zero_only(datamodule.prepare_data)()
    datamodule.setup("fit")


def _predictions(folder: RunFolder, cycle: int, kind: str) -> dict[int, Any]:
    """Return what the last cycle predicted for the picks of which it kept previews."""
    stored = read_query(folder.preview_dir(cycle - 1)) if cycle else None
    convert = float if kind == "number" else int
    return {int(row.index): convert(row.predicted) for row in stored[1] if row.predicted} if stored else {}


def _paths(dataset: Any) -> dict[int, str]:
    """Return the names of samples, which may be files, by dataset index, where the dataset keeps names."""
    paths: dict[int, str] = {}
    for source in sources_of(dataset):
        named = find_names(source, len(source.positions))
        names = [] if named is None else named[1]
        paths |= dict(zip(source.places.tolist(), names, strict=False))
    return paths


def _existing(path: str | None) -> str | None:
    """Return the absolute path of a file, None for the name of something else."""
    return os.path.abspath(path) if path is not None and os.path.isfile(path) else None
