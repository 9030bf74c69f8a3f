"""Reports of queries and cycles to loggers and to the terminal."""

from lightning_al.tracking import wandb  # the import registers its tracker; import a new tracker here, too

__all__ = ["wandb"]
