import logging
import math
import re
import weakref
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch.utilities.data
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import WarningCache
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import BatchEncoding

from lightning_al.data.dataloaders import PoolBatch
from lightning_al.functional import noise_stability
from lightning_al.model.features import Features
from lightning_al.model.predictor import Predictor
from lightning_al.perturbation.deviations import deviation_sizes
from lightning_al.perturbation.finite_differences import FiniteDifferences
from lightning_al.perturbation.noise import Noise
from lightning_al.scoring.measure import measure_pool
from lightning_al.scoring.memory import MemoryLimit, chunked, is_out_of_memory, within_memory
from lightning_al.scoring.transfer import match_precision, to_module

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


class Tagged(Tensor):
    """As MONAI's MetaTensor: a tag per sample, which tensors of other samples must not get."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.cat and any(isinstance(part, cls) for part in args[0]):
            raise ValueError("tags cannot be joined")
        result = super().__torch_function__(func, types, args, kwargs)
        tags = [value.tags for value in args if isinstance(value, cls) and hasattr(value, "tags")]
        if tags and isinstance(result, cls):
            result.tags = tags[0]
        return result


def tagged(values: Tensor) -> Tagged:
    result = values.as_subclass(Tagged)
    result.tags = ["scan"] * len(values)
    return result


def test_measurements_and_outputs_of_tensor_subclasses_are_plain():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    plain = [PoolBatch([2 * number, 2 * number + 1], torch.rand(2, 3)) for number in range(3)]
    batches = [PoolBatch(indices, tagged(values)) for indices, values in plain]
    predictor = Predictor(net)
    assert type(predictor(batches[0].batch)) is Tensor
    assert [type(part) for part in Features(predictor, batches[0].batch)(batches[1].batch)] == [Tensor, Tensor]
    indices, rows = measure_pool(lambda chunk: chunk[0], batches, lambda batch: batch, chunk_bytes=1)
    assert (indices, type(rows), len(rows)) == (list(range(6)), Tensor, 6)
    for options in ({}, {"passes": "inf"}):
        scores = noise_stability(net, batches, **options)
        assert type(scores) is Tensor
        torch.testing.assert_close(scores, noise_stability(net, plain, **options), rtol=1e-4, atol=0)


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
    chunks = list(chunked(iter(batches), MemoryLimit(3 * 1024)))
    assert [len(chunk) for chunk in chunks] == lengths
    assert all(given is found for given, found in zip(batches, (b for chunk in chunks for b in chunk), strict=True))


def test_chunks_read_no_further_than_they_must():
    read = []

    def batches():
        for number in range(9):
            read.append(number)
            yield kilobyte()

    next(chunked(batches(), MemoryLimit(2 * 1024)))
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


# ---------------------------------------------------------------- within_memory


class Device:
    """A measure of one row per sample that runs out of memory where there are too many of them."""

    def __init__(self, limit: int, size: Callable[[Any], int] = len, row: Callable[[Any], Tensor] = torch.Tensor.clone):
        self.limit, self.size, self.row = limit, size, row
        self.tried: list[list[int]] = []
        self.done: list[list[int]] = []

    def __call__(self, chunk: list[Any]) -> Tensor:
        sizes = [self.size(batch) for batch in chunk]
        self.tried.append(sizes)
        if sum(sizes) > self.limit:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory: {sum(sizes)} samples.\nSee the documentation.")
        self.done.append(sizes)
        return torch.cat([self.row(batch) for batch in chunk])


def ranges(*sizes: int) -> list[Tensor]:
    return list(torch.arange(float(sum(sizes))).split(sizes))


@pytest.mark.parametrize(
    ("limit", "sizes", "tried", "done", "left"),
    [
        (99, (4, 4, 4, 4), [[4, 4, 4, 4]], [[4, 4, 4, 4]], 4096),
        (8, (4, 4, 4, 4), [[4, 4, 4, 4], [4, 4], [4, 4]], [[4, 4], [4, 4]], 2048),
        (4, (4, 4, 4), [[4, 4, 4], [4], [4, 4], [4], [4]], [[4], [4], [4]], 1024),
        (3, (4, 2), [[4, 2], [4], [2], [2], [2]], [[2], [2], [2]], 1024),  # chunks first, then a batch
        (1, (8,), [[8], [4], [2], *[[1]] * 8], [[1]] * 8, 512),
        (1, (1, 1), [[1, 1], [1], [1]], [[1], [1]], 2048),
    ],
)
def test_what_is_too_much_for_the_memory_is_measured_in_halves(limit, sizes, tried, done, left):
    device, budget, chunk = Device(limit), MemoryLimit(4096), ranges(*sizes)
    rows = within_memory(device, chunk, budget)
    assert rows.tolist() == list(range(sum(sizes)))  # in order
    assert device.tried == tried
    assert device.done == done
    assert budget.nbytes == left
    assert [len(batch) for batch in chunk] == list(sizes)  # the caller's chunk stays whole


@pytest.mark.parametrize("chunk", [ranges(1), ranges(3), ranges(4, 4), [torch.zeros(1, 5)]])
def test_a_single_sample_that_is_too_much_is_an_error(chunk):
    device = Device(0)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"CUDA out of memory: 1 samples"):
        within_memory(device, chunk, MemoryLimit())
    assert device.tried[-1] == [1]
    assert not device.done


@pytest.mark.parametrize("batch", [torch.tensor(3.0), {"number": torch.tensor(3)}])
def test_a_batch_that_counts_as_one_sample_is_not_split(batch):
    budget = MemoryLimit(4096)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="7 samples"):
        within_memory(Device(1, size=lambda batch: 7), [batch], budget)
    assert budget.nbytes == 4096


@pytest.mark.parametrize("batch", ["a text", ["one", "two"], Opaque(), {"number": 3}])
def test_samples_that_no_tensor_tells_the_number_of_cannot_be_split(batch):
    budget = MemoryLimit(4096)
    with pytest.raises(MisconfigurationException, match="could not infer the batch_size") as caught:
        within_memory(Device(1, size=lambda batch: 7), [batch], budget)
    assert isinstance(caught.value.__context__, torch.cuda.OutOfMemoryError)
    assert budget.nbytes == 4096


def test_sizes_that_are_given_are_not_asked_of_the_tensors():
    device = Device(2, size=lambda batch: len(batch["x"]), row=lambda batch: batch["x"])
    batches = [{"scale": torch.ones(3), "x": torch.arange(4.0)}, {"scale": torch.ones(3), "x": torch.arange(4.0, 5.0)}]
    rows = within_memory(device, batches, MemoryLimit(), [4, 1])
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert device.done == [[2], [2], [1]]


def test_the_pool_counts_samples_by_their_indices():
    x, mask, seen = torch.arange(32.0).reshape(8, 4), torch.ones(4), []

    def measure(chunk: list[Any]) -> Tensor:
        seen.append([(len(batch["x"]), len(batch["mask"])) for batch in chunk])
        if sum(len(batch["x"]) for batch in chunk) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return torch.cat([(batch["x"] * batch["mask"]).sum(1) for batch in chunk])

    batches = [PoolBatch(list(range(8)), {"mask": mask, "x": x})]
    indices, rows = measure_pool(measure, batches, lambda batch: batch)
    assert indices == list(range(8))
    assert torch.equal(rows, x.sum(1))
    # every part is taken out of the whole batch, or the part of four samples would take the mask for one of its tensors
    assert seen == [[(8, 4)], [(4, 4)], *[[(2, 4)]] * 4]


def test_a_batch_that_was_too_much_is_not_tried_again(caplog):
    device = Device(2)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        rows = [within_memory(device, [batch], budget) for budget in [MemoryLimit()] for batch in ranges(4, 4, 4)]
    assert torch.cat(rows).tolist() == list(range(12))
    assert device.tried == [[4], *[[2]] * 6]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Expected canUse32BitIndexMath(input) to be true: must fit into 32-bit index math"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    ],
)
def test_other_ways_of_saying_that_it_is_too_much_count_as_well(error):
    def measure(chunk: list[Tensor]) -> Tensor:
        if len(chunk[0]) > 1:
            raise error
        return chunk[0]

    assert within_memory(measure, ranges(2), MemoryLimit()).tolist() == [0, 1]


@pytest.mark.parametrize("samples", [math.inf, 1])
def test_another_error_is_no_lack_of_memory(samples):
    def measure(chunk: list[Tensor]) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        within_memory(measure, ranges(2), MemoryLimit(samples=samples))


def test_a_chunk_is_read_back_before_the_next_one_is_queued():
    order = []

    class Row(Tensor):
        def cpu(self):
            order.append("read")
            return super().cpu()

    def measure(chunk: list[Any]) -> Tensor:
        order.append("measure")
        return torch.cat(chunk).as_subclass(Row)

    measure_pool(measure, pool_batches(1, 1, 1), lambda batch: batch, chunk_bytes=1)
    assert order[:5] == ["measure", "read", "measure", "read", "measure"]


def test_a_lack_of_memory_without_a_word_is_one_all_the_same(caplog):
    def measure(chunk: list[Tensor]) -> Tensor:
        if len(chunk[0]) > 1:
            raise torch.cuda.OutOfMemoryError
        return chunk[0]

    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        assert within_memory(measure, ranges(2), MemoryLimit()).tolist() == [0, 1]
    assert "Scoring goes on with half as many samples at a time; nothing is lost." in caplog.text


def check_split(wrap: Callable[[Tensor], Any], unwrap: Callable[[Any], Tensor], *sizes: list[int]) -> None:
    device = Device(2, size=lambda batch: len(unwrap(batch)), row=unwrap)
    rows = within_memory(device, [wrap(x) for x in ranges(4, 2)], MemoryLimit(), *sizes)
    assert rows.tolist() == list(range(6))
    assert device.done == [[2], [2], [2]]


TELLING = [
    (lambda x: (x, -x), lambda batch: batch[0]),
    (lambda x: BatchEncoding({"input_ids": x}), lambda batch: batch["input_ids"]),
    (lambda x: UserDict(x=x), lambda batch: batch["x"]),
    (lambda x: Sample(x, -x), lambda batch: batch.x),
]
AMBIGUOUS = [
    (lambda x: {"x": x, "name": "kept", "count": 3}, lambda batch: batch["x"]),
    (lambda x: {"x": x, "scale": torch.ones(5)}, lambda batch: batch["x"]),
    (lambda x: [{"scale": torch.tensor(1.0), "x": x}], lambda batch: batch[0]["x"] * batch[0]["scale"]),
]


@pytest.mark.parametrize(("wrap", "unwrap"), [*TELLING, *AMBIGUOUS])
def test_batches_of_every_form_are_split(wrap, unwrap):
    check_split(wrap, unwrap, [4, 2])


@pytest.mark.parametrize(("wrap", "unwrap"), TELLING)
def test_batches_whose_tensors_tell_their_size_are_split_without_being_told(wrap, unwrap):
    check_split(wrap, unwrap)


@pytest.mark.parametrize(("wrap", "unwrap"), AMBIGUOUS[:2])
def test_batches_of_several_lengths_are_split_by_the_first_with_a_warning(monkeypatch, wrap, unwrap):
    monkeypatch.setattr(lightning.pytorch.utilities.data, "warning_cache", WarningCache())  # it warns only once
    with pytest.warns(UserWarning, match=r"ambiguous collection. The batch size we found is [24]"):
        check_split(wrap, unwrap)


def test_rows_of_every_shape_are_joined():
    device = Device(1, row=lambda x: torch.stack([x, x + 0.5], 1).unsqueeze(2))
    rows = within_memory(device, ranges(3), MemoryLimit())
    assert rows.tolist() == [[[0.0], [0.5]], [[1.0], [1.5]], [[2.0], [2.5]]]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def measure(chunk: list[Tensor]) -> Tensor:
        raise RuntimeError("of another kind")

    budget = MemoryLimit(4096)
    with pytest.raises(RuntimeError, match="of another kind"):
        within_memory(measure, ranges(4), budget)
    assert budget.nbytes == 4096


def test_a_lack_of_memory_is_reported_in_a_line(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        within_memory(Device(4), ranges(4), MemoryLimit())
    assert not caplog.messages
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        within_memory(Device(2), ranges(4), MemoryLimit())
    assert caplog.messages == [
        "CUDA out of memory: 4 samples. Scoring goes on with half as many samples at a time; nothing is lost."
    ]


def test_the_tensors_of_a_failed_pass_are_free_before_the_halves_run():
    seen, alive = [], []

    def measure(chunk: list[Tensor]) -> Tensor:
        alive.append(sum(activations() is not None for activations in seen))
        activations = chunk[0] + 1
        seen.append(weakref.ref(activations))
        if len(chunk) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return chunk[0]

    within_memory(measure, ranges(1, 1, 1, 1), MemoryLimit())
    assert alive == [0] * 7


def test_later_chunks_are_smaller_after_one_was_too_large():
    device, advanced = Device(6), []
    indices, rows = measure_pool(
        device, pool_batches(*[2] * 9), lambda batch: batch, chunk_bytes=2 * 4 * 5, advance=advanced.append
    )
    assert indices == list(range(18))
    assert rows.tolist() == list(range(18))
    # ten samples fail; their halves fit, and so do all chunks from there on
    assert device.tried == [[2] * 5, [2, 2], [2] * 3, [2, 2], [2, 2]]
    assert advanced == [10, 4, 4]


def test_later_batches_are_split_from_the_start_after_one_was_too_large():
    device, budget = Device(4), MemoryLimit(4096)
    for batch in ranges(8, 8):
        within_memory(device, [batch], budget, [8])
    assert budget.samples == 4
    within_memory(device, ranges(8), budget)  # of which the tensors tell
    within_memory(device, ranges(4), budget)
    assert device.tried == [[8], *[[4]] * 7]
    assert budget.nbytes == 2048  # what was split from the start has not failed


def test_a_chunk_that_was_too_large_does_not_split_its_batches():
    device, budget = Device(8), MemoryLimit(4096)
    within_memory(device, ranges(8, 8), budget)
    assert budget.samples == math.inf
    assert device.done == [[8], [8]]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.cuda.OutOfMemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("Expected canUse32BitIndexMath(input) to be true: tensor needs a 32-bit index"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), False),
        (RuntimeError(), False),
        (RuntimeError(7), False),
        (ValueError("of another kind"), False),
    ],
)
def test_a_lack_of_memory_is_told_by_its_kind_or_its_words(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_perturbed_pass_that_fails_leaves_the_clean_weights_for_the_halves():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, seeds, passes = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double(), [(1, 0), (1, 1)], []

    def forward(batch: Tensor) -> Tensor:
        passes.append(len(batch))
        if len(batch) > 3 and len(passes) > 2:  # not in the clean pass but in the noisy ones
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return model(batch)

    with torch.no_grad():
        expected = deviation_sizes(FiniteDifferences(model, list(model.parameters()), Noise()), [x], seeds)
        before = [parameter.clone() for parameter in model.parameters()]
        backend = FiniteDifferences(forward, list(model.parameters()), Noise())
        rows = within_memory(lambda chunk: deviation_sizes(backend, chunk, seeds), list(x.split(6)), MemoryLimit())
    assert passes[:3] == [6, 6, 6]
    torch.testing.assert_close(rows, expected, rtol=1e-8, atol=0)
    assert all(map(torch.equal, model.parameters(), before))


class Weighted(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, dict[str, Tensor]]:
        return index, {"x": torch.full((2,), float(index))}


def collate_with_weights(items: list[tuple[int, dict[str, Tensor]]]) -> PoolBatch:
    batch = default_collate([sample for _, sample in items])
    return PoolBatch([index for index, _ in items], {**batch, "class_weights": torch.arange(4.0)})


def test_what_has_as_many_rows_as_samples_by_coincidence_is_not_cut():
    def measure(chunk: list[Any]) -> Tensor:
        assert all(len(batch["class_weights"]) == 4 for batch in chunk)
        if len(chunk[0]["x"]) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return chunk[0]["x"].sum(1)

    loader = DataLoader(Weighted(), 4, collate_fn=collate_with_weights)
    assert measure_pool(measure, loader, lambda batch: batch)[1].tolist() == [0, 2, 4, 6]
    # without the loader's collate function nothing is known, and the batch is kept as it is
    message = (
        r"Not enough memory for dict\(x: .* is not split: several of its tensors have 4 rows.*Pass smaller batches"
    )
    with pytest.raises(torch.cuda.OutOfMemoryError, match=message):
        measure_pool(measure, list(loader), lambda batch: batch)
