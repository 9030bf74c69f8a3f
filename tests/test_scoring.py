import re
import threading
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.compile import from_compiled
from torch import Tensor, nn
from transformers import BatchEncoding

from lightning_al.loaders import PoolBatch
from lightning_al.scoring import (
    check_rows,
    chunked,
    clone_module,
    gather_rows,
    load_weights,
    match_precision,
    measure_pool,
    to_module,
    true_float32,
)
from lightning_al.testing import ToyClassifier
from tests.snapshot import module_picture

CPU = torch.device("cpu")

# ---------------------------------------------------------------- true_float32

backends: Any = torch.backends
NEW = hasattr(backends.cudnn, "conv")  # torch 2.9
SWITCHES = {
    "all": lambda: backends,
    "cuda": lambda: backends.cudnn,
    "cuda matmul": lambda: backends.cuda.matmul,
    "cuda conv": lambda: backends.cudnn.conv,
    "cuda rnn": lambda: backends.cudnn.rnn,
    "mkldnn": lambda: backends.mkldnn,
    "mkldnn matmul": lambda: backends.mkldnn.matmul,
    "mkldnn conv": lambda: backends.mkldnn.conv,
    "mkldnn rnn": lambda: backends.mkldnn.rnn,
}
SWITCHES = {name: owner() for name, owner in SWITCHES.items()} if NEW else {}
OPERATORS = [name for name in SWITCHES if " " in name]


def switches() -> dict[str, str]:
    return {name: owner.fp32_precision for name, owner in SWITCHES.items()}


@pytest.fixture
def fresh_switches():
    """Put every switch back by hand, children to what only they were set to."""
    before = switches()
    yield before
    torch.set_float32_matmul_precision("highest")
    for name, owner in SWITCHES.items():
        owner.fp32_precision = before[name]


def inside_is_exact() -> None:
    if NEW:
        assert {name: SWITCHES[name].fp32_precision for name in OPERATORS} == dict.fromkeys(OPERATORS, "ieee")
    else:
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cudnn.allow_tf32


def test_float32_is_exact_inside_and_as_before_outside(fresh_switches):
    with true_float32(CPU):
        inside_is_exact()
    assert switches() == fresh_switches


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_the_old_matmul_switch_is_restored(fresh_switches, precision):
    torch.set_float32_matmul_precision(precision)
    before = switches()
    with true_float32(CPU):
        inside_is_exact()
    assert switches() == before
    assert torch.get_float32_matmul_precision() == precision
    assert backends.cuda.matmul.allow_tf32 == (precision != "highest")  # raises where old and new switches differ
    with pytest.raises(KeyError), true_float32(CPU):
        raise KeyError
    assert switches() == before
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("name", SWITCHES)
def test_a_new_switch_is_restored_also_after_an_exception(fresh_switches, name):
    SWITCHES[name].fp32_precision = "tf32"
    before = switches()
    assert before[name] == "tf32"
    with true_float32(CPU):
        inside_is_exact()
    assert switches() == before
    with pytest.raises(KeyError), true_float32(CPU):
        raise KeyError
    assert switches() == before


@pytest.mark.skipif(not NEW, reason="torch 2.9 brought switches that follow others")
def test_a_switch_that_follows_its_parent_still_does_so_afterwards(fresh_switches):
    # restoring the value that was read would turn an inherited value into one of the switch's own
    for first, second in (("tf32", "ieee"), ("ieee", "tf32")):
        backends.fp32_precision = first
        followers = [name for name, value in switches().items() if value == first]
        assert {"mkldnn conv", "cuda"} <= set(followers)
        with true_float32(CPU):
            inside_is_exact()
        backends.fp32_precision = second
        assert {name: switches()[name] for name in ("mkldnn conv", "cuda")} == {"mkldnn conv": second, "cuda": second}


def test_nothing_is_lost_on_versions_of_torch_without_the_new_switches(monkeypatch, fresh_switches):
    # before torch 2.9 there is only the old pair, whose `allow_tf32` would read "medium" and restore "high"
    monkeypatch.delattr(type(backends.cudnn), "conv", raising=False)
    torch.set_float32_matmul_precision("medium")
    with true_float32(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "medium"
    assert backends.cudnn.allow_tf32


def test_autocast_is_left_and_entered_again():
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with true_float32(CPU):
            assert (left @ right).dtype == torch.float32
        assert (left @ right).dtype == torch.bfloat16
        with pytest.raises(KeyError), true_float32(CPU):
            raise KeyError
        assert (left @ right).dtype == torch.bfloat16


# ---------------------------------------------------------------- clones


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.layer[0].weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.history = [torch.zeros(1)]


def test_a_clone_shares_nothing_with_the_module():
    module = Held().train()
    module.layer[2].eval()
    before = module_picture(module)
    clone = clone_module(module, CPU)
    assert not any(child.training for child in clone.modules())
    assert clone.tied.weight is clone.layer[0].weight
    assert not clone.frozen.requires_grad
    ours = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    assert ours.isdisjoint(tensor.data_ptr() for tensor in (*clone.parameters(), *clone.buffers()))
    with torch.no_grad():
        for tensor in (*clone.parameters(), *clone.buffers()):
            tensor.fill_(7)
    clone.history[0].fill_(7)
    assert module_picture(module) == before
    assert module.history[0].item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_clone_has_at_least_single_precision(dtype):
    module = Held().to(dtype)
    module.register_buffer("precise", torch.ones(1, dtype=torch.float64))
    module.register_buffer("count", torch.ones(1, dtype=torch.int16))
    clone = clone_module(module, CPU)
    assert {parameter.dtype for parameter in clone.parameters()} == {torch.float32}
    assert clone.layer[1].running_mean.dtype == torch.float32
    assert (clone.precise.dtype, clone.count.dtype) == (torch.float64, torch.int16)
    assert clone.tied.weight is clone.layer[0].weight
    assert torch.equal(clone.tied.weight, module.tied.weight.float())
    assert module.tied.weight.dtype == dtype


def test_a_module_that_cannot_be_copied_is_refused_with_the_reason():
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    with pytest.raises(
        TypeError, match=r"Linear cannot be copied for scoring \(TypeError: cannot pickle '_thread.lock"
    ):
        clone_module(module, CPU)
    module = nn.Linear(2, 2)
    module.last_loss = module(torch.ones(1, 2)).sum()
    with pytest.raises(TypeError, match=r"Linear cannot be copied.*tensors that carry a graph \(use `.detach\(\)`\)"):
        clone_module(module, CPU)


def test_a_clone_of_a_compiled_lightning_module_calls_itself():
    # the functions that Lightning puts into a compiled module are closures over the module itself
    module = ToyClassifier().train()
    plain = clone_module(module, CPU)
    compiled = from_compiled(torch.compile(module, backend="eager"))
    assert compiled is module
    before = module_picture(module)
    clone = clone_module(module, CPU)
    with torch.no_grad():
        assert torch.equal(clone(torch.ones(4, 3)), plain(torch.ones(4, 3)))
        clone.net[4].bias.add_(1)
        torch.testing.assert_close(clone(torch.ones(4, 3)), plain(torch.ones(4, 3)) + 1)
    assert module_picture(module) == before  # in training mode its statistics would have moved


def test_weights_come_from_a_checkpoint_or_a_state_dict(tmp_path):
    source, target = ToyClassifier(), ToyClassifier()
    torch.save(source.state_dict(), tmp_path / "state.pt")
    load_weights(target, tmp_path / "state.pt")
    assert all(map(torch.equal, target.state_dict().values(), source.state_dict().values()))
    partial = {name: tensor + 1 for name, tensor in source.state_dict().items() if name.startswith("net.4")}
    torch.save({"state_dict": partial, "hyper_parameters": {"anything": threading.Thread}}, tmp_path / "partial.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"net\.0\.weight\""):
        load_weights(target, tmp_path / "partial.ckpt")
    target.strict_loading = False
    load_weights(target, tmp_path / "partial.ckpt")
    assert torch.equal(target.net[4].bias, source.net[4].bias + 1)
    assert torch.equal(target.net[0].bias, source.net[0].bias)


# ---------------------------------------------------------------- batches


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
    chunks = list(chunked(iter(batches), 3 * 1024))
    assert [len(chunk) for chunk in chunks] == lengths
    assert all(given is found for given, found in zip(batches, (b for chunk in chunks for b in chunk), strict=True))


def test_chunks_read_no_further_than_they_must():
    read = []

    def batches():
        for number in range(9):
            read.append(number)
            yield kilobyte()

    next(chunked(batches(), 2 * 1024))
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


# ---------------------------------------------------------------- gather_rows and check_rows


def test_gather_rows_sorts_by_dataset_index():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    indices, rows = gather_rows(trainer, [7, 2, 40, 5], torch.tensor([[7.0], [2.0], [40.0], [5.0]]))
    assert indices == [2, 5, 7, 40]
    assert all(type(index) is int for index in indices)
    assert rows.tolist() == [[2.0], [5.0], [7.0], [40.0]]


def test_rows_that_can_be_ranked_pass():
    check_rows("Name", [3, 5], [3, 5], torch.tensor([1.0, 2.0]))
    check_rows("Name", [3, 5], [3, 5], torch.tensor([[1.0, 1.0], [1.0, 2.0]]))
    check_rows("Name", [3], [3], torch.tensor([1.0]))  # one sample has nobody to be equal to
    check_rows("Name", [3, 5], [3, 5], torch.empty(2, 0))  # Random's rows hold nothing
    check_rows("Name", [3, 5], [3, 5], torch.tensor([[[1, 2]], [[3, 4]]]))


@pytest.mark.parametrize(
    ("indices", "rows", "error", "message"),
    [
        ([10, 20, 30], [1.0, float("nan"), 3.0], ValueError, r"1 of 3 samples have NaN or infinite .*first \[20\]"),
        ([10, 20, 30], [float("inf"), 2.0, -float("inf")], ValueError, r"2 of 3 samples .*first \[10, 30\]"),
        ([10, 20, 30], [[1.0, 2.0], [3.0, float("nan")], [0.0, 0.0]], ValueError, r"first \[20\] \(dataset indices\)"),
        ([10, 20, 30], [0.0, 0.0, 0.0], ValueError, r"all 3 samples have the same measurement.*\[10, 20, 30\], \.\.\."),
        ([10, 20, 30], [[1.0, 2.0]] * 3, ValueError, r"all 3 samples have the same measurement"),
        ([10, 30], [1.0, 2.0], RuntimeError, r"each of 3 samples, got 2 \(see indices \[20\]\)"),
        ([10, 20, 20, 30], [1.0, 2.0, 3.0, 4.0], RuntimeError, r"each of 3 samples, got 4 \(see indices \[10, 20, 20"),
        ([10, 20, 40], [1.0, 2.0, 3.0], RuntimeError, r"got 3 \(see indices \[30, 40\]\)"),
        ([], [], RuntimeError, r"each of 3 samples, got 0"),
    ],
)
def test_rows_that_cannot_be_ranked_are_refused(indices, rows, error, message):
    with pytest.raises(error, match=f"`Name`: .*{message}"):
        check_rows("Name", [10, 20, 30], indices, torch.tensor(rows))
