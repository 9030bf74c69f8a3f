"""Seeds derived from (purpose, seed, cycle, ...), so that every random draw is a pure function of them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng


class RandomStream(IntEnum):
    """The purpose of a random draw, so that no two purposes share their random numbers.

    The numbers go into every seed, so they must not change; 8 was that of a purpose that no longer exists.
    """

    SETUP = 1
    INITIAL = 2
    CANDIDATES = 3
    TRAINING = 4
    SCORING = 5
    SELECTION = 6
    NOISE = 7
    DROPOUT = 9
    CLUSTERS = 10
    SUBSAMPLING = 11
    TRACKING = 12
    IDENTITY = 13


def derive_seed(*entropy: int) -> int:
    """Mix integers into one 63-bit seed.

    Sums or products of seeds collide ((1, 2) and (2, 1)); NumPy's `SeedSequence` was made to mix them well and
    its output is guaranteed not to change between versions. It pads with zeros and splits large integers, so that
    (1,) and (1, 0) would be one to it; their number and two words for each keep them apart.

    Args:
        *entropy: Integers of any sign, such as `(RandomStream.NOISE, seed, cycle, pass)`.

    Returns:
        An integer in [0, 2^63).

    Example:
        >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
        (True, False)

    """
    halves = [half for number in entropy for half in divmod(number % 2**64, 2**32)]
    words = np.random.SeedSequence([len(entropy), *halves]).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def make_generator(*entropy: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded from integers; a bare `torch.Generator()` would always start from the same state.

    Args:
        *entropy: Integers such as `(seed, cycle)`.
        device: The device of the generator; CPU and CUDA give different numbers for the same seed.

    Returns:
        A seeded `torch.Generator` on `device`.

    Example:
        >>> torch.equal(
        ...     torch.rand(2, generator=make_generator(0, 1)), torch.rand(2, generator=make_generator(0, 1))
        ... )
        True

    """
    return torch.Generator(device=device).manual_seed(derive_seed(*entropy))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the global random numbers of Python, NumPy and torch afterwards, also after an exception."""
    isolation = isolate_rng()
    isolation.__enter__()
    try:
        yield
    finally:
        isolation.__exit__(None, None, None)  # with an exception as argument it would restore nothing


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed the global random numbers inside, and restore the caller's afterwards.

    Args:
        *entropy: Integers such as `(seed, cycle)`.

    """
    with preserved_rng():
        seed = derive_seed(*entropy) % 2**32  # NumPy takes no more than 32 bits
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
