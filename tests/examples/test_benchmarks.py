import functools
import json
import logging
import sys

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from examples.benchmarks import fidelity, gpu, growth, precision, speed
from examples.benchmarks.algorithm_1 import algorithm_1
from examples.benchmarks.cases import CASES, Pictures, trained
from examples.benchmarks.harness import in_turn, overlap, query
from examples.fashion_mnist import read_fashion_mnist
from lightning_al import NoiseStabilityAcquisition
from lightning_al.functional import noise_stability
from tests.image_files import write_mnist
from tests.sweep import sampled

# advice and notes of Lightning and torch that a benchmark at toy size cannot follow
pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`"),
    pytest.mark.filterwarnings("ignore:Derivatives along the noise rank"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
]


@pytest.fixture(autouse=True)
def lightning_talks_as_before():
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def folder(tmp_path):
    write_mnist(tmp_path, size=120)  # Fashion-MNIST has the very format of MNIST
    return tmp_path / "MNIST" / "raw"


def run(script, tmp_path, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--results", str(tmp_path), *map(str, arguments)])
    script.main()
    results = sorted(tmp_path.glob("*.json"))
    figures = json.loads(results[-1].read_text())
    assert figures["environment"]["torch"] == torch.__version__
    return figures


@pytest.mark.parametrize("modules", [None, ["4", "6"]])
def test_algorithm_1_as_written_gives_the_scores_of_the_library(modules):
    torch.manual_seed(0)
    hidden = [layer for _ in range(3) for layer in (torch.nn.Linear(8, 8), torch.nn.Tanh())]
    net, inputs = torch.nn.Sequential(*hidden, torch.nn.Linear(8, 3)), torch.randn(50, 8)
    loader = DataLoader(TensorDataset(inputs, torch.zeros(50)), batch_size=20)
    scores = algorithm_1(net, loader, lambda raw: raw.softmax(1), passes=4, modules=modules)
    torch.testing.assert_close(scores, noise_stability(net, loader, passes=4, modules=modules), rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("name", sampled(CASES, ("small_cnn", "mlp")))
def test_every_case_is_a_model_that_a_query_can_score(name, folder):
    case = CASES[name]
    pictures, labels = read_fashion_mnist(folder)
    dataset = Pictures(pictures[:9], labels[:9], case.inputs)
    acquisition = NoiseStabilityAcquisition(2, passes=2, output=case.output, modules=case.modules)
    picks, seconds = query(trained(case, folder, 8), dataset, acquisition, batch_size=4)
    assert len(set(picks)) == 2
    assert 0 not in picks  # labeled from the start
    assert seconds > 0


def test_speed_compares_with_algorithm_1_and_with_forward_passes(folder, tmp_path, monkeypatch):
    sizes = ("--training", 40, "--pool", 70, "--passes", 2, "--rounds", 1)
    figures = run(speed, tmp_path, monkeypatch, "--data", folder, "--cases", "mlp", *sizes)
    assert figures["case"] == "speed-mlp"
    assert figures["query"] == 7
    runs = figures["runs"]
    assert set(runs) == {"algorithm 1", "passes=2", 'passes="inf"'}
    assert runs["passes=2"]["overlap with algorithm 1"] == 1
    assert runs['passes="inf"']["overlap with the limit"] == 1  # one output, one direction
    assert all(entry["seconds"] > 0 for entry in runs.values())


def test_precision_compares_every_way_with_double_precision(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "SmallResNet", functools.partial(precision.SmallResNet, width=8))
    sizes = ("--pool", 60, "--train", 40, "--epochs", 1, "--most-passes", 4)
    figures = run(precision, tmp_path, monkeypatch, "--data", folder, *sizes)
    rows = figures["against float64, K = 10, magnitude 1e-3"]
    assert len(rows) == 6
    assert rows["finite difference, fp32"]["spearman"] > 0.99
    assert rows["finite difference under bf16 autocast"]["spearman"] < rows["JVP, everything in bf16"]["spearman"]


def test_fidelity_compares_passes_and_directions_with_the_limit(folder, tmp_path, monkeypatch):
    sizes = ("--training", 10, "--pool", 40, "--rounds", 1)
    figures = run(fidelity, tmp_path, monkeypatch, "--data", folder, "--cases", "mlp", *sizes)
    closed = figures["closed form"]
    assert set(closed) == {"1", "2", "3", "all"}
    assert closed["all"]["overlap"] == {"0.02": 1, "0.1": 1, "0.25": 1}
    assert closed["1"]["forward passes"] > 0
    assert set(figures["passes"]) == {"1", "3", "10", "30", "100"}
    assert figures["passes"]["1"]["overlap"]["0.25"] <= figures["passes"]["100"]["overlap"]["0.25"] <= 1


@pytest.mark.parametrize("processes", [pytest.param(True, marks=pytest.mark.sweep), False])
def test_growth_measures_in_processes_of_their_own(tmp_path, monkeypatch, processes):
    if not processes:  # each imports torch, and one of them only to time that
        monkeypatch.setattr(growth, "in_process", growth.scored)
        monkeypatch.setattr(growth, "importing", lambda rounds: 1.0)
    query_sizes = ("--pools", 20, "--passes", "--budgets")
    sizes = ("--points", 60, "--picks", 5, "--samples", 1000, "--rounds", 1)
    monkeypatch.setitem(growth.BASE, "budget", 3)
    figures = run(growth, tmp_path, monkeypatch, *query_sizes, *sizes)
    assert figures["by pool"]["20"]["peak MB"] > 50
    assert figures["by passes"] == {}
    assert set(figures["5 of 60 x 512"]) == {"k_centers", "k_means"}
    assert figures["import, ms beyond lightning and torchvision"] > 0


def small_net():
    return torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4)),
        *(torch.nn.Flatten(), torch.nn.Linear(128, 10)),
    )


def test_the_benchmark_of_the_gpu_runs_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "resnet18", small_net)
    sizes = ("--pools", 40, "--query", 4, "--passes", 2, "--steps", 1, "--rounds", 1, "--matrix", 64)
    ways = ("finite_difference", "jvp_bf16", "inf")
    figures = run(gpu, tmp_path, monkeypatch, *sizes, "--batch-size", 20, "--ways", *ways)
    table = figures["query 4 of 40"]
    assert set(table) == set(ways)
    assert 0 <= table["inf"]["overlap with finite_difference"] <= 1
    assert figures["agreement"]["inf, with all directions"]["rank agreement"] > 0.9
    assert table["finite_difference"]["fraction of the ceiling"] > 0
    # a product and a sum for each weight at each position
    assert figures["Gflop per forward pass"] == pytest.approx(2 * (27 * 8 * 32 * 32 + 128 * 10) / 1e9)


def test_rounds_are_taken_in_turn_and_medians_reported():
    order, times = [], iter([3.0, 30.0, 1.0, 10.0, 2.0, 20.0])

    def measured(name):
        order.append(name)
        return next(times)

    medians = in_turn({"a": lambda: measured("a"), "b": lambda: measured("b")}, rounds=3)
    assert order == ["a", "b"] * 3
    assert medians == {"a": 2.0, "b": 20.0}
    assert overlap([1, 2, 3], [3, 2, 9, 8]) == 0.5
