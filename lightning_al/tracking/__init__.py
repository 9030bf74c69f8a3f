"""What a query and a cycle report to loggers and to a person."""

from lightning_al.tracking import wandb  # which registers its tracker: a new tracker is a file, and a name here

__all__ = ["wandb"]
