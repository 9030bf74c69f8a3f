"""Scores of a module in closed form, how exact they are, and what they must leave alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_al.model.predictor import Predictor
from lightning_al.perturbation.closed_form import ClosedForm
from lightning_al.perturbation.noise import Noise
from tests.snapshot import module_picture

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


def flags() -> tuple[bool, ...]:
    return torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled, torch.is_grad_enabled()


def picture_of(model: nn.Module) -> dict[str, Any]:
    hooks = [{key: list(value) for key, value in vars(layer).items() if "_hooks" in key} for layer in model.modules()]
    embeddings = [
        (layer.padding_idx, layer.scale_grad_by_freq, layer.sparse)
        for layer in model.modules()
        if isinstance(layer, nn.Embedding)
    ]
    return {**module_picture(model), "all hooks": hooks, "embeddings": embeddings}
