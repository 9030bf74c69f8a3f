"""The noise that a pass adds to the weights: which parameters get it, and how much."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Distribution = Literal["gaussian", "uniform", "laplace"]
Scope = Literal["global", "tensor"]

# The variance of each distribution at unit scale.
VARIANCES: dict[Distribution, float] = {"gaussian": 1.0, "uniform": 1 / 3, "laplace": 2.0}


@dataclass(frozen=True)
class Noise:
    r"""Zero-mean i.i.d. noise for a list of parameters, scaled to a relative or absolute magnitude.

    A draw is $\xi_k D_k$ with $\xi_k = m \, \|\theta\| / \|D_k\|$ if `relative` (the norms taken over all parameters
    together, or over each one by itself), else $\xi_k = m$.

    Args:
        magnitude: m, positive; the paper uses 1e-3.
        relative: Scale to the norm of the parameters.
        distribution: `"gaussian"` (unit variance), `"uniform"` (-1, 1) or `"laplace"` (b = 1).
        scope: One factor for all parameters (`"global"`, the paper), or one per parameter tensor (`"tensor"`).

    Raises:
        ValueError: If an argument is out of range.

    References:
        Li et al., Deep Active Learning with Noise Stability, Eq. 1, section 5.1 and appendix A.5.1.

    """

    magnitude: float = 1e-3
    relative: bool = True
    distribution: Distribution = "gaussian"
    scope: Scope = "global"

    def __post_init__(self) -> None:
        if not 0 < self.magnitude < math.inf:
            raise ValueError(f"`Noise(magnitude={self.magnitude})`: must be positive; the paper uses 1e-3.")
        for name, allowed in (("distribution", Distribution), ("scope", Scope)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"`Noise({name}={getattr(self, name)!r})`: expected one of {get_args(allowed)}.")

    def draw(self, parameters: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Draw one step per parameter, on its device and in its precision.

        Args:
            parameters: The clean parameters.
            generator: Source of the noise, on the device of the parameters.

        Returns:
            Steps to add, with the shapes of the parameters.

        """
        directions = [self._direction(parameter, generator) for parameter in parameters]
        if not self.relative:
            factors = [torch.tensor(self.magnitude, dtype=torch.float64)] * len(directions)
        else:
            sizes, lengths = _norms(parameters), _norms(directions)
            if self.scope == "global":
                sizes, lengths = sizes.norm().expand_as(sizes), lengths.norm().expand_as(lengths)
            # a parameter of one element can draw a zero (in low precision often): then there is no direction to step in
            factors = list(torch.where(lengths > 0, self.magnitude * sizes / lengths, 0.0))
        return [direction.mul_(factor.to(direction)) for direction, factor in zip(directions, factors, strict=True)]

    def variances(self, parameters: Sequence[Tensor]) -> list[float]:
        r"""Return the variance of the noise on each element of each parameter.

        The elements of $\xi D$ are uncorrelated by symmetry, and each of the d has the same share of its squared norm:
        $m^2 \|\theta\|^2 / d$ if `relative`, over all parameters together or over each one, and else
        $m^2 \mathrm{Var}(D)$.

        Args:
            parameters: The clean parameters.

        Returns:
            One variance per parameter.

        """
        squared = self.magnitude**2
        if not self.relative:
            return [squared * VARIANCES[self.distribution]] * len(parameters)
        squares = (_norms(parameters) ** 2).tolist()
        counts = [parameter.numel() for parameter in parameters]
        if self.scope == "global":
            return [squared * sum(squares) / sum(counts)] * len(parameters)
        return [squared * square / count for square, count in zip(squares, counts, strict=True)]

    def _direction(self, parameter: Tensor, generator: torch.Generator) -> Tensor:
        # in the order of the dimensions, whatever the parameter's memory format
        direction = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        if self.distribution == "gaussian":
            return direction.normal_(generator=generator)
        if self.distribution == "uniform":
            return direction.uniform_(-1, 1, generator=generator)
        # the difference of two unit exponentials is Laplace with b = 1, without the logarithm of a zero
        subtrahend = torch.empty_like(direction).exponential_(generator=generator)
        return direction.exponential_(generator=generator).sub_(subtrahend)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    # in double precision: a sum of tens of millions of squares must not depend on its order
    return torch.stack([torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64) for tensor in tensors])


def noisy_parameters(
    module: nn.Module, run: Callable[[], Any], patterns: Sequence[str] | None = None
) -> list[nn.Parameter]:
    """Return the parameters that get noise: those that train and that `run` uses, each once.

    Unused ones (an auxiliary head, a second network) would only inflate the norm that scales the noise. They are
    detected by watching every operator of one forward pass.

    Args:
        module: The module that `run` calls.
        run: Runs one forward pass.
        patterns: Glob patterns of module names; a match includes all submodules, and a pattern also matches below any
            parent ("fc" matches "model.fc"). None includes every module.

    Returns:
        Parameters in the order of `module.named_parameters()`, tied ones once; buffers never.

    Raises:
        ValueError: If a pattern matches no module, or no parameter remains.

    """
    if patterns is not None:
        _check_patterns(module, patterns)
    # a tied parameter has several names, of which any may match
    named = module.named_parameters(remove_duplicate=False)
    matching = {id(parameter) for name, parameter in named if patterns is None or _matches(name, patterns)}
    trainable = [
        parameter
        for parameter in module.parameters()
        if parameter.requires_grad and parameter.numel() and id(parameter) in matching
    ]
    with torch.no_grad(), _RecordArguments() as record:
        run()
    used = [parameter for parameter in trainable if id(parameter) in record.argument_ids]
    if not used:
        raise ValueError(
            f"{type(module).__name__} has no parameter to perturb: {len(trainable)} of its parameters train"
            f"{'' if patterns is None else f' under modules={list(patterns)}'}, and the forward pass uses none of "
            "them. Unfreeze some, name other `modules`, or let `forward` go through the module's own parameters."
        )
    return used


class _RecordArguments(TorchDispatchMode):
    """Record the tensors that are passed to operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.argument_ids: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.argument_ids.update(id(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a module on the path to the named parameter (or module) matches a pattern."""
    parts = name.split(".")
    ancestors = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(
        fnmatchcase(ancestor, form)
        for ancestor in ancestors
        for pattern in patterns
        for form in (pattern, f"*.{pattern}")
    )


def _check_patterns(module: nn.Module, patterns: Sequence[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, form) for name in names for form in (pattern, f"*.{pattern}")):
            raise ValueError(
                f"`modules={list(patterns)}`: {pattern!r} matches no module of {type(module).__name__}; it has "
                f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
            )
