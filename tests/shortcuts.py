"""Work that a process with many trainers repeats, and that no test is about."""

import functools
import gc
import sys
from typing import Any


def take_shortcuts() -> None:
    """Look for plugins and for GPUs once, seed no GPU where there is none, and leave what is there to no collection.

    Each of them takes longer than to fit a toy model: 50 ms a Trainer, 250 ms a collection, milliseconds a seed.
    """
    _cache("lightning.fabric.utilities.registry", "entry_points")
    _cache("torch.cuda", "is_available", "device_count")
    torch: Any = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        torch.cuda.manual_seed_all = _ignore
    gc.collect()
    gc.freeze()


def _cache(module_name: str, *names: str) -> None:
    module = sys.modules.get(module_name)  # absent where tests are only distributed
    for name in names:
        function = getattr(module, name, None)
        if function is not None and not hasattr(function, "cache_info"):
            setattr(module, name, functools.cache(function))


def _ignore(seed: int) -> None:
    """Do nothing; torch would format the stack, to show it if there were a GPU after all."""
