"""How far each precision's ranking is from that of double precision, on Fashion-MNIST: the table of the method page.

    python -m examples.benchmarks.precision --data FOLDER [--pool 2000]

Trains a small residual network, scores the pool in every way, and compares with Algorithm 1 in float64 by Spearman's
correlation and the overlap of the top tenth. Writes `results/precision.json`, and
`results/precision-closed_form.json` about the closed form.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.benchmarks.harness import command_line, write
from examples.fashion_mnist import read_fashion_mnist
from lightning_al.model.predictor import Predictor
from lightning_al.numerics.float32 import true_float32
from lightning_al.numerics.seeding import RandomStream
from lightning_al.perturbation.backend_choice import rank_agreement
from lightning_al.perturbation.closed_form import ClosedForm
from lightning_al.perturbation.deviations import Backend, deviation_sizes
from lightning_al.perturbation.directions import Directions
from lightning_al.perturbation.finite_differences import FiniteDifferences
from lightning_al.perturbation.forward_mode import ForwardDerivatives
from lightning_al.perturbation.noise import Noise

Row = tuple[str, Tensor]


class SmallResNet(nn.Module):
    """A stem, two residual blocks with batch normalization, pooling, a linear layer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
                *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = functional.relu(hidden + block(hidden))
        return self.head(hidden.mean((2, 3)))


def train(pictures: Tensor, labels: Tensor, epochs: int) -> SmallResNet:
    """Train the network on some pictures."""
    torch.manual_seed(0)
    net = SmallResNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures)).split(32):
            loss = functional.cross_entropy(net(pictures[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


class Scorer:
    """Scores a pool of pictures in different precisions with the same noise."""

    def __init__(self, net: nn.Module, pictures: Tensor, output: str) -> None:
        self.net, self.pictures, self.output = net, pictures, output

    def finite_difference(
        self, passes: int = 10, magnitude: float = 1e-3, weights: torch.dtype = torch.float32, autocast: bool = False
    ) -> Tensor:
        """Score by finite differences in the precision of the weights, or under autocast."""
        net = copy.deepcopy(self.net).to(weights)
        predictor = Predictor(net)
        noise = Drawn(magnitude)

        def forward(batch: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return predictor.output(batch.to(weights), self.output)

        return self._scores(FiniteDifferences(forward, list(net.parameters()), noise), passes)

    def jvp(self, passes: int = 10, dtype: torch.dtype | None = None) -> Tensor:
        """Score by derivatives."""
        net = copy.deepcopy(self.net)
        backend = ForwardDerivatives(Predictor(net), self.output, list(net.parameters()), Drawn(), dtype=dtype)
        return self._scores(backend, passes)

    def closed_form(self, directions: Directions, weights: torch.dtype, autocast: bool = False) -> Tensor:
        """Score in closed form in the precision of the weights, or under autocast."""
        net = copy.deepcopy(self.net).to(weights)
        batches = [batch.to(weights) for batch in self.pictures.split(256)]
        with true_float32(torch.device("cpu")), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            form = ClosedForm(
                Predictor(net), batches[0], noise=Noise(), output=self.output, directions=directions, seed=(0,)
            )
            return form.chunk_scores(batches).double()

    @torch.no_grad()
    def _scores(self, backend: Backend, passes: int) -> Tensor:
        seeds = [(RandomStream.NOISE, 0, 0, step) for step in range(passes)]
        with true_float32(torch.device("cpu")):
            return deviation_sizes(backend, list(self.pictures.split(256)), seeds).mean(1).double()


class Drawn(Noise):
    """The noise of float32 parameters, whatever the precision of those it is added to."""

    def draw(self, parameters: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Draw in float32 and cast."""
        steps = super().draw([parameter.float() for parameter in parameters], generator)
        return [step.to(parameter.dtype) for step, parameter in zip(steps, parameters, strict=True)]


def agreement(scores: Tensor, reference: Tensor) -> dict[str, float]:
    """Compare two rankings."""
    top = max(1, len(scores) // 10)
    shared = set(scores.topk(top).indices.tolist()) & set(reference.topk(top).indices.tolist())
    return {
        "spearman": round(rank_agreement(scores.double(), reference), 4),
        "top-10 % overlap": round(len(shared) / top, 3),
    }


def closed_form_rows(scorer: Scorer, pool: int) -> dict[str, Any]:
    """Compare the closed form in every precision with that along all directions in float64."""
    limit = scorer.closed_form("all", torch.float64)
    rows = {
        "all directions, fp32": scorer.closed_form("all", torch.float32),
        "two directions, fp64": scorer.closed_form(2, torch.float64),
        "two directions, fp32": scorer.closed_form(2, torch.float32),
        "two directions under bf16 autocast": scorer.closed_form(2, torch.float32, autocast=True),
    }
    return {
        "pool": pool,
        "against all directions in float64": {way: agreement(own, limit) for way, own in rows.items()},
    }


def main() -> None:
    """Read the command line and measure."""
    parser = command_line(__doc__)
    parser.add_argument("--data", required=True, help="folder of the Fashion-MNIST files")
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--most-passes", type=int, default=50)
    parser.add_argument("--closed-form-only", action="store_true", help="leave out the passes")
    options = parser.parse_args()
    images, labels = read_fashion_mnist(options.data)
    pictures = images.float() / 255
    net = train(pictures[: options.train], labels[: options.train].long(), options.epochs)
    pool = slice(options.train, options.train + options.pool)
    pictures, labels = pictures[pool], labels[pool].long()
    with torch.no_grad():
        wrong = net(pictures).argmax(1) != labels
    softmax, logits = Scorer(net, pictures, "softmax"), Scorer(net, pictures, "identity")
    write("precision-closed_form", closed_form_rows(softmax, options.pool), options.results)
    if options.closed_form_only:
        return
    double = softmax.finite_difference(weights=torch.float64)
    most = softmax.finite_difference(options.most_passes)
    low, brain = torch.bfloat16, {"magnitude": 1e-2, "autocast": True}
    tenfold = softmax.finite_difference(magnitude=1e-2, weights=torch.float64)
    rows = {
        "finite difference, fp32": agreement(softmax.finite_difference(), double),
        "finite difference under bf16 autocast": agreement(softmax.finite_difference(autocast=True), double),
        "finite difference, bf16 weights": agreement(softmax.finite_difference(weights=low), double),
        "finite difference, bf16 autocast, magnitude 1e-2": agreement(softmax.finite_difference(**brain), tenfold),
        "JVP, fp32": agreement(softmax.jvp(), double),
        "JVP, everything in bf16": agreement(softmax.jvp(dtype=low), double),
    }
    by_passes = {
        str(passes): agreement(softmax.finite_difference(passes), most)
        for passes in (1, 3, 10, 30)
        if passes < options.most_passes
    }
    on_logits = logits.finite_difference(options.most_passes)
    by_passes_on_logits = {
        str(passes): agreement(logits.finite_difference(passes), on_logits) for passes in (1, 3) if passes
    }
    top = max(1, options.pool // 10)
    misclassified = {
        name: round(float(wrong[scores.topk(top).indices].float().mean()), 3)
        for name, scores in {
            "logits": logits.finite_difference(),
            "softmax": softmax.finite_difference(),
            "any sample": torch.rand(len(wrong), generator=torch.Generator().manual_seed(0)),
        }.items()
    }
    write(
        "precision",
        {
            "pool": options.pool,
            "accuracy": round(1 - float(wrong.float().mean()), 4),
            "against float64, K = 10, magnitude 1e-3": rows,
            f"K passes against {options.most_passes}, softmax": by_passes,
            f"K passes against {options.most_passes}, logits": by_passes_on_logits,
            "share of misclassified samples among the top 10 %": misclassified,
        },
        options.results,
    )


if __name__ == "__main__":
    main()
