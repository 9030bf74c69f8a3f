"""The command line, `lightning-al`: thin commands over the rest of the package."""

from lightning_al.cli.entry_point import main
from lightning_al.cli.fit import ActiveLearningCLI

__all__ = ["ActiveLearningCLI", "main"]
