"""True single precision, whatever the user allowed for training."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Leave autocast and switch TF32 off inside, and restore every flag.

    A finite difference subtracts two nearly equal numbers, so it keeps only the digits that the precision has to
    spare: under bfloat16 autocast it would rank rounding errors.
    """
    with ExitStack() as stack:
        for get, put, exact in _float32_settings():
            value = get()
            if value != exact:  # an inherited value must not become one of the switch's own when it is restored
                stack.callback(put, value)
                put(exact)
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _float32_settings() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """List how to read and write what lets float32 work run in less, parents first, each with its exact value."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):  # torch 2.9 and newer: the old switches may not even be read beside these
        owners = [backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul, backends.mkldnn.matmul]
        owners += [operators for backend in owners[1:3] for operators in (backend.conv, backend.rnn)]
        name = "fp32_precision"
        return [(partial(getattr, owner, name), partial(setattr, owner, name), "ieee") for owner in owners]
    cudnn = (partial(getattr, backends.cudnn, "allow_tf32"), partial(setattr, backends.cudnn, "allow_tf32"), False)
    return [(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"), cudnn]
