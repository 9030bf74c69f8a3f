import itertools
import random

import numpy as np
import pytest
import torch

from lightning_al.numerics.seeding import derive_seed, make_generator, preserved_rng, seeded


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.randn(3).tolist()


def rng_states():
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tolist(), rest), torch.get_rng_state().tolist()


@pytest.mark.parametrize(
    ("entropy", "expected"),
    [
        ((), 7896617691693857887),
        ((0,), 3717377837946358015),
        ((0, 1), 6597276115184917555),
        ((42, 3, 7), 7854937460534847651),
        ((-1,), 8747108213191874899),
    ],
)
def test_a_seed_never_changes_between_versions(entropy, expected):
    assert derive_seed(*entropy) == expected


def test_no_two_seeds_on_a_grid_are_the_same():
    numbers = [-2, -1, 0, 1, 2, 3, 10, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63]
    grid = [entropy for length in range(4) for entropy in itertools.product(numbers, repeat=length)]
    grid += list(itertools.product(range(11, 60), range(11, 60), range(3)))
    seeds = {derive_seed(*entropy) for entropy in grid}
    assert len(seeds) == len(grid)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert {type(seed) for seed in seeds} == {int}


def test_the_first_numbers_of_neighboring_generators_are_uncorrelated():
    rows = torch.stack([torch.randn(64, generator=make_generator(seed, 0)) for seed in range(64)])
    assert (torch.corrcoef(rows) - torch.eye(64)).abs().max() < 0.6  # 5 standard deviations of 1/8


@pytest.mark.parametrize("entropy", [(1, 2), (0, 1, 2), (7, 0)])
def test_the_order_and_the_number_of_integers_matter(entropy):
    assert derive_seed(*entropy) != derive_seed(*reversed(entropy))
    assert derive_seed(*entropy) != derive_seed(*entropy, 0)
    assert derive_seed(*entropy) != derive_seed(0, *entropy)


def test_a_generator_repeats_itself_and_leaves_the_global_one_alone():
    before = rng_states()
    first, second, other = (torch.randperm(50, generator=make_generator(*s)).tolist() for s in ((3, 1), (3, 1), (3, 2)))
    assert first == second != other
    assert make_generator(3, 1).initial_seed() == derive_seed(3, 1)
    assert make_generator(3, 1, device="cpu").device == torch.device("cpu")
    assert rng_states() == before


def test_seeded_restores_every_state_bit_for_bit():
    random.gauss(0, 1), np.random.randn()  # both keep a second normal number for later
    before = rng_states()
    with seeded(5, 2):
        inside = draw()
        assert rng_states() != before
    assert rng_states() == before
    with seeded(5, 2):
        assert draw() == inside
    with seeded(5, 3):
        assert all(a != b for a, b in zip(draw(), inside, strict=True))
    assert rng_states() == before


@pytest.mark.parametrize("context", [preserved_rng, lambda: seeded(1), lambda: seeded(1, 2, 3)])
def test_an_exception_does_not_leave_the_random_numbers_changed(context):
    def draw_and_fail():
        with context():
            draw()
            raise RuntimeError("from inside")

    before = rng_states()
    with pytest.raises(RuntimeError, match="from inside"):
        draw_and_fail()
    assert rng_states() == before


def test_seeded_contexts_nest():
    with seeded(1):
        outer = draw()
    with seeded(1):
        with seeded(2):
            draw()
        assert draw() == outer
