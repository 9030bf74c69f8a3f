"""The part of a forward pass that noise cannot reach runs once, and not once per perturbation.

With noise in the last stage only, or under a frozen backbone, most operators of a perturbed pass compute what the
clean pass has computed already. Nothing is known here of layers: the clean pass is watched operator by operator, and
what depends on a noisy parameter by any path is told from what does not. So it holds for residual branches, for skip
connections across the network and for attention alike.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Recall = Callable[[], Any]

FROM_PYTHON = torch.ops.aten.lift_fresh.default  # how a tensor of Python's numbers comes in


class Call(NamedTuple):
    """One operator of a clean pass.

    Attributes:
        func: The operator.
        settings: Its arguments other than tensors.
        recall: Returns its result without running it; None if the noise reaches it.

    """

    func: Any
    settings: list[Any]
    recall: Recall | None


class CleanPrefix:
    """What a clean pass computed before noise could reach it.

    Args:
        calls: The operators of the pass, in order.
        nbytes: How much memory the results hold.

    """

    def __init__(self, calls: list[Call], nbytes: int) -> None:
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
        The output, and the recording, or None if no layer is out of the noise's reach, the noise does not reach the
        output, or what happens cannot be told from the operators.

    Cost: one forward pass, in which every clean result is held; afterwards those that noisy operators read.

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
    return output, record.prefix(output)


class _DivergedError(Exception):
    """A perturbed pass ran another operator than the clean one."""


class _Record(TorchDispatchMode):
    """Follow the noise through the operators by the memory that they read and write, so that views are covered."""

    def __init__(self, noisy: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reached = {_memory(tensor) for tensor in noisy}
        self._made: set[int] = set()  # the memory of clean results
        self._read_by_noisy: set[int] = set()
        self._calls: list[tuple[Any, list[Any], Any, bool]] = []  # operator, settings, clean result, reached
        self._maker: dict[int, int] = {}  # which call made a clean tensor
        self._needed: set[int] = set()  # the calls whose results noisy operators read
        self._spares_a_layer = False
        self._replayable = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((args, kwargs)))
        self._replayable &= all(map(_is_plain, inputs))
        if not self._replayable:
            return func(*args, **kwargs)
        reached = any(_memory(tensor) in self._reached for tensor in inputs)
        written = {_memory(tensor) for tensor in _written(func, args, kwargs)}
        result = func(*args, **kwargs)
        if not all(map(_is_plain, _tensors(result))):
            self._replayable = False
            return result
        if reached:
            # a clean tensor under a noisy pen would have to be restored before every pass
            self._replayable &= written <= self._reached
            self._needed.update(self._maker[id(tensor)] for tensor in inputs if id(tensor) in self._maker)
            self._read_by_noisy.update(map(_memory, inputs))
            self._reached.update(map(_memory, _tensors(result)))
        else:
            # what was read before it was written again would be recalled in its last state, and what was there before
            # the pass (a cache, the batch) would keep that of another batch
            self._replayable &= written <= self._made - self._read_by_noisy
            made = set(map(_memory, _tensors(result))) - set(map(_memory, inputs))
            self._made |= made
            # a noisy tensor that is gone may have lain there
            self._reached -= made
            self._read_by_noisy -= made
            self._spares_a_layer |= any(isinstance(tensor, nn.Parameter) for tensor in inputs)
            for tensor in _tensors(result):
                self._maker.setdefault(id(tensor), len(self._calls))  # an operator in place returns what is there
            # Python may read lengths and masks past the operators
            if func is FROM_PYTHON or not any(tensor.is_floating_point() for tensor in _tensors(result)):
                self._needed.add(len(self._calls))
        # clean results are held, so that their ids are not used again
        self._calls.append((func, _settings(args, kwargs), None if reached else result, reached))
        return result

    def prefix(self, output: Tensor) -> CleanPrefix | None:
        """Return the recording without the results that neither a noisy operator nor Python reads."""
        if not (self._replayable and self._spares_a_layer) or _memory(output) not in self._reached:
            return None
        kept = [result for number, (_, _, result, _) in enumerate(self._calls) if number in self._needed]
        held = {_memory(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(kept)}
        calls = [
            Call(func, settings, None if reached else (_recall if number in self._needed else _placeholder)(result))
            for number, (func, settings, result, reached) in enumerate(self._calls)
        ]
        return CleanPrefix(calls, sum(held.values()))


class _Replay(TorchDispatchMode):
    """Run the operators that the noise reaches, and recall the results of the others."""

    def __init__(self, calls: Iterable[Call]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = iter(calls)
        self._latest: Any = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = next(self._calls, None)
        if call is None or func is not call.func:
            raise _DivergedError
        if call.recall is None:
            return func(*args, **kwargs)
        result = call.recall()
        # Python may have computed with a noisy number what goes into a clean operator
        if _settings(args, kwargs) != call.settings or (func is FROM_PYTHON and not torch.equal(args[0], result)):
            raise _DivergedError
        self._latest = result  # torch detaches a new tensor that is held elsewhere, as it was while recording
        return result


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


def _settings(args: Any, kwargs: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves((args, kwargs)) if not isinstance(leaf, (Tensor, torch.Generator))]


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is nothing but strided memory."""
    special = tensor.is_nested or tensor.is_quantized or tensor.is_conj() or tensor.is_neg()
    return tensor.layout is torch.strided and not special


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterable[Tensor]:
    """Find the arguments that an operator changes in place."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[position] if position < len(args) else kwargs.get(argument.name))
