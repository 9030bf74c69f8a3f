"""How near the picks of K passes, and of the closed form along D directions, come to those of infinitely many passes.

    python -m examples.benchmarks.fidelity --data FOLDER [--cases small_cnn resnet18] [--pool 2000]

The truth is the closed form along all directions in double precision. Overlaps of K passes are means over as many
disjoint groups of the drawn passes. The cost is that of the scores alone, in forward passes of the same network, timed
in turn. Writes `results/fidelity-CASE.json`, which `docs/pictures/fidelity.py` draws.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from examples.benchmarks.cases import CASES, Case, trained
from examples.benchmarks.harness import command_line, in_turn, overlap, timed, write
from examples.fashion_mnist import read_fashion_mnist
from lightning_al.model.clone import clone_module
from lightning_al.model.memory_format import prefer_channels_last
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.seeding import RandomStream
from lightning_al.perturbation.backend_choice import make_backend
from lightning_al.perturbation.closed_form import ClosedForm
from lightning_al.perturbation.deviations import deviation_sizes
from lightning_al.perturbation.directions import Directions
from lightning_al.perturbation.noise import Noise

SHARES = (0.02, 0.1, 0.25)
PASSES = (1, 3, 10, 30, 100)
DIRECTIONS: tuple[Directions, ...] = (1, 2, 3, "all")
TIMED_PASSES = 3  # from which the cost of more follows


def overlaps(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the share of the picks that two scores have in common, by share of the pool that is picked."""
    by_share = {}
    for share in SHARES:
        budget = max(1, round(share * len(truth)))
        picks = (values.topk(budget).indices.tolist() for values in (scores, truth))
        by_share[f"{share:g}"] = overlap(*picks)
    return by_share


def mean_overlaps(sizes: Tensor, truth: Tensor, passes: int) -> dict[str, float]:
    """Return the mean overlap of disjoint groups of so many passes, from sizes (N, K)."""
    groups = [overlaps(group.mean(1), truth) for group in sizes.split(passes, 1) if group.shape[1] == passes]
    return {share: round(sum(group[share] for group in groups) / len(groups), 4) for share in groups[0]}


def measure(case: Case, folder: str, training: int, pool: int, rounds: int) -> dict[str, Any]:
    """Measure one case and return its figures."""
    net = trained(case, folder, training)
    pictures, _ = read_fashion_mnist(folder)
    batches = list(case.inputs(pictures[training : training + pool]).split(case.batch_size))
    noise, seeds = Noise(), [(RandomStream.NOISE, 0, 0, step) for step in range(max(PASSES))]

    def closed_form(predictor: Predictor, batch: Tensor, directions: Directions) -> ClosedForm:
        return ClosedForm(
            predictor, batch, noise=noise, modules=case.modules, output=case.output, directions=directions, seed=(0,)
        )

    exact = Predictor(copy.deepcopy(net).double())
    double = closed_form(exact, batches[0].double(), "all")
    truth = torch.cat([double.scores(batch.double()) for batch in batches])
    predictor = Predictor(clone_module(net, torch.device("cpu")))
    with torch.no_grad():
        prefer_channels_last(predictor, batches[0])
        backend = make_backend(
            predictor, batches[0], noise=noise, seeds=seeds, modules=case.modules, output=case.output
        )
        sizes = deviation_sizes(backend, batches, seeds)

        def forward() -> None:
            for batch in batches:
                predictor(batch)

        ways = {directions: closed_form(predictor, batches[0], directions) for directions in DIRECTIONS}
        runs = {"forward": lambda: timed(forward), "passes": lambda: timed(lambda: differences())}

        def differences() -> None:
            deviation_sizes(backend, batches, seeds[:TIMED_PASSES])

        for directions, way in ways.items():
            runs[f"directions {directions}"] = lambda way=way: timed(lambda: way.chunk_scores(batches))
        seconds = in_turn(runs, rounds)
        scores = {directions: way.chunk_scores(batches) for directions, way in ways.items()}
    per_pass = seconds["passes"] / seconds["forward"] / (TIMED_PASSES + 1)
    return {
        "pool": pool,
        "rounds": rounds,
        "closed form": {
            str(directions): {
                "forward passes": round(seconds[f"directions {directions}"] / seconds["forward"], 2),
                "overlap": {share: round(value, 4) for share, value in overlaps(scores[directions], truth).items()},
            }
            for directions in DIRECTIONS
        },
        "passes": {
            str(passes): {
                "forward passes": round(per_pass * (passes + 1), 2),
                "overlap": mean_overlaps(sizes, truth, passes),
            }
            for passes in PASSES
        },
    }


def main() -> None:
    """Read the command line and measure."""
    parser = command_line(__doc__)
    parser.add_argument("--data", required=True, help="folder of the Fashion-MNIST files")
    parser.add_argument("--cases", nargs="+", default=["small_cnn", "resnet18"], choices=CASES)
    parser.add_argument("--training", type=int, default=500, help="pictures to train on; the pool comes after them")
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.cases:
        figures = measure(CASES[name], options.data, options.training, options.pool, options.rounds)
        write(f"fidelity-{name}", figures, options.results)


if __name__ == "__main__":
    main()
