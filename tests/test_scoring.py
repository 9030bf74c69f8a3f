import re
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from lightning_al.loaders import PoolBatch
from lightning_al.scoring import Budget, chunked, match_precision, measure_pool, to_module

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("module_type", "given", "expected"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float32, torch.int64, torch.int64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.bfloat16, torch.float64),
        (torch.float64, torch.uint8, torch.uint8),
        (torch.float64, torch.bool, torch.bool),
    ],
)
def test_inputs_are_cast_to_what_the_module_computes_in(module_type, given, expected):
    module = nn.Linear(1, 1).to(module_type)
    batch = {"x": [torch.ones(2, dtype=given)], "name": "kept", "count": 3}
    for cast in (match_precision, to_module):
        found = cast(batch, module)
        assert found["x"][0].dtype == expected
        assert (found["name"], found["count"]) == ("kept", 3)
    assert batch["x"][0].dtype == given


def kilobyte(count: int = 1) -> Tensor:
    return torch.zeros(256 * count)


@dataclass
class Sample:
    x: Tensor
    y: Tensor


class Opaque:
    def __init__(self) -> None:
        self.x = kilobyte(100)


@pytest.mark.parametrize(
    ("batches", "lengths"),
    [
        ([kilobyte() for _ in range(7)], [3, 3, 1]),
        ([kilobyte(3), kilobyte(), kilobyte(5), kilobyte(1), kilobyte(2)], [1, 1, 1, 2]),  # too large goes alone
        ([(kilobyte(), [kilobyte()]) for _ in range(3)], [1, 1, 1]),
        ([PoolBatch([0], {"x": kilobyte()}) for _ in range(4)], [3, 1]),
        ([BatchEncoding({"input_ids": kilobyte()}) for _ in range(4)], [3, 1]),  # no dict, so no pytree
        ([PoolBatch([0], BatchEncoding({"x": kilobyte()})) for _ in range(4)], [3, 1]),
        ([UserDict(x=kilobyte()) for _ in range(4)], [3, 1]),
        ([Sample(kilobyte(), kilobyte()) for _ in range(3)], [1, 1, 1]),
        ([Opaque(), Opaque(), Opaque()], [1, 1, 1]),  # of unknown size
        ([], []),
    ],
)
def test_chunks_hold_at_most_so_many_bytes_of_any_container(batches, lengths):
    chunks = list(chunked(iter(batches), Budget(3 * 1024)))
    assert [len(chunk) for chunk in chunks] == lengths
    assert all(given is found for given, found in zip(batches, (b for chunk in chunks for b in chunk), strict=True))


def test_chunks_read_no_further_than_they_must():
    read = []

    def batches():
        for number in range(9):
            read.append(number)
            yield kilobyte()

    next(chunked(batches(), Budget(2 * 1024)))
    assert read == [0, 1, 2]


# ---------------------------------------------------------------- measure_pool


def pool_batches(*sizes: int) -> list[PoolBatch]:
    batches, start = [], 0
    for size in sizes:
        ids = list(range(start, start + size))
        batches.append(PoolBatch(ids, torch.tensor(ids, dtype=torch.float32)))
        start += size
    return batches


def test_measure_pool_returns_rows_with_their_indices_in_chunks():
    chunks, advanced = [], []

    def measure(chunk: list[Tensor]) -> Tensor:
        chunks.append([len(batch) for batch in chunk])
        x = torch.cat(chunk)
        return torch.stack([x, x.square()], 1)

    batches = pool_batches(2, 2, 3, 1)
    indices, rows = measure_pool(
        measure, batches, lambda batch: batch.double(), chunk_bytes=2 * 8 * 2, advance=advanced.append
    )
    assert chunks == [[2, 2], [3, 1]]
    assert advanced == [4, 4]
    assert indices == list(range(8))
    assert rows.dtype == torch.float64
    assert rows.tolist() == [[float(i), float(i * i)] for i in range(8)]


def test_measure_pool_of_nothing_is_empty():
    indices, rows = measure_pool(lambda chunk: torch.cat(chunk), [], lambda batch: batch)
    assert indices == []
    assert rows.shape == (0,)


def test_measure_pool_keeps_no_graph():
    weight = torch.ones(1, requires_grad=True)
    _, rows = measure_pool(lambda chunk: torch.cat(chunk) * weight, pool_batches(3), lambda batch: batch)
    assert not rows.requires_grad


@pytest.mark.parametrize(
    ("measure", "shape"),
    [
        (lambda chunk: torch.cat(chunk).repeat(2), "(10,) for 5"),
        (lambda chunk: torch.cat(chunk)[:1], "(1,) for 5"),
        (lambda chunk: torch.cat(chunk).sum(), "() for 5"),
        (lambda chunk: torch.cat(chunk)[None], "(1, 5) for 5"),
    ],
)
def test_measure_pool_refuses_another_number_of_rows(measure, shape):
    message = re.escape(f"Expected one row per sample, got {shape} samples") + ".*Three ways out: .1. define"
    with pytest.raises(ValueError, match=message):
        measure_pool(measure, pool_batches(3, 2), lambda batch: batch)
