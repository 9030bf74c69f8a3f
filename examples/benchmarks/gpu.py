"""One query on a GPU, from the call to the picks: ResNet-18, CIFAR-shaped uint8 pictures in memory, K = 10.

    python -m examples.benchmarks.gpu [--pools 10000 50000] [--query 2500]

Measures every backend, the fraction of the card's measured matrix-product ceiling, the peak memory, and the agreement
with finite differences in single precision. Writes `results/gpu.json`. Runs on a CPU too, at toy size.
"""

import logging
import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from examples.benchmarks.cases import resnet18
from examples.benchmarks.harness import Still, command_line, overlap, write
from lightning_al import ActiveLearningDataModule, NoiseStabilityAcquisition
from lightning_al.functional import noise_stability
from lightning_al.perturbation.backend_choice import rank_agreement

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
WAYS: dict[str, dict[str, Any]] = {
    "finite_difference": {},
    "finite_difference, compile": {"compile": True},
    "jvp": {"method": "jvp"},
    "jvp_bf16": {"method": "jvp_bf16"},
    "jvp_bf16, compile": {"method": "jvp_bf16", "compile": True},
    "inf": {"passes": "inf"},
}


class InMemory(Dataset):
    """Pictures as uint8, read a batch at a time.

    Args:
        pictures: (N, 3, 32, 32) uint8.
        labels: (N,).

    """

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        self.pictures, self.labels = pictures, labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pictures[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        rows = torch.tensor(indices)
        return list(zip(self.pictures[rows].unbind(), self.labels[rows].unbind(), strict=True))


class Normalizing(Still):
    """A network whose inputs become numbers on the device, where that costs next to nothing."""

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Scale and center the pixels."""
        pictures = batch[0].to(next(self.parameters()).dtype) / 255
        mean, std = (pictures.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return [(pictures - mean) / std, batch[1]]


def make_data(size: int) -> InMemory:
    """Draw pictures with a class each: a colored stripe under noise, more of it in some pictures than in others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (size,), generator=generator)
    pictures = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    strength = torch.rand(size, generator=generator)
    for row in range(size):
        stripe = slice(3 * int(labels[row]), 3 * int(labels[row]) + 3)
        noise = pictures[row, :, stripe].float()
        pictures[row, :, stripe] = (strength[row] * 255 + (1 - strength[row]) * noise).to(torch.uint8)
    return InMemory(pictures, labels)


def train(net: nn.Module, data: InMemory, device: torch.device, steps: int) -> None:
    """Train for a moment, so that scores differ between samples."""
    module = Normalizing(net).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(data), (128,), generator=generator)
        batch = module.on_after_batch_transfer([data.pictures[rows].to(device), data.labels[rows].to(device)], 0)
        with torch.autocast(device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(net(batch[0]).float(), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval().cpu()


def query(net: nn.Module, data: InMemory, budget: int, passes: int, batch_size: int, options: dict) -> dict:
    """Let noise stability label out of the pool at the end of a fit; return picks, seconds and memory."""
    datamodule = ActiveLearningDataModule(data, initial_size=[0], batch_size=batch_size, num_workers=0)
    trainer = Trainer(
        max_steps=1,
        devices=1,
        callbacks=[NoiseStabilityAcquisition(budget, **{"passes": passes, "selection": "topk", **options})],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(Normalizing(net), datamodule)
    labeling = datamodule.pool.history[-1]
    peak = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0
    return {"picks": labeling.indices, "seconds": sum(labeling.seconds.values()), "peak MB on the device": peak}


def ceiling(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the measured teraflops of a square matrix product."""
    one = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(5):
            one @ one
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begun) / 5)
    return 2 * size**3 / statistics.median(seconds) / 1e12


def agreement(net: nn.Module, data: InMemory, device: torch.device, passes: int, samples: int) -> dict[str, Any]:
    """Compare derivatives in bfloat16 with finite differences, and the closed form with that along all directions."""
    module = Normalizing(net).to(device)
    rows = torch.arange(min(samples, len(data)))
    batches = [
        module.on_after_batch_transfer([data.pictures[part].to(device), data.labels[part].to(device)], 0)
        for part in rows.split(256)
    ]
    pairs = {
        "jvp_bf16, with finite differences": ({"passes": passes, "method": "jvp_bf16"}, {"passes": passes}),
        "inf, with all directions": ({"passes": "inf"}, {"passes": "inf", "directions": "all"}),
    }
    top, found = max(1, min(samples, len(data)) // 10), {}
    for name, ways in pairs.items():
        one, other = (noise_stability(net, batches, **way) for way in ways)
        same = overlap(one.topk(top).indices.tolist(), other.topk(top).indices.tolist())
        found[name] = {"rank agreement": rank_agreement(one, other), "top-10 % overlap": same}
    net.cpu()
    return found


def main() -> None:
    """Read the command line, check, then measure."""
    parser = command_line(__doc__)
    parser.add_argument("--pools", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--query", type=int, default=2500)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--steps", type=int, default=300, help="training steps before scoring")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--matrix", type=int, default=8192, help="size of the matrix product that sets the ceiling")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    net = resnet18()
    data = make_data(max(options.pools) + 1)
    train(net, data, device, options.steps)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    flops = counter.get_total_flops()
    figures = {
        "agreement": agreement(net, data, device, options.passes, 2000),
        "ceiling, Tflops": {
            "bfloat16": ceiling(device, torch.bfloat16, options.matrix),
            "float32": ceiling(device, torch.float32, options.matrix),
        },
        "Gflop per forward pass": flops / 1e9,
    }
    for pool in options.pools:
        part = InMemory(data.pictures[: pool + 1], data.labels[: pool + 1])
        table, picks = {}, {}
        for name in options.ways:
            runs = [
                query(net, part, options.query, options.passes, options.batch_size, WAYS[name])
                for _ in range(options.rounds)
            ]
            picks[name] = runs[0]["picks"]
            best = sorted(run["seconds"] for run in runs)
            # a derivative costs two products where a plain pass costs one; a backward pass to the inputs costs one,
            # and the norms of the weights' gradients at most another
            times = 2 * options.passes + 1 if name.startswith("jvp") else options.passes + 1
            work = flops * pool * (5 if name == "inf" else times)
            kind = "bfloat16" if "bf16" in name else "float32"
            table[name] = {
                "seconds, median": round(statistics.median(best), 3),
                "seconds, first with warm-up": round(runs[0]["seconds"], 3),
                "peak MB on the device": runs[-1]["peak MB on the device"],
                "overlap with finite_difference": round(overlap(picks[name], picks[options.ways[0]]), 4),
            }
            share = work / statistics.median(best) / 1e12 / figures["ceiling, Tflops"][kind]
            table[name]["fraction of the ceiling"] = round(share, 3)
        figures[f"query {options.query} of {pool}"] = table
    setting = {"passes": options.passes, "batch size": options.batch_size, "rounds": options.rounds}
    write("gpu", {**setting, **figures}, options.results)


if __name__ == "__main__":
    main()
