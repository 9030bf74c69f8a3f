"""What fewer passes cost and gain: racing and `passes="auto"` against fixed numbers of passes.

    python -m examples.benchmarks.passes --data FOLDER [--pool 5000]

Every query goes through a real Trainer; the reference is K = 50. Writes `results/passes.json`.
"""

import logging
from typing import Any

import torch
from torch import nn

from examples.benchmarks.cases import CASES, Pictures, trained
from examples.benchmarks.harness import command_line, overlap, query, write
from examples.fashion_mnist import read_fashion_mnist
from lightning_al import NoiseStabilityAcquisition


class Counting(nn.Module):
    """A network that counts the samples that pass through it."""

    samples = 0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the network's outputs."""
        Counting.samples += len(inputs)
        return self.net(inputs)


def main() -> None:
    """Read the command line and measure."""
    parser = command_line(__doc__)
    parser.add_argument("--data", required=True, help="folder of the Fashion-MNIST files")
    parser.add_argument("--case", default="small_cnn", choices=CASES)
    parser.add_argument("--training", type=int, default=1500, help="pictures to train on; the pool comes after them")
    parser.add_argument("--pool", type=int, default=5000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.1, 0.25])
    parser.add_argument("--reference", type=int, default=50)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    case = CASES[options.case]
    net = Counting(trained(case, options.data, options.training))
    pictures, labels = read_fashion_mnist(options.data)
    part = slice(options.training, options.training + options.pool + 1)
    dataset = Pictures(pictures[part], labels[part], case.inputs)
    ways = {
        **{f"K = {passes}": {"passes": passes} for passes in (1, 3, 5, 10, 30)},
        "K = 10, racing": {"passes": 10, "racing": True},
        "K = 30, racing": {"passes": 30, "racing": True},
        "auto": {"passes": "auto", "max_passes": 30},
        "auto, racing": {"passes": "auto", "max_passes": 30, "racing": True},
    }
    tables = {}
    for share in options.shares:
        budget = round(share * options.pool)

        def acquisition(**settings: Any) -> NoiseStabilityAcquisition:
            return NoiseStabilityAcquisition(budget, output=case.output, **settings)  # noqa: B023  # used at once

        reference, _ = query(net, dataset, acquisition(passes=options.reference), case.batch_size)
        unraced: dict[int, list[int]] = {}
        table = {}
        for name, settings in ways.items():
            Counting.samples = 0
            picks, seconds = query(net, dataset, acquisition(**settings), case.batch_size)
            passes = settings["passes"]
            table[name] = {
                "forward passes per sample": round(Counting.samples / options.pool, 2),
                "seconds": round(seconds, 2),
                f"overlap with K = {options.reference}": round(overlap(picks, reference), 3),
            }
            if settings.get("racing") and passes in unraced:
                table[name]["overlap with all passes"] = round(overlap(picks, unraced[passes]), 4)
            else:
                unraced[passes] = picks
        tables[f"query {share:.0%} of the pool"] = table
    write("passes", {"case": options.case, "pool": options.pool, "tables": tables}, options.results)


if __name__ == "__main__":
    main()
