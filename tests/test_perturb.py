import math

import pytest
import torch
from torch import Tensor, nn

from lightning_al.noise import Noise
from lightning_al.perturb import FiniteDifferences, perturbed
from lightning_al.seeding import make_generator


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
