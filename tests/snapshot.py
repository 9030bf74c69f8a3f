"""Bit-exact pictures of a module and of the global random numbers, to be compared before and after."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def module_picture(module: nn.Module) -> dict[str, Any]:
    """Return everything about a module that scoring must leave alone; tensors as bytes, so that NaN equals NaN."""
    named = dict(module.named_parameters(remove_duplicate=False))
    return {
        "state": {name: picture(tensor) for name, tensor in module.state_dict(keep_vars=True).items()},
        "identity": {name: (id(parameter), parameter.data_ptr()) for name, parameter in named.items()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in named.items()},
        "grad": {name: None if p.grad is None else picture(p.grad) for name, p in named.items()},
        "training": {name: child.training for name, child in module.named_modules()},
        "hooks": {name: len(child._forward_hooks) for name, child in module.named_modules()},
        "attributes": {name: sorted(vars(child)) for name, child in module.named_modules()},
    }


def picture(tensor: Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().cpu().contiguous().flatten()
    return tensor.dtype, tensor.device, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes()


def random_picture() -> tuple[Any, ...]:
    """Return the states of Python's, NumPy's and torch's global generators."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, keys.tobytes(), tuple(rest), torch.get_rng_state().numpy().tobytes()
