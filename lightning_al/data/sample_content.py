"""The content of a sample as bytes: nested containers, tensors of all layouts, arrays, pictures and plain objects."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_al.data.targets import entry_of, field_names

MAX_DEPTH = 16  # of nested containers and objects, which may hold each other


def hash_content(value: Any, content: bool = True) -> bytes:
    """Return a hash of a value; without `content` only of its types, names and shapes."""
    digest = hashlib.sha256()
    for chunk in _byte_chunks(value, content, MAX_DEPTH):
        digest.update(chunk)
    return digest.digest()


def _byte_chunks(value: Any, content: bool, depth: int) -> Iterator[bytes]:
    yield type(value).__name__.encode()
    if not depth:
        return
    if isinstance(value, Tensor):
        yield from _tensor_chunks(value, content)
    elif isinstance(value, (list, tuple)) or str(getattr(value, "dtype", "")) == "object":  # bytes: addresses
        for entry in value:
            yield from _byte_chunks(entry, content, depth - 1)
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # NumPy, PIL images
        array = np.asarray(value)
        yield f"{array.dtype}{array.shape}".encode()
        yield array.tobytes() if content else b""
    elif (names := field_names(value)) is not None:
        for name in names:
            yield str(name).encode()
            yield from _byte_chunks(entry_of(value, name), content, depth - 1)
    elif content:
        text = repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
        yield b"" if " at 0x" in text else text.encode()  # an address is another one in each process


def _tensor_chunks(tensor: Tensor, content: bool) -> Iterator[bytes]:
    if tensor.is_nested:
        for part in tensor.detach().unbind():
            yield from _tensor_chunks(part, content)
        return
    tensor = tensor.detach()
    if type(tensor) is not Tensor:  # never for a sparse one, which has no storage to share
        tensor = tensor.as_subclass(Tensor)
    yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    if not content:
        return
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    # a clone, since a tensor of one element counts as contiguous with any stride
    plain = tensor.cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    yield plain.view(-1).view(torch.uint8).numpy().tobytes()
