"""What the benchmarks share: the environment, one JSON per case, rounds in turn, and a query through a real Trainer."""

import json
import os
import platform
import statistics
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_al import Acquisition, ActiveLearningDataModule, __version__

RESULTS = Path(__file__).parent / "results"


def command_line(description: str | None) -> ArgumentParser:
    """Return a parser with the arguments of every benchmark."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    return parser


def environment() -> dict[str, Any]:
    """Return what a figure depends on beside the code."""
    return {
        "lightning_al": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def write(case: str, figures: Mapping[str, Any], folder: Path) -> None:
    """Write the figures of one case beside the environment they were measured in, and print them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{case}.json").write_text(json.dumps({"case": case, **figures, "environment": environment()}, indent=2))
    print(json.dumps({"case": case, **figures}, indent=2), flush=True)


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Run several measurements in turn, so that a busy neighbor disturbs all alike; return the median of each.

    Args:
        runs: Each returns seconds.
        rounds: How often each runs.

    Returns:
        Median seconds by name.

    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, the GPU's work included."""
    begun = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


class Still(LightningModule):
    """A trained network that goes through a fit without a change, so that only the query takes time.

    Args:
        net: Maps inputs to raw outputs.

    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's raw outputs."""
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return a loss; a learning rate of zero makes nothing of it."""
        self.net.eval()
        return self(batch[0]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD that stands still."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


def query(net: nn.Module, dataset: Dataset, acquisition: Acquisition, batch_size: int) -> tuple[list[int], float]:
    """Let an acquisition label out of a dataset, as a user would, at the end of a fit.

    Args:
        net: The network.
        dataset: Gives (inputs, label); its first sample is labeled from the start, the others are the pool.
        acquisition: The acquisition.
        batch_size: Samples per batch.

    Returns:
        The picked dataset indices, and the seconds from the call to the picks.

    """
    data = ActiveLearningDataModule(dataset, initial_size=[0], batch_size=batch_size, num_workers=0)
    trainer = Trainer(
        max_steps=1,
        accelerator="auto",
        devices=1,
        callbacks=[acquisition],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Still(net), data)
    labeling = data.pool.history[-1]
    return labeling.indices, sum(labeling.seconds.values())


def overlap(one: list[int], other: list[int]) -> float:
    """Return the share of the picks that two queries have in common."""
    return len(set(one) & set(other)) / len(other)
