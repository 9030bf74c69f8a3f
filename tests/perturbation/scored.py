"""Scores of a module in closed form, and how exact they are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_al.adapters import Predictor
from lightning_al.noise import Noise
from lightning_al.perturbation.closed_form import ClosedForm

EXACT = 1e-9  # relative


def closed_form(module: nn.Module, batch: Any, **options: Any) -> ClosedForm:
    """Return the closed form with all directions, unless the options of it or of the noise say otherwise."""
    own = {name: options.pop(name) for name in ("modules", "output", "directions", "seed") if name in options}
    with torch.no_grad():
        return ClosedForm(Predictor(module), batch, noise=Noise(**options), **{"directions": "all", **own})


def scores_of(module: nn.Module, batch: Any, **options: Any) -> Tensor:
    form = closed_form(module, batch, **options)
    with torch.no_grad():
        return form.scores(batch)


def parts_of(form: ClosedForm) -> dict[str, Sequence[str]]:
    """Return the names of the parameters that each kind of part counts."""
    names = {id(parameter): name for name, parameter in form._root.module.named_parameters()}
    found: dict[str, list[str]] = {}
    for part in form._parts:
        found.setdefault(type(part).__name__, []).extend(names[id(own)] for own in part.parameters.values())
    return {kind: sorted(own) for kind, own in found.items() if own}


def assert_exact(found: Tensor, expected: Tensor) -> None:
    assert (expected > 0).all()
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=0)
