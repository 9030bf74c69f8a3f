"""The weights that a cycle starts from."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from lightning.pytorch import LightningModule

from lightning_al.model.checkpoint import load_weights

Reset = Literal["scratch", "warm", "pretrained", "shrink_perturb"]


@dataclass(frozen=True)
class ResetPolicy:
    r"""How the weights of a fresh model are set before a cycle trains them.

    Args:
        reset: `"scratch"`: unchanged; `"warm"`: those of the cycle before; `"pretrained"`: those of a checkpoint;
            `"shrink_perturb"`: $\lambda \theta_{old} + \gamma \theta_{fresh}$.
        pretrained: The checkpoint of `"pretrained"`.
        shrink: lambda, in [0, 1].
        perturb: gamma, in [0, 1].

    Raises:
        ValueError: If an argument is out of range or the checkpoint is missing.

    References:
        Ash and Adams, On Warm-Starting Neural Network Training (2020), for shrink and perturb.

    """

    reset: Reset = "scratch"
    pretrained: str | os.PathLike[str] | None = None
    shrink: float = 0.5
    perturb: float = 0.1

    def __post_init__(self) -> None:
        if self.reset not in get_args(Reset):
            raise ValueError(f"`run_cycles(reset={self.reset!r})`: expected one of {get_args(Reset)}.")
        if (self.reset == "pretrained") != (self.pretrained is not None):
            raise ValueError(
                f"`run_cycles(reset={self.reset!r}, pretrained={self.pretrained!r})`: a checkpoint is needed for "
                "reset='pretrained', and for no other."
            )
        if self.pretrained is not None and not Path(self.pretrained).is_file():
            raise ValueError(f"`run_cycles(pretrained={os.fspath(self.pretrained)!r})`: there is no such file.")
        if not (0 <= self.shrink <= 1 and 0 <= self.perturb <= 1):
            raise ValueError(
                f"`run_cycles(shrink={self.shrink}, perturb={self.perturb})`: expected two factors in [0, 1]."
            )

    @property
    def needs_previous(self) -> bool:
        """Whether a cycle needs the weights of the one before."""
        return self.reset in ("warm", "shrink_perturb")

    def apply(self, model: LightningModule, previous: Path | None, *, trust_checkpoints: bool = False) -> None:
        """Set the weights of a fresh model.

        Args:
            model: The fresh model; changed in place.
            previous: The weights of the cycle before; None in the first cycle, which starts from scratch.
            trust_checkpoints: Load any Python object in `pretrained`, which can run any code.

        """
        if self.pretrained is not None:
            load_weights(model, self.pretrained, trusted=trust_checkpoints)
        if not self.needs_previous or previous is None:
            return
        fresh = [parameter.detach().clone() for parameter in model.parameters()]
        load_weights(model, previous)
        if self.reset == "shrink_perturb":
            with torch.no_grad():
                for parameter, start in zip(model.parameters(), fresh, strict=True):
                    parameter.mul_(self.shrink).add_(start, alpha=self.perturb)
