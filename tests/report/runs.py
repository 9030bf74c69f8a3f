"""Run folders for the report: real runs on digits, and folders written by hand for what no run does."""

import csv
import json

import torch
import yaml
from torch.utils.data import TensorDataset

from lightning_al import ActiveLearningDataModule, RandomAcquisition, run_cycles
from lightning_al.report.runs import find_runs
from lightning_al.testing import ToyClassifier
from tests.digits import digits
from tests.runs import make_trainer

FIT = [2.0, 3.0, 4.0]


class PictureClassifier(ToyClassifier):
    """A network for (1, 8, 8) pictures of digits."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def real_run(folder, acquisition, seed, cycles=2):
    """Run cycles on pictures of digits."""
    images, classes = digits()[:150]
    pictures = TensorDataset(images.reshape(-1, 1, 8, 8), classes)
    data = ActiveLearningDataModule(pictures, initial_size=10, batch_size=16, test_dataset=pictures, seed=seed)
    run_cycles(lambda cycle: (make_trainer(acquisition()), PictureClassifier()), data, cycles=cycles, run_dir=folder)
    return folder


def comparison_of_real_runs(folder, strategies, seeds=2, cycles=2):
    for seed in range(seeds):
        for acquisition in strategies:
            real_run(folder / f"{acquisition().__class__.__name__}-{seed}", acquisition, seed, cycles)
    return folder


def random_strategy():
    return RandomAcquisition(6)


def written_run(folder, values=(0.5, 0.6, 0.7), labels=(10, 20, 30), metric="test/accuracy", marker=None, config=None):
    """Write what a run leaves at the least: its cycles, and if given marker and configuration."""
    folder.mkdir(parents=True)
    rows = [
        {
            "cycle": cycle,
            "labeled": count,
            "queried": 10,
            metric: value,
            "fit_seconds": FIT[cycle],
            "score_seconds": 1.0,
            "select_seconds": 0.5,
        }
        for cycle, (count, value) in enumerate(zip(labels, values, strict=True))
    ]
    with (folder / "cycles.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if marker is not None:
        (folder / "finished.json").write_text(json.dumps({"settings": {}, **marker}))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def written_query(folder, cycle, rows, figures=None, quantiles=None):
    """Write what a query leaves: rows of picks, figures and quantiles."""
    picked = folder / f"cycle-{cycle:02d}" / "picked"
    picked.mkdir(parents=True)
    empty = dict.fromkeys(("index", "rank", "score", "predicted", "label", "file", "text"), "")
    with (picked / "picked.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, empty)
        writer.writeheader()
        writer.writerows({**empty, "index": row, "rank": row, **given} for row, given in enumerate(rows))
    told = {"strategy": "X", "figures": figures or {}, "quantiles": quantiles}
    (picked / "query.json").write_text(json.dumps(told))
    return picked


def readable_runs(paths):
    """Return the runs in folders of which everything can be read."""
    runs, unreadable = find_runs(paths)
    assert not unreadable
    return runs
