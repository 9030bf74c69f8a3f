"""What an experiment of the paper costs on this machine: a measured step and a measured query, times their number.

    python -m examples.paper.estimate cifar10 cityscapes

Inputs are random numbers of the right shape, so no data is needed, and reading it is not included. Operations are
counted by torch, and say what to expect elsewhere.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_al import ActiveLearningCLI

FOLDER = "configs/paper"


@dataclass(frozen=True)
class Data:
    """Numbers of samples, the shape of one, and how many positions and values a target has."""

    train: int
    test: int
    shape: tuple[int, ...]
    target: tuple[int, ...] = ()


DATA = {
    "cifar10": Data(50_000, 10_000, (3, 32, 32)),
    "cifar100": Data(50_000, 10_000, (3, 32, 32)),
    "cifar10_mobilenet_v2": Data(50_000, 10_000, (3, 32, 32)),
    "cifar100_mobilenet_v2": Data(50_000, 10_000, (3, 32, 32)),
    "svhn": Data(73_257, 26_032, (3, 32, 32)),
    "caltech101": Data(7_800, 877, (3, 224, 224)),
    "cityscapes": Data(2_975, 500, (3, 688, 688), (688, 688)),
    "cryo_et": Data(24_000, 1_000, (1, 32, 32, 32)),
    "imagenet": Data(1_281_167, 50_000, (3, 224, 224)),
    "mnist": Data(60_000, 10_000, (1, 28, 28)),
}


@dataclass(frozen=True)
class Work:
    """How many samples a run trains on, over all epochs, and how many it passes forward, to score and to test."""

    trained: int
    forward: int


def work_of(config: dict[str, Any], data: Data, passes: int) -> Work:
    """Count the samples of all cycles; a query passes each candidate forward `passes` + 1 times."""
    cycles, epochs = config["cycles"], config["trainer"]["max_epochs"]
    initial, query = config["data"]["initial_size"], config["acquisition"]["init_args"]["query_size"]
    first, further = (size if size >= 1 else round(size * data.train) for size in (initial, query))
    labeled = [min(data.train, first + cycle * further) for cycle in range(cycles)]
    scored = sum(data.train - count for count in labeled)
    return Work(sum(labeled) * epochs, scored * (passes + 1) + cycles * data.test)


def measure(name: str, batch: int | None = None) -> str:
    """Return one row of a Markdown table: operations, seconds, hours and memory.

    Args:
        name: The experiment.
        batch: Samples per measured batch, from which longer ones are extrapolated; None takes the experiment's.

    """
    data = DATA[name]
    text = Path(FOLDER, f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    command = text.splitlines()[1].partition("fit ")[2]  # with the paper's method
    sys.argv = ["lightning-al"]
    cli = ActiveLearningCLI(args=command.split(), run=False)
    (acquisition,) = (callback for callback in cli.trainer.callbacks if hasattr(callback, "passes"))
    work = work_of(config, data, acquisition.passes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = cli.model.to(device)
    batch = batch or config["data"]["datamodule_or_train_dataset"]["init_args"]["batch_size"]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(_random_batch(data, 2, device)[0])
    # a training step has three times the operations of a forward pass; torch overcounts grouped convolutions backward
    operations = counter.get_total_flops() / 2 * (3 * work.trained + work.forward)
    inputs, targets = _random_batch(data, batch, device)
    train_seconds = _seconds(lambda: _train(model, inputs, targets), device) / batch
    model.eval()
    with torch.no_grad():
        forward_seconds = _seconds(lambda: model(inputs), device) / batch
    hours = (work.trained * train_seconds + work.forward * forward_seconds) / 3600
    seconds = f"{batch * train_seconds:.3g} | {batch * forward_seconds:.3g}"
    return (
        f"| {name} | {batch} | {operations / 1e15:.2g} | {seconds} | {hours:.3g} | {_peak_memory(device) / 1e9:.1f} |"
    )


def _random_batch(data: Data, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    targets = torch.randint(10, (size, *data.target), device=device)
    return torch.randn(size, *data.shape, device=device), targets


def _train(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    optimizer = model.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    model.train()
    model.loss(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()


def _seconds(run: Callable[[], object], device: torch.device, rounds: int = 2) -> float:
    """Return the seconds of the fastest round, the first of which warms up."""
    durations = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return min(durations)


def _peak_memory(device: torch.device) -> float:
    """Return bytes: what torch allocated on a GPU, or the largest size of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    """Print the table, each experiment measured in a process of its own, for the sake of its memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=list(DATA), choices=[*DATA, []], help="default: all")
    parser.add_argument("--batch", type=int, help="samples per measured batch (default: the experiment's)")
    options = parser.parse_args()
    print("| experiment | batch | PFLOP per run | seconds per step | per scored batch | hours per run | GB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.experiments:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measure, (name, options.batch)), flush=True)


if __name__ == "__main__":
    main()
