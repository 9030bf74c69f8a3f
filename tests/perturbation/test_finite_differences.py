import math
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from lightning_al.numerics.seeding import make_generator
from lightning_al.perturbation import finite_differences as perturb
from lightning_al.perturbation.deviations import Deviation, deviation_sizes
from lightning_al.perturbation.finite_differences import FiniteDifferences, perturbed
from lightning_al.perturbation.noise import Noise, noisy_parameters
from tests.noise_stability_twin import twin_outputs


def test_perturbed_adds_the_steps_and_puts_the_same_bits_back():
    # 1 + 1e-9 - 1e-9 is 1 in float32, but 1e-9 + 1 - 1 is 0: subtracting the step would lose it
    parameters = [torch.tensor([1e-9, -0.0, math.nan]), torch.tensor([1.0])]
    bits = [parameter.view(torch.int32).tolist() for parameter in parameters]
    pointers = [parameter.data_ptr() for parameter in parameters]
    with torch.no_grad(), perturbed(parameters, [torch.ones(3), torch.ones(1)]):
        assert parameters[0][:2].tolist() == [1.0, 1.0]
        assert parameters[1].item() == 2.0
    assert [parameter.view(torch.int32).tolist() for parameter in parameters] == bits
    assert [parameter.data_ptr() for parameter in parameters] == pointers


def test_perturbed_restores_when_the_pass_or_the_step_fails():
    parameters = [torch.tensor([1e-9]), torch.ones(2)]
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), perturbed(parameters, [torch.ones(1), torch.ones(2)]):
        raise KeyboardInterrupt
    assert parameters[0].item() == torch.tensor(1e-9).item()
    with pytest.raises(RuntimeError), torch.no_grad(), perturbed(parameters, [torch.ones(1), torch.ones(3)]):
        pass
    assert parameters[0].item() == torch.tensor(1e-9).item()
    assert parameters[1].tolist() == [1.0, 1.0]


def test_perturbed_reaches_a_tied_parameter_under_all_its_names():
    embedding, decoder = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
    decoder.weight = embedding.weight
    clean = decoder.weight.detach().clone()
    with torch.no_grad(), perturbed([embedding.weight], [torch.ones(4, 3)]):
        assert torch.equal(decoder.weight, clean + 1)
    assert torch.equal(decoder.weight, clean)


# ---------------------------------------------------------------- finite_differences


class CountingNoise(Noise):
    """Records every draw; a subclass, because the noise itself must stay the real one."""

    draws: list[int]

    def draw(self, parameters, generator):
        self.draws.append(generator.initial_seed())
        return super().draw(parameters, generator)


def test_finite_differences_draw_once_per_pass_and_compute_the_clean_outputs_once():
    model = nn.Linear(3, 2).double()
    parameters = list(model.parameters())
    chunk = [torch.ones(4, 3).double(), 2 * torch.ones(1, 3).double(), torch.zeros(2, 3).double()]
    seeds = [(7, 0), (7, 1)]
    noise = CountingNoise(0.1)
    object.__setattr__(noise, "draws", [])
    calls = []

    def forward(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        return model(batch)

    clean_weights = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        found = list(FiniteDifferences(forward, parameters, noise).deviations(chunk, seeds))
    assert calls == [4, 1, 2] * 3  # clean, then pass by pass
    assert noise.draws == [make_generator(*seed).initial_seed() for seed in seeds]
    assert [(position, step) for position, step, _, _ in found] == [(p, s) for s in range(2) for p in range(3)]
    for turn, (position, _, deviation, clean) in enumerate(found):
        assert torch.equal(clean, nn.functional.linear(chunk[position], *clean_weights))
        # a linear model's deviation is the step itself, seen by the input
        step = Noise(0.1).draw(clean_weights, make_generator(*seeds[turn // 3]))
        torch.testing.assert_close(deviation, nn.functional.linear(chunk[position], *step), rtol=0, atol=1e-14)
    assert all(map(torch.equal, parameters, clean_weights))


def test_finite_differences_restore_when_the_reader_stops_early():
    model = nn.Linear(3, 2)
    clean = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        backend = FiniteDifferences(model, list(model.parameters()), Noise(0.1))
        steps = backend.deviations([torch.ones(1, 3)], [(0, 0), (0, 1)])
        next(steps)
        assert not all(map(torch.equal, model.parameters(), clean))
        steps.close()
    assert all(map(torch.equal, model.parameters(), clean))


class ConvNet(nn.Module):
    """Four convolutions, a skip connection; classes, or a map of them."""

    def __init__(self, dense: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Conv2d(4, 3, 1)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        maps = self.head(h + self.block(h))
        return maps if self.dense else maps.mean((2, 3))


def make(dense: bool = False, dtype: torch.dtype = torch.float32) -> tuple[ConvNet, list[Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvNet(dense).to(dtype).eval(), [torch.randn(size, 2, 6, 5, dtype=dtype) for size in (3, 1, 4)]


SEEDS = [(7, 0), (7, 1), (7, 2)]


def deviate(model: nn.Module, chunk: Sequence[Tensor], modules: Sequence[str] | None, **options) -> list[Deviation]:
    parameters = noisy_parameters(model, lambda: model(chunk[0]), modules)
    with torch.no_grad():
        return list(FiniteDifferences(model, parameters, Noise(0.01), **options).deviations(chunk, SEEDS))


def order(found: Sequence[Deviation]) -> list[tuple[int, int]]:
    return [(deviation.position, deviation.step) for deviation in found]


@pytest.mark.parametrize("dense", [False, True])
def test_confined_deviations_are_those_of_the_twin(dense):
    model, chunk = make(dense, torch.float64)
    found = deviate(model, chunk, ["head"])
    names = ["head.weight", "head.bias"]
    pairs = twin_outputs(model, chunk, seeds=SEEDS, magnitude=0.01, output="identity", noisy=names)
    for step, (clean, noised) in enumerate(pairs):
        changes = torch.cat([deviation.change for deviation in found if deviation.step == step])
        torch.testing.assert_close(changes, noised - clean, rtol=0, atol=1e-14)


# ---------------------------------------------------------------- finite_differences: memory


def test_one_row_per_sample_is_held_for_a_whole_chunk():
    model, chunk = make()
    assert order(deviate(model, chunk, None)) == [(p, s) for s in range(3) for p in range(3)]


def test_a_large_dense_output_is_held_for_one_batch_at_a_time(monkeypatch):
    monkeypatch.setattr(perturb, "DENSE_BYTES", 1)
    model, chunk = make(dense=True)
    assert order(deviate(model, chunk, None)) == [(p, s) for p in range(3) for s in range(3)]


def test_small_dense_outputs_share_the_noise_of_a_pass():
    model, chunk = make(dense=True)
    assert order(deviate(model, chunk, None)) == [(p, s) for s in range(3) for p in range(3)]


def test_held_bytes_split_a_chunk_without_changing_a_bit():
    model, chunk = make()
    whole = {(one.position, one.step): one.change for one in deviate(model, chunk, None)}
    row = 3 * 4  # bytes of outputs per sample; the batches have 3, 1 and 4
    for held, groups in {
        0: [[0], [1], [2]],
        3 * row: [[0], [1, 2]],
        4 * row: [[0, 1], [2]],
        5 * row: [[0, 1, 2]],
    }.items():
        found = deviate(model, chunk, None, held_bytes=held)
        assert order(found) == [(p, s) for group in groups for s in range(3) for p in group]
        assert all(torch.equal(one.change, whole[one.position, one.step]) for one in found)


def test_a_large_dense_output_is_gone_before_the_next_batch_is_run(monkeypatch):
    monkeypatch.setattr(perturb, "DENSE_BYTES", 1)
    conv = nn.Conv2d(2, 3, 1)
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def forward(batch: Tensor) -> Tensor:
        alive.append(sum(output() is not None for output in outputs))
        output = conv(batch)
        outputs.append(weakref.ref(output))
        return output

    with torch.no_grad():
        backend = FiniteDifferences(forward, list(conv.parameters()), Noise(0.1))
        sizes = deviation_sizes(backend, [torch.ones(2, 2, 4, 4)] * 3, [(0, 0), (0, 1)])
    assert sizes.shape == (6, 2)
    assert alive == [0, 1, 1] * 3  # the clean pass of a batch, and its perturbed passes beside its clean output


# ---------------------------------------------------------------- finite_differences: compiling


def test_compiled_passes_give_the_same_deviations_and_compile_once():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, chunk = (
            nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)),
            [torch.randn(4, 5), torch.randn(4, 5)],
        )
    expected = deviate(model, chunk, None)
    torch._dynamo.reset()
    counters.clear()
    found = deviate(model, chunk, None, compiled=True)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["recompiles"]
    assert order(found) == order(expected)
    for one, other in zip(found, expected, strict=True):
        # the outputs are below 2, so that their rounding errors are below 2^-23, a few of them in each
        assert other.clean.abs().max() < 2
        torch.testing.assert_close(one.clean, other.clean, rtol=0, atol=8 * 2**-23)
        torch.testing.assert_close(one.change, other.change, rtol=0, atol=8 * 2**-23)
        assert other.change.abs().max() > 1e-3
    torch._dynamo.reset()
