"""Embeddings from a `.npy` file with one row per sample of the dataset, such as the features of a foundation model."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def open_embedding_file(path: str, size: int | None = None) -> NDArray[np.generic]:
    """Return the array of a file, mapped into memory, so that only the rows that are used are read.

    Args:
        path: A file that `numpy.save` wrote.
        size: Number of samples of the dataset; None does not check it.

    Returns:
        An array of shape (size, D).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no array of numbers with one row per sample.

    """
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"`embeddings={path!r}`: expected a file that `numpy.save` wrote; {error}") from error
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu" or size not in (None, len(array)):
        rows = "one row per sample" if size is None else f"{size} rows, one per sample of the dataset in its order,"
        raise ValueError(
            f"`embeddings={path!r}`: expected numbers of shape (N, D) with {rows} got {array.dtype} of shape "
            f"{array.shape}."
        )
    return array


def read_embeddings(path: str, indices: Sequence[int]) -> Tensor:
    """Return the rows (n, D) of some samples as float32."""
    rows = open_embedding_file(path)[np.asarray(indices, dtype=np.int64)]
    return torch.from_numpy(rows.astype(np.float32))
