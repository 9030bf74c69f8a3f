"""Work that a process with many trainers repeats, and that no test is about."""

import functools
import gc
import sys


def take_shortcuts() -> None:
    """Look at the installed packages once and not for every Trainer, and leave what is imported to no collection.

    Each of the two takes longer than to fit a toy model: 50 ms a Trainer, 250 ms a collection.
    """
    registry = sys.modules.get("lightning.fabric.utilities.registry")  # where tests are only distributed there is none
    if registry is not None and not hasattr(registry.entry_points, "cache_info"):
        registry.entry_points = functools.cache(registry.entry_points)
    gc.collect()
    gc.freeze()
