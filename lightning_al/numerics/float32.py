"""True single precision, whatever precision training has."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def true_float32(device: torch.device) -> Iterator[None]:
    """Disable autocast, TF32 and the choice of kernels by benchmark inside, and restore every flag afterwards.

    A finite difference subtracts two nearly equal numbers and loses their common digits: under bfloat16 autocast it
    would rank rounding errors. Kernels chosen by benchmark may round differently from one process to the next.
    """
    with ExitStack() as stack:
        for get, put, exact in _float32_settings():
            value = get()
            if value != exact:  # an inherited value must stay inherited, which setting it again would change
                stack.callback(put, value)
                put(exact)
        # a model may enter autocast itself; with the cache it would reuse casts of the clean weights
        stack.enter_context(torch.autocast(device.type, enabled=False, cache_enabled=False))
        yield


def _float32_settings() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """Return getter, setter and exact value of each setting that changes float32 results, parents first."""
    backends: Any = torch.backends
    trial = (partial(getattr, backends.cudnn, "benchmark"), partial(setattr, backends.cudnn, "benchmark"), False)
    if hasattr(backends.cudnn, "conv"):  # torch 2.9 and newer: the old switches may not even be read beside these
        owners = [backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul, backends.mkldnn.matmul]
        owners += [operators for backend in owners[1:3] for operators in (backend.conv, backend.rnn)]
        name = "fp32_precision"
        return [trial, *((partial(getattr, owner, name), partial(setattr, owner, name), "ieee") for owner in owners)]
    cudnn = (partial(getattr, backends.cudnn, "allow_tf32"), partial(setattr, backends.cudnn, "allow_tf32"), False)
    return [trial, (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"), cudnn]


def computes_in_low_precision(run: Callable[[], Any]) -> bool:
    """Return whether a call makes any tensor of less than single precision."""
    watch = _WatchPrecision()
    with watch:
        run()
    return watch.is_low


class _WatchPrecision(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_low: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.is_low |= any(isinstance(leaf, Tensor) and leaf.dtype in LOW_PRECISION for leaf in tree_leaves(result))
        return result


LOW_PRECISION = (torch.float16, torch.bfloat16)
