"""Compare the picks of every strategy on 1 to 4 processes and 2 nodes, and let one of three processes die.

    python -m examples.reliability.processes

Each strategy labels 3 of 27, and 3 of 7, candidates. The status is 1 if picks differ, or if a process that is left
behind does not end with an error in time.
"""

import json
import os
import signal
import socket
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from examples.reliability.harness import Process, fresh
from examples.reliability.toy_run import PictureClassifier, Pictures, make_data, make_trainer
from lightning_al import Acquisition, EntropyAcquisition, strategies

MINIMAL: dict[str, dict[str, Any]] = {
    "NoiseStabilityAcquisition": {"passes": 3},
    "BALDAcquisition": {"passes": 3},
    "BatchBALDAcquisition": {"passes": 3, "configurations": 27},
    "MCDropoutAcquisition": {"passes": 3},
    "VariationRatioAcquisition": {"passes": 3},
    "QueryByCommitteeAcquisition": {"members": 2},
}
POOLS = {"27 candidates": 36, "7 candidates": 16}
DEATH_SECONDS = 60.0


class Scheduled(PictureClassifier):
    """Its weights follow a schedule and not the data, so that they do not depend on the number of processes."""

    def on_train_epoch_start(self) -> None:
        """Set the weights of the epoch."""
        generator = torch.Generator().manual_seed(self.current_epoch)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer that changes nothing."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


class DiesWhileScoring(Scheduled):
    """The second process ends at once in its first batch of candidates."""

    def acquisition_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the logits, or die."""
        if self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self(batch[0])  # type: ignore[no-any-return]


def acquisitions() -> dict[str, Callable[[], Acquisition]]:
    """Return a maker for every strategy of the package, by the name of its class."""
    names = [name for name in strategies.__all__ if name.endswith("Acquisition")]
    return {name: partial(getattr(strategies, name), 3, **MINIMAL.get(name, {})) for name in names}


def picks(make: Callable[[], Callback], size: int, devices: int, nodes: int, model: type[Scheduled] = Scheduled) -> Any:
    """Return the picks of a fit, or the error that it ended with."""
    data = make_data(datamodule_or_train_dataset=Pictures(size), batch_size=2)
    several = devices * nodes > 1
    options = {"devices": devices, "num_nodes": nodes, "strategy": "ddp" if several else "auto", "max_epochs": 2}
    torch.manual_seed(0)
    trainer = make_trainer(make(), enable_checkpointing=False, **options)  # type: ignore[arg-type]
    trainer.fit(model(), data)
    return list(data.pool.history[1].indices)


def all_picks(path: Path, devices: int, nodes: int = 1) -> None:
    """Write the picks of all strategies; every process has the same."""
    found = {}
    for name, make in acquisitions().items():
        for pool, size in POOLS.items():
            try:
                found[f"{name}, {pool}"] = picks(make, size, devices, nodes)
            except ValueError as error:  # noqa: PERF203
                found[f"{name}, {pool}"] = str(error)
    if int(os.environ.get("LOCAL_RANK", 0)) + int(os.environ.get("GROUP_RANK", 0)) == 0:
        path.write_text(json.dumps(found))
    end_group()


def end_group() -> None:
    """Leave the process group in order."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def ranks(work: Callable[[], None], devices: int, folder: Path) -> list[Process]:
    """Run a function in forks of this process, as Lightning starts a script once for each device."""
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if devices > 1 else {}

    def as_rank(rank: int) -> None:
        os.environ |= environment | ({"LOCAL_RANK": str(rank)} if devices > 1 else {})
        work()

    return [Process(partial(as_rank, rank), folder / f"{devices}-processes-rank-{rank}.log") for rank in range(devices)]


def two_nodes(path: Path, folder: Path) -> list[Process]:
    """Run this script by torchrun on two nodes, which here are one machine."""
    port = free_port()
    command = ["-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1"]
    command += ["--master-port", port]
    script = ["-m", "examples.reliability.processes", "--write", path]
    return [Process([*command, "--node-rank", node, *script], folder / f"node-{node}.log") for node in (0, 1)]


def free_port() -> int:
    """Return the number of a port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def one_dies(folder: Path) -> list[str]:
    """Let one of three processes die while it scores; return what was wrong with the end of the others."""

    def work() -> None:
        picks(lambda: EntropyAcquisition(3), 36, 3, 1, DiesWhileScoring)

    begun, problems = time.monotonic(), []
    for rank, process in enumerate(ranks(work, 3, folder / "dies")):
        try:
            status = process.wait(DEATH_SECONDS)
        except TimeoutError as error:
            problems.append(str(error))
            continue
        print(f"one of three dies: process {rank} ends with {status} after {time.monotonic() - begun:.1f} s")
        problems += [f"process {rank} ended with 0"] if status == 0 else []
    return problems


def main() -> None:
    """Parse the arguments, and run all comparisons."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/reliability/processes"))
    parser.add_argument("--write", type=Path, help="write the picks of one of two nodes, as torchrun starts it")
    arguments = parser.parse_args()
    if arguments.write is not None:
        all_picks(arguments.write, 1, nodes=2)
        return
    folder = fresh(arguments.folder.resolve())
    results = {}
    for count in (1, 2, 3, 4):
        path = folder / f"{count}.json"
        processes = ranks(partial(all_picks, path, count), count, folder)
        statuses = [process.wait(600) for process in processes]
        results[f"{count} processes"] = json.loads(path.read_text()) if not any(statuses) else {"statuses": statuses}
    path = folder / "nodes.json"
    statuses = [process.wait(600) for process in two_nodes(path, folder)]
    results["2 nodes"] = json.loads(path.read_text()) if not any(statuses) else {"statuses": statuses}
    expected = results["1 processes"]
    failures = 0
    for where, found in results.items():
        differing = [name for name in expected if found.get(name) != expected[name]]
        failures += len(differing)
        print(f"{where}: {len(expected) - len(differing)} of {len(expected)} equal {'; '.join(differing)}")
    problems = one_dies(folder)
    print("\n".join(problems) or "one of three dies: no process is left behind")
    sys.exit(bool(failures or problems))


if __name__ == "__main__":
    main()
