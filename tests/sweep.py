"""Parameters of which `make test` takes a sample, and `make test-all` and the GitHub workflow take all."""

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], fast: Collection[Any] | Callable[[Any], bool]) -> list[Any]:
    """Mark as a sweep what is not in the sample.

    Args:
        cases: Parameters; a tuple is several arguments of the test.
        fast: Those to run always, or what says whether to.

    Returns:
        The cases, in their order.

    Raises:
        ValueError: If one of the sample is none of the cases.

    """
    cases = list(cases)
    if callable(fast):
        return [case if fast(case) else _swept(case) for case in cases]
    if missing := [case for case in fast if case not in cases]:
        raise ValueError(f"`sampled(fast=...)`: {missing} are none of the cases.")
    return [case if case in fast else _swept(case) for case in cases]


def _swept(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.sweep)


# of distributions, scopes and whether the magnitude is relative: each pair of values occurs at least once
NOISES = sampled(
    itertools.product(("gaussian", "uniform", "laplace"), ("global", "tensor"), (True, False)),
    [
        ("gaussian", "global", True),
        ("gaussian", "tensor", False),
        ("uniform", "global", False),
        ("uniform", "tensor", True),
        ("laplace", "global", True),
        ("laplace", "tensor", False),
    ],
)
