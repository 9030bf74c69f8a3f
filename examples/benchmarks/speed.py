"""Seconds of one query, against Algorithm 1 as written and against plain forward passes, for a model of each class.

    python -m examples.benchmarks.speed --data FOLDER [--cases resnet18 vit] [--pool 2000] [--rounds 3]

What is picked is held against the limit of infinitely many passes, in double precision along all directions. Writes
`results/speed-CASE.json`.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.benchmarks.algorithm_1 import algorithm_1
from examples.benchmarks.cases import CASES, Case, Pictures, trained
from examples.benchmarks.harness import command_line, in_turn, overlap, query, timed, write
from examples.fashion_mnist import read_fashion_mnist
from lightning_al import NoiseStabilityAcquisition
from lightning_al.functional import noise_stability

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda raw: raw.softmax(1), "identity": lambda raw: raw}


def measure(
    case: Case, folder: str, training: int, pool: int, passes: int, share: float, rounds: int
) -> dict[str, Any]:
    """Measure one case and return its figures."""
    net = trained(case, folder, training)
    pictures, labels = read_fashion_mnist(folder)
    part = slice(training, training + pool + 1)  # the first one is labeled from the start
    dataset = Pictures(pictures[part], labels[part], case.inputs)
    budget = round(share * pool)
    loader = DataLoader(torch.utils.data.Subset(dataset, range(1, pool + 1)), case.batch_size)
    batches = [inputs for inputs, _ in loader]
    picks: dict[str, list[int]] = {}
    if not case.dense:
        exact = copy.deepcopy(net).double()
        limit = noise_stability(
            exact, batches, passes="inf", directions="all", output=case.output, modules=case.modules
        )
        picks["limit"] = (limit.topk(budget).indices + 1).tolist()

    def reference() -> None:
        scores = algorithm_1(net, loader, OUTPUTS[case.output], passes, modules=case.modules)
        picks["algorithm 1"] = (scores.topk(budget).indices + 1).tolist()

    @torch.no_grad()
    def forward() -> None:
        for _ in range(passes + 1):
            for batch in batches:
                net(batch)

    def ours(variant: str, options: dict) -> Callable[[], float]:
        def run() -> float:
            acquisition = NoiseStabilityAcquisition(
                budget, output=case.output, modules=case.modules, selection="topk", **options
            )
            picks[variant], seconds = query(net, dataset, acquisition, case.batch_size)
            return seconds

        return run

    variants: dict[str, dict[str, Any]] = {f"passes={passes}": {"passes": passes}}
    if not case.dense:
        variants['passes="inf"'] = {"passes": "inf"}
    runs = {"algorithm 1": lambda: timed(reference), "forward passes": lambda: timed(forward)}
    seconds = in_turn({**runs, **{variant: ours(variant, options) for variant, options in variants.items()}}, rounds)
    floor = seconds["forward passes"]
    figures = {
        variant: {
            "seconds": round(seconds[variant], 3),
            "times faster than algorithm 1": round(seconds["algorithm 1"] / seconds[variant], 2),
            "forward passes": round((passes + 1) * seconds[variant] / floor, 2),
            "overlap with algorithm 1": round(overlap(picks[variant], picks["algorithm 1"]), 4),
            **({} if case.dense else {"overlap with the limit": round(overlap(picks[variant], picks["limit"]), 4)}),
        }
        for variant in ("algorithm 1", *variants)
    }
    setting = {"pool": pool, "passes": passes, "query": budget, "batch size": case.batch_size, "rounds": rounds}
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return {**setting, "parameters": parameters, "forward passes": round(floor, 3), "runs": figures}


def main() -> None:
    """Read the command line and measure."""
    parser = command_line(__doc__)
    parser.add_argument("--data", required=True, help="folder of the Fashion-MNIST files")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--training", type=int, default=1500, help="pictures to train on; the pool comes after them")
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.1, help="share of the pool to pick")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.cases:
        setting = (options.data, options.training, options.pool, options.passes, options.share, options.rounds)
        write(f"speed-{name}", measure(CASES[name], *setting), options.results)


if __name__ == "__main__":
    main()
