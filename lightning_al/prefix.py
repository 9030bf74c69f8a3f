"""The part of a forward pass that noise cannot reach runs once, and not once per perturbation.

With noise in the last stage only, or under a frozen backbone, most operators of a perturbed pass compute what the
clean pass has computed already. Nothing is known here of layers: the clean pass is watched operator by operator, and
what depends on a noisy parameter by any path is told from what does not. So it holds for residual branches, for skip
connections across the network and for attention alike.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Recall = Callable[[], Any]


class CleanPrefix:
    """What a clean pass computed before noise could reach it.

    Args:
        calls: For each operator of the pass, in order: the operator, and a function that returns its result without
            running it, or None if the noise reaches it.
        nbytes: How much memory the results hold.

    """

    def __init__(self, calls: list[tuple[Any, Recall | None]], nbytes: int) -> None:
        self._calls = calls
        self.nbytes = nbytes

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        """Run a perturbed pass, with every clean result taken from the recording.

        Args:
            forward: The same pass over the same batch.

        Returns:
            Its output, bit for bit; run in full if the pass takes another path than the recorded one.

        """
        try:
            with _Replay(self._calls):
                return forward()
        except _DivergedError:
            return forward()


def record_prefix(forward: Callable[[], Tensor], noisy: Sequence[Tensor]) -> tuple[Tensor, CleanPrefix | None]:
    """Run a clean pass, and record what noise will not reach.

    Args:
        forward: A deterministic pass over one batch; call under `torch.no_grad`.
        noisy: The parameters that will be perturbed.

    Returns:
        The output, and the recording, or None if no layer is out of the noise's reach.

    Cost: one forward pass; memory for those clean results that noisy operators read.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     output, prefix = record_prefix(lambda: net(torch.ones(5, 3)), [net[2].weight])
        ...     _ = net[2].weight.add_(1.0)
        ...     torch.equal(prefix.run(lambda: net(torch.ones(5, 3))), net(torch.ones(5, 3)))
        True

    """
    with _Record(noisy) as record:
        output = forward()
    return output, record.prefix()


class _DivergedError(Exception):
    """A perturbed pass ran another operator than the clean one."""


class _Record(TorchDispatchMode):
    """Follow the noise through the operators by the memory that they read and write, so that views are covered."""

    def __init__(self, noisy: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reached = {_memory(tensor) for tensor in noisy}
        self._read_by_noisy: set[int] = set()
        self._calls: list[tuple[Any, Any, bool]] = []  # operator, result, whether the noise reaches it
        self._maker: dict[int, int] = {}  # which call made a clean tensor
        self._needed: set[int] = set()  # the calls whose results noisy operators read
        self._spares_a_layer = False
        self._replayable = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((args, kwargs)))
        reached = any(_memory(tensor) in self._reached for tensor in inputs)
        written = {_memory(tensor) for tensor in _written(func, args, kwargs)}
        result = func(*args, **kwargs)
        if reached:
            # a clean tensor under a noisy pen would have to be restored before every pass
            self._replayable &= written <= self._reached
            self._needed.update(self._maker[id(tensor)] for tensor in inputs if id(tensor) in self._maker)
            self._read_by_noisy.update(map(_memory, inputs))
            self._reached.update(map(_memory, _tensors(result)))
        else:
            # what was read before it was written again would be recalled in its last state
            self._replayable &= not written & self._read_by_noisy
            self._spares_a_layer |= any(isinstance(tensor, nn.Parameter) for tensor in inputs)
            for tensor in _tensors(result):
                self._maker.setdefault(id(tensor), len(self._calls))  # an operator in place returns what is there
        self._calls.append((func, result, reached))  # which also keeps ids from being used again
        return result

    def prefix(self) -> CleanPrefix | None:
        """Return the recording without the results that no noisy operator reads."""
        if not (self._replayable and self._spares_a_layer):
            return None
        kept = [result for number, (_, result, _) in enumerate(self._calls) if number in self._needed]
        held = {_memory(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(kept)}
        calls = [
            (func, None if reached else _recall(result) if number in self._needed else _placeholder(result))
            for number, (func, result, reached) in enumerate(self._calls)
        ]
        return CleanPrefix(calls, sum(held.values()))


class _Replay(TorchDispatchMode):
    """Run the operators that the noise reaches, and recall the results of the others."""

    def __init__(self, calls: Iterable[tuple[Any, Recall | None]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = iter(calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = next(self._calls, None)
        if call is None or func is not call[0]:
            raise _DivergedError
        recall = call[1]
        return func(*args, **(kwargs or {})) if recall is None else recall()


def _recall(result: Any) -> Recall:
    # a fresh alias, since autograd has marked what it saw in the clean pass as views of their bases
    return lambda: tree_map_only(Tensor, Tensor.detach, result)


def _placeholder(result: Any) -> Recall:
    """Return a function that gives memory of the same layout, never read, so that the real one can be freed."""
    # strides included: Python code that asks for them must not take another path
    layout = tree_map_only(
        Tensor,
        lambda like: partial(torch.empty_strided, like.shape, like.stride(), dtype=like.dtype, device=like.device),
        result,
    )
    return lambda: tree_map_only(partial, _make, layout)


def _make(make: Callable[[], Tensor]) -> Tensor:
    return make()


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterable[Tensor]:
    """Find the arguments that an operator changes in place."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[position] if position < len(args) else kwargs.get(argument.name))
