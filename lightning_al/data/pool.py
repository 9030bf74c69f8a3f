"""The pool: which dataset index was labeled in which cycle, by which strategy and with which score."""

import hashlib
import operator
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_al.storage.pool_file import SCHEMA_VERSION, Labeling, check_schema_version, read_pool, write_pool
from lightning_al.storage.schema import DamagedFileError

IndexArray: TypeAlias = npt.NDArray[np.int64]


class Pool:
    """The labeled and the unlabeled part of a dataset, as dataset indices.

    Labeling number c (0 is the initial set) is what cycle c adds to its training data, so the position in
    `history` is the cycle. A sample takes 4 bytes, a labeled one 8 more and another 8 for its score.

    Args:
        size: Number of samples of the dataset, at least 1.
        fingerprint: Identifies the dataset; an empty string matches any.

    Raises:
        ValueError: If `size` is not positive.

    Example:
        >>> pool = Pool(size=6)
        >>> pool.label([4, 1], strategy="initial")
        >>> pool.label([0], strategy="EntropyAcquisition", scores=[0.7])
        >>> list(pool.labeled), list(pool.unlabeled), pool.cycle, pool.cycle_of(0)
        ([4, 1, 0], [2, 3, 5], 1, 1)

    """

    def __init__(self, size: int, fingerprint: str = "") -> None:
        if size < 1:
            raise ValueError(f"`Pool(size={size})`: a dataset of at least one sample is needed.")
        self.size = size
        self.fingerprint = fingerprint
        self._history: list[Labeling] = []
        # of NumPy: a tensor would be shared by the processes that a trainer spawns, and with it the labels of each
        self._cycle_of = np.full(size, -1, dtype=np.int32)  # -1: unlabeled

    def __repr__(self) -> str:
        return f"Pool({self.num_labeled} of {self.size} labeled, cycle {self.cycle})"

    @property
    def history(self) -> tuple[Labeling, ...]:
        """Every labeling so far; position c holds what cycle c added."""
        return tuple(self._history)

    @property
    def cycle(self) -> int:
        """The cycle that trains on everything labeled so far; 0 with the initial set."""
        return max(len(self._history) - 1, 0)

    @property
    def num_labeled(self) -> int:
        """How many samples are labeled."""
        return sum(map(len, self._history))

    @property
    def num_unlabeled(self) -> int:
        """How many samples are not labeled."""
        return self.size - self.num_labeled

    @property
    def labeled(self) -> "array[int]":
        """Labeled dataset indices in the order of labeling."""
        return self.labeled_by(self.cycle)

    @property
    def unlabeled(self) -> "array[int]":
        """Unlabeled dataset indices, ascending, as a compact sequence of plain integers (8 bytes each)."""
        return array("q", np.flatnonzero(self._cycle_of < 0).astype(np.int64).tobytes())

    def labeled_by(self, cycle: int) -> "array[int]":
        """Return the dataset indices that cycle `cycle` trained on, in the order of labeling."""
        indices = array("q")
        for labeling in self._history[: cycle + 1]:
            indices.extend(labeling.index_array)
        return indices

    def cycle_of(self, index: int) -> int | None:
        """Return the first cycle that trains on sample `index`, or None while it is unlabeled."""
        self._check_indices([operator.index(index)])
        cycle = int(self._cycle_of[index])
        return cycle if cycle >= 0 else None

    def label(
        self,
        indices: Iterable[int] | Tensor,
        *,
        strategy: str,
        scores: Sequence[float] | Tensor | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Move samples to the labeled part and begin the next cycle; an error leaves the pool unchanged.

        Args:
            indices: Distinct, unlabeled dataset indices, at least one.
            strategy: The name of the strategy that chose them.
            scores: One finite score per index, if there are any.
            seconds: Seconds that each step of the query took, by name.

        Raises:
            TypeError: If an index is not an integer.
            ValueError: If an index is out of range, repeated or labeled already, or the scores do not fit.

        """
        chosen = self._check_indices(indices)
        if not len(chosen):
            raise ValueError("`Pool.label(indices=[])`: at least one index is needed.")
        values, counts = np.unique(chosen, return_counts=True)
        if len(values) != len(chosen):
            duplicates = values[counts > 1]
            raise ValueError(f"`Pool.label`: every index once, but {_format_indices(duplicates)} came more than once.")
        already_labeled = chosen[self._cycle_of[chosen] >= 0]
        if len(already_labeled):
            cycles = [self.cycle_of(index) for index in already_labeled[:5].tolist()]
            raise ValueError(f"`Pool.label`: {_format_indices(already_labeled)} labeled already (in cycle {cycles}).")
        scores = scores.tolist() if isinstance(scores, Tensor) else scores
        numbers = None if scores is None else np.asarray(scores, dtype=np.float64)
        if numbers is not None and numbers.shape != chosen.shape:
            raise ValueError(f"`Pool.label`: one score per index, got {len(numbers)} for {len(chosen)} indices.")
        if numbers is not None and not np.isfinite(numbers).all():
            raise ValueError(
                "`Pool.label(scores=...)`: every score must be finite; not so for "
                f"{_format_indices(chosen[~np.isfinite(numbers)])}."
            )
        self._cycle_of[chosen] = len(self._history)
        self._history.append(
            Labeling(
                strategy,
                array("q", chosen.tobytes()),
                None if numbers is None else array("d", numbers.tobytes()),
                {name: float(duration) for name, duration in dict(seconds or {}).items()},
            )
        )

    def extends(self, other: "Pool") -> bool:
        """Return whether the history of `other` is the beginning of this one."""
        earlier = [labeling.index_array for labeling in other._history]
        begin = [labeling.index_array for labeling in self._history[: len(earlier)]]
        return self.size == other.size and earlier == begin

    def digest(self) -> str:
        """Return sixteen hexadecimal digits that identify the dataset and every labeling, in order."""
        digest = hashlib.sha256(f"{self.size} {self.fingerprint}".encode())
        for labeling in self._history:
            digest.update(labeling.index_array)
            digest.update(b"|")
        return digest.hexdigest()[:16]

    def check_dataset(self, size: int, fingerprint: str, source: str) -> None:
        """Raise if the pool belongs to another dataset.

        Args:
            size: Number of samples of the dataset.
            fingerprint: Fingerprint of the dataset.
            source: Origin of this pool, for the message.

        Raises:
            ValueError: If the sizes or the (non-empty) fingerprints differ.

        """
        if self.size != size:
            raise ValueError(
                f"{source} belongs to other data: it has {self.size} samples, this dataset has {size}. "
                "Pass the dataset it was made for, or another file."
            )
        if self.fingerprint and fingerprint and self.fingerprint != fingerprint:
            raise ValueError(
                f"{source} belongs to other data: its fingerprint is {self.fingerprint}, this dataset has "
                f"{fingerprint} (content and order of the samples count). Pass the dataset it was made for; if you "
                'know that the indices still mean the same samples, set "fingerprint" to "" in the file.'
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as integers, strings, lists and tensors, which Lightning restores with `weights_only`."""
        history = [
            {
                "strategy": labeling.strategy,
                "indices": _to_tensor(labeling.index_array),
                "scores": None if labeling.score_array is None else _to_tensor(labeling.score_array),
                "seconds": dict(labeling.seconds),
            }
            for labeling in self._history
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "size": self.size,
            "fingerprint": self.fingerprint,
            "history": history,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], source: str = "The pool's state") -> "Pool":
        """Rebuild a pool from `state_dict`.

        Args:
            state: The result of `state_dict`.
            source: Origin of the state, for messages.

        Returns:
            An equal pool; every index is checked again.

        Raises:
            ValueError: If the schema version is unknown, a key is missing or an index is invalid.

        """
        check_schema_version(state.get("schema_version"), source)
        try:
            pool = cls(state["size"], state["fingerprint"])
            for entry in state["history"]:
                pool.label(
                    entry["indices"], strategy=entry["strategy"], scores=entry["scores"], seconds=entry["seconds"]
                )
        except KeyError as error:
            raise ValueError(f"{source} lacks the key {error}: it was not written by `Pool.save`.") from error
        return pool

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pool as JSON, atomically: a crash leaves either the old file or the new one."""
        write_pool(path, self.size, self.fingerprint, self._history)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Pool":
        """Read a pool that `save` wrote.

        Args:
            path: The JSON file.

        Returns:
            The pool.

        Raises:
            FileNotFoundError: If there is no such file.
            DamagedFileError: If the file is not a pool, with its name, the field and the reason.

        """
        stored = read_pool(path)
        try:
            pool = cls(stored.size, stored.fingerprint)
            for labeling in stored.history:
                pool.label(
                    labeling.indices, strategy=labeling.strategy, scores=labeling.scores, seconds=labeling.seconds
                )
        except (TypeError, ValueError) as error:
            raise DamagedFileError(f"{os.fspath(path)} cannot be used: {error}") from error
        return pool

    def _check_indices(self, indices: Iterable[int] | Tensor) -> IndexArray:
        """Return indices as one array, after checks that each is an integer and in range."""
        if isinstance(indices, Tensor) or (isinstance(indices, np.ndarray) and indices.dtype.kind in "iu"):
            indices = indices.tolist()
        if not isinstance(indices, array):
            indices = list(indices)
            if not set(map(type, indices)) <= {int}:  # all at once, since there may be millions
                indices = [_as_index(index) for index in indices]
        try:
            numbers = np.array(indices, dtype=np.int64)
            outside: Sequence[int] | IndexArray = numbers[(numbers < 0) | (numbers >= self.size)]
        except OverflowError:
            outside = [index for index in indices if not 0 <= index < self.size]
        if len(outside):
            raise ValueError(
                f"`Pool`: {_format_indices(outside)} out of range; dataset indices run from 0 to {self.size - 1}."
            )
        return numbers


def _as_index(index: Any) -> int:
    try:
        # an older NumPy takes its booleans for integers
        if isinstance(index, (bool, np.bool_)) or getattr(index, "dtype", None) == torch.bool:
            raise TypeError
        return operator.index(index)
    except TypeError:
        raise TypeError(
            f"`Pool.label(indices=...)`: expected a flat sequence of integers, got {index!r} ({type(index).__name__})."
        ) from None


def _to_tensor(numbers: "array[int] | array[float]") -> Tensor:
    return torch.from_numpy(np.array(numbers))


def _format_indices(indices: Sequence[int] | IndexArray) -> str:
    first = ", ".join(map(str, indices[:5]))
    remainder = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return f"{'index' if len(indices) == 1 else 'indices'} {first}{remainder}"
