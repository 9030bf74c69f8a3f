import math
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_al import perturb
from lightning_al.functional.noise_stability import deviation_sizes
from lightning_al.noise import Noise, noisy_parameters
from lightning_al.perturb import Deviation, FiniteDifferences, perturbed
from lightning_al.seeding import make_generator
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


# ---------------------------------------------------------------- finite_differences: what noise cannot reach


class Count(TorchDispatchMode):
    """Counts the convolutions that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.convolutions += func.overloadpacket.__name__ == "convolution"
        return func(*args, **(kwargs or {}))


class ConvNet(nn.Module):
    """Four convolutions, of which noise in the head reaches one; a skip connection; classes, or a map of them."""

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


def count(run) -> tuple[Tensor, float]:
    with Count() as counter:
        outputs = run()
    return outputs, float(counter.convolutions)


@pytest.fixture
def replays(monkeypatch):
    """Choose between replaying and running in full by counting, not by the clock."""
    monkeypatch.setattr(perturb, "_timed", count)


@pytest.fixture
def runs_in_full(monkeypatch):
    monkeypatch.setattr(perturb, "record_prefix", lambda forward, noisy: (forward(), None))


SEEDS = [(7, 0), (7, 1), (7, 2)]


def deviate(model: nn.Module, chunk: Sequence[Tensor], modules: Sequence[str] | None, **options) -> list[Deviation]:
    parameters = noisy_parameters(model, lambda: model(chunk[0]), modules)
    with torch.no_grad():
        return list(FiniteDifferences(model, parameters, Noise(0.01), **options).deviations(chunk, SEEDS))


def order(found: Sequence[Deviation]) -> list[tuple[int, int]]:
    return [(deviation.position, deviation.step) for deviation in found]


@pytest.mark.parametrize("modules", [["head"], ["block.2", "head"], ["body.1"]])
@pytest.mark.parametrize("dense", [False, True])
def test_what_noise_cannot_reach_runs_once_and_changes_no_bit(replays, request, dense, modules):
    model, chunk = make(dense)
    with Count() as spared:
        found = deviate(model, chunk, modules)
    request.getfixturevalue("runs_in_full")
    with Count() as full:
        expected = deviate(model, chunk, modules)
    assert order(found) == order(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.clean, other.clean)
        assert torch.equal(one.change, other.change)
        assert one.change.any()
    looks, probes, passes = 1, 2, len(SEEDS) * len(chunk)  # of noisy_parameters, and of the first batch both ways
    reached = {"head": 1, "block.2": 2, "body.1": 3}[modules[0]]
    assert full.convolutions == 4 * (looks + len(chunk) + passes)
    assert spared.convolutions == 4 * (looks + len(chunk) + probes / 2) + reached * (passes + probes / 2)


@pytest.mark.parametrize("dense", [False, True])
def test_confined_deviations_are_those_of_the_twin(replays, dense):
    model, chunk = make(dense, torch.float64)
    found = deviate(model, chunk, ["head"])
    names = ["head.weight", "head.bias"]
    pairs = twin_outputs(model, chunk, seeds=SEEDS, magnitude=0.01, output="identity", noisy=names)
    for step, (clean, noised) in enumerate(pairs):
        changes = torch.cat([deviation.change for deviation in found if deviation.step == step])
        torch.testing.assert_close(changes, noised - clean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("times", [(1.0, 0.0), (1.0, 1.0)])
def test_recordings_are_not_used_where_they_save_no_time(monkeypatch, times):
    asked = []

    def timed(run):
        asked.append(run)
        return torch.zeros(3, 3), times[len(asked) - 1]

    monkeypatch.setattr(perturb, "_timed", timed)
    model, chunk = make()
    with Count() as counter:
        deviate(model, chunk, ["head"])
    assert len(asked) == 2  # the first batch decides for all
    assert counter.convolutions == 4 * (1 + len(chunk) + len(SEEDS) * len(chunk))


def test_recordings_are_not_used_where_they_change_a_bit(monkeypatch):
    asked = []

    def timed(run):
        asked.append(run)
        return torch.full((3, 3), 1.0 + 2.0**-23 * (len(asked) % 2)), float(len(asked))

    monkeypatch.setattr(perturb, "_timed", timed)
    model, chunk = make()
    with Count() as counter:
        deviate(model, chunk, ["head"])
    assert len(asked) == 2
    assert counter.convolutions == 4 * (1 + len(chunk) + len(SEEDS) * len(chunk))


def test_whether_recordings_pay_is_asked_under_noise_that_is_taken_away_again(replays, monkeypatch):
    model, chunk = make()
    clean, asked = [parameter.detach().clone() for parameter in model.parameters()], []

    def timed(run):
        asked.append([torch.equal(one, other) for one, other in zip(model.parameters(), clean, strict=True)])
        return count(run)

    monkeypatch.setattr(perturb, "_timed", timed)
    deviate(model, chunk, ["head"])
    assert asked == [[not name.startswith("head") for name, _ in model.named_parameters()]] * 2
    assert all(map(torch.equal, model.parameters(), clean))


class Array(nn.Module):
    """Reads numbers of a clean layer past the operators: a replay would read memory that holds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        scale = float(h.abs().sum(1).flatten(1).sum(1).numpy().sum())
        return self.head(h).mean((2, 3)) * scale


def test_numbers_that_python_reads_past_the_operators_are_right(replays, request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Array().eval()
    chunk = make()[1]
    leftovers = [torch.full((size,), 7.0) for size in (1, 3, 4) for _ in range(100)]
    del leftovers  # memory that is not initialized has other numbers than the right ones
    found = deviate(model, chunk, ["head"])
    request.getfixturevalue("runs_in_full")
    expected = deviate(model, chunk, ["head"])
    assert order(found) == order(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.clean, other.clean)
        assert torch.equal(one.change, other.change)
        assert one.change.any()


def test_a_pass_is_timed_by_the_better_of_two(monkeypatch):
    ticks, ran = iter([10.0, 13.0, 20.0, 21.0]), []
    monkeypatch.setattr(perturb.time, "perf_counter", lambda: next(ticks))
    outputs, seconds = perturb._timed(lambda: ran.append(1) or torch.full((2,), float(len(ran))))
    assert seconds == 1
    assert outputs.tolist() == [2, 2]
    assert len(ran) == 2


def test_clean_outputs_that_are_known_are_not_computed_again():
    model, chunk = make()
    with torch.no_grad():
        known = [model(batch) for batch in chunk]
        backend = FiniteDifferences(model, list(model.parameters()), Noise(0.01))
        expected = list(backend.deviations(chunk, SEEDS))
        with Count() as counter:
            found = list(backend.deviations(chunk, SEEDS, known))
    assert counter.convolutions == 4 * len(SEEDS) * len(chunk)
    assert order(found) == order(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.clean is known[one.position]
        assert torch.equal(one.change, other.change)


def test_a_model_that_is_noisy_everywhere_is_not_timed(monkeypatch):
    monkeypatch.setattr(perturb, "_timed", lambda run: pytest.fail("nothing to compare"))
    model, chunk = make()
    with Count() as counter:
        deviate(model, chunk, None)
    assert counter.convolutions == 4 * (1 + len(chunk) + len(SEEDS) * len(chunk))


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


def test_held_bytes_count_the_recorded_results_as_well(replays):
    model, chunk = make()
    row = 3 * 4
    recorded = 4 * 6 * 5 * 4  # the sum that the head reads
    for held, groups in {4 * (row + recorded): [[0, 1], [2]], 4 * (row + recorded) + 1: [[0, 1, 2]]}.items():
        found = deviate(model, chunk, ["head"], held_bytes=held)
        assert order(found) == [(p, s) for group in groups for s in range(3) for p in group]


# ---------------------------------------------------------------- finite_differences: rough looks and compiling


def test_a_rough_look_is_the_clean_output():
    model, chunk = make(dtype=torch.float64)
    backend = FiniteDifferences(model, list(model.parameters()), Noise(0.01))
    with torch.no_grad():
        rough, clean = backend.rough(chunk[0]), model(chunk[0])
    torch.testing.assert_close(rough.double(), clean, rtol=0, atol=0.02 * float(clean.abs().max()))


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
