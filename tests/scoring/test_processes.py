from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_al.functional import top_k
from lightning_al.scoring.processes import gather_measurements, gather_rows
from lightning_al.scoring.row_checks import check_rows


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


def test_rows_that_are_not_ranked_may_be_equal_but_not_broken():
    check_rows("Name", [3, 5], [3, 5], torch.ones(2), ranked=False)
    with pytest.raises(ValueError, match="1 of 2 samples have NaN"):
        check_rows("Name", [3, 5], [3, 5], torch.tensor([1.0, float("nan")]), ranked=False)
    with pytest.raises(RuntimeError, match="each of 2 samples, got 1"):
        check_rows("Name", [3, 5], [3], torch.ones(1), ranked=False)


# ---------------------------------------------------------------- gather_measurements


class Processes:
    """Processes as threads. Every collective waits for all of them, and all of them must call the same one."""

    root_device = torch.device("cpu")

    def __init__(self, count: int) -> None:
        self.calls: list[Any] = [None] * count
        self.names: list[str] = []
        self._barrier = Barrier(count, timeout=10)

    def run(self, function: Callable[[Any, int], Any]) -> list[Any]:
        """Call a function with a trainer and its rank on every process; return what each gave or raised."""
        with ThreadPoolExecutor(len(self.calls)) as executor:
            futures = [executor.submit(function, self._trainer(rank), rank) for rank in range(len(self.calls))]
            return [future.exception() or future.result() for future in futures]

    def _trainer(self, rank: int) -> SimpleNamespace:
        def exchange(name: str, value: Any) -> list[Any]:
            self.calls[rank] = (name, value)
            self._barrier.wait()
            names, values = zip(*self.calls, strict=True)
            self._barrier.wait()
            assert len(set(names)) == 1, f"processes that call {names} wait for each other forever"
            if rank == 0:
                self.names.append(name)
            return list(values)

        strategy = SimpleNamespace(
            root_device=self.root_device,
            all_gather=lambda tensor: torch.stack(exchange("all_gather", tensor)),
            broadcast=lambda value: exchange("broadcast", value)[0],
            reduce_boolean_decision=lambda decision: all(exchange("reduce_boolean_decision", decision)),
        )
        return SimpleNamespace(world_size=len(self.calls), strategy=strategy)


Share = tuple[list[int], Tensor]


def collect_all(
    shares: Sequence[Share],
    rows_to_gather: Callable[[Tensor], Tensor | None],
    part: Sequence[int] | None = None,
    **options,
) -> list[Any]:
    """Collect the rows that each process measured; what it should have measured is that, unless `expected` says."""
    part = sorted(index for indices, _ in shares for index in indices) if part is None else part
    expected = options.pop("expected", [indices for indices, _ in shares])
    return Processes(len(shares)).run(
        lambda trainer, rank: gather_measurements(
            trainer,
            "Name",
            expected=part,
            expected_here=expected[rank],
            indices=shares[rank][0],
            rows=shares[rank][1],
            rows_to_gather=rows_to_gather,
            **{"ranked": True, "score": lambda rows: None, **options},
        )
    )


def local_arguments(
    part: Sequence[int], share: Share, rows_to_gather: Callable[[Tensor], Tensor | None]
) -> dict[str, Any]:
    indices, rows = share
    return {
        "expected": part,
        "expected_here": indices,
        "indices": indices,
        "rows": rows,
        "rows_to_gather": rows_to_gather,
        "ranked": True,
        "score": lambda rows: None,
    }


def deal(rows: Tensor, processes: int, size: int = 4) -> list[Share]:
    """Deal whole batches out, as the pool's loader does."""
    batches = list(torch.arange(len(rows)).split(size))
    empty = torch.empty(0, dtype=torch.int64)
    ids = [torch.cat([empty, *batches[rank::processes]]) for rank in range(processes)]
    return [(own.tolist(), rows[own] if len(own) else torch.empty(0)) for own in ids]


def best(count: int) -> Callable[[Tensor], Tensor]:
    def rows_to_gather(rows: Tensor) -> Tensor:
        assert len(rows), "a process without a batch has no rows to choose from"
        return top_k(rows, count)

    return rows_to_gather


def test_one_process_keeps_all_rows_whatever_is_on_the_shortlist():
    trainer = SimpleNamespace(world_size=1)
    measured = gather_measurements(
        trainer,
        "Name",
        expected=[2, 4, 6],
        expected_here=[2, 4, 6],
        indices=[4, 2, 6],
        rows=torch.tensor([4.0, 2.0, 6.0]),
        rows_to_gather=best(1),
        ranked=True,
        score=lambda rows: None,
    )
    assert (measured.indices, measured.rows.tolist()) == ([2, 4, 6], [2, 4, 6])


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("budget", [1, 3, 7])
def test_the_shortlists_of_all_processes_hold_the_picks_of_one(processes, budget):
    rows = torch.randint(12, (31,), generator=torch.Generator().manual_seed(budget)).float()  # with ties
    results = collect_all(deal(rows, processes), best(budget))
    for measured in results:
        assert len(measured.indices) <= processes * budget
        assert measured.indices == sorted(measured.indices)
        assert measured.rows.tolist() == rows[measured.indices].tolist()
        picks = [measured.indices[row] for row in top_k(measured.rows, budget).tolist()]
        assert picks == top_k(rows, budget).tolist()
    assert all(measured.indices == results[0].indices for measured in results)


def test_without_a_shortlist_all_rows_come_together():
    rows = torch.randn(23, 3, 2, generator=torch.Generator().manual_seed(0))
    for measured in collect_all(deal(rows, 3), lambda rows: None):
        assert measured.indices == list(range(23))
        assert torch.equal(measured.rows, rows)


@pytest.mark.parametrize("rows_to_gather", [lambda rows: None, best(2)])
def test_a_process_without_a_batch_takes_part(rows_to_gather):
    rows = torch.arange(6.0)
    shares = deal(rows, 3)
    assert [len(indices) for indices, _ in shares] == [4, 2, 0]
    for measured in collect_all(shares, rows_to_gather):
        assert measured.indices[-2:] == [4, 5]


def test_a_process_without_a_batch_learns_the_shape_and_the_precision_of_the_rows():
    rows = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for measured in collect_all(deal(rows, 2), lambda rows: None):
        assert torch.equal(measured.rows, rows)


@pytest.mark.parametrize("rows_to_gather", [lambda rows: None, best(2)])
@pytest.mark.parametrize("swap", [False, True])
def test_every_process_votes_on_what_travels(rows_to_gather, swap):
    shares = deal(torch.arange(6.0), 4)[:: -1 if swap else 1]
    shares = shares if len(shares[0][0]) else [shares[-1], *shares[:-1]]  # the first process always has a batch
    assert sorted(len(indices) for indices, _ in shares) == [0, 0, 2, 4]
    processes, part = Processes(4), list(range(6))
    results = processes.run(
        lambda trainer, rank: gather_measurements(
            trainer, "Name", **local_arguments(part, shares[rank], rows_to_gather)
        )
    )
    assert processes.names.count("reduce_boolean_decision") == 1
    for measured in results:
        assert measured.indices[-2:] == [4, 5]
        assert measured.rows.tolist() == measured.indices


def test_a_process_without_a_batch_is_not_asked_for_a_shortlist():
    asked: list[int] = []

    def rows_to_gather(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return torch.arange(len(rows))

    collect_all(deal(torch.arange(6.0), 4), rows_to_gather)
    assert sorted(asked) == [2, 4]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("rows_to_gather", [lambda rows: None, best(1)])
def test_a_broken_row_beside_a_process_without_a_batch_is_the_same_error_everywhere(rows_to_gather, ranked, broken):
    shares = deal(torch.tensor([1.0, broken, 3.0]), 3)
    results = collect_all(shares, rows_to_gather, ranked=ranked)
    assert len({str(result) for result in results}) == 1
    for result in results:
        with pytest.raises(ValueError, match=r"`Name`: 1 of 3 samples have NaN or infinite measurements, first \[1\]"):
            raise result


def test_only_the_shortlists_travel():
    moved: list[int] = []

    class Counting(Processes):
        def _trainer(self, rank: int) -> SimpleNamespace:
            trainer = super()._trainer(rank)
            gather = trainer.strategy.all_gather
            trainer.strategy.all_gather = lambda tensor: moved.append(tensor.numel()) or gather(tensor)
            return trainer

    rows, part = torch.rand(4000, generator=torch.Generator().manual_seed(0)), list(range(4000))
    shares = deal(rows, 2, size=10)
    results = Counting(2).run(
        lambda trainer, rank: gather_measurements(trainer, "N", **local_arguments(part, shares[rank], best(5)))
    )
    assert [len(measured.indices) for measured in results] == [10, 10]
    assert max(moved) == 5


FALSE_SHARES = [
    # a sample that nobody measured
    (
        [([0, 1], [1.0, 2.0]), ([2], [3.0])],
        [[0, 1], [2, 3]],
        RuntimeError,
        r"each of 4 samples, got 3 \(see indices \[3",
    ),
    # one that came twice
    ([([0, 1], [1.0, 2.0]), ([2, 2], [3.0, 3.0])], [[0, 1], [2, 3]], RuntimeError, r"\(see indices \[3\]\)"),
    # a broken one
    (
        [([0, 1], [1.0, 2.0]), ([2, 3], [3.0, float("nan")])],
        [[0, 1], [2, 3]],
        ValueError,
        r"1 of 4 samples have NaN or infinite measurements, first \[3\]",
    ),
    # all alike
    ([([0, 1], [2.0, 2.0]), ([2, 3], [2.0, 2.0])], [[0, 1], [2, 3]], ValueError, r"all 4 samples have the same meas"),
]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("shares", "expected", "error", "message"), FALSE_SHARES)
def test_every_process_raises_the_same_error_about_what_one_of_them_measured(shares, expected, error, message, swap):
    shares = [(indices, torch.tensor(rows)) for indices, rows in shares]
    if swap:
        shares, expected = shares[::-1], expected[::-1]
    # a rows_to_gather that does not look at the values
    results = collect_all(shares, lambda rows: torch.tensor([0]), part=[0, 1, 2, 3], expected=expected)
    assert len({str(result) for result in results}) == 1
    for result in results:
        with pytest.raises(error, match=f"`Name`: .*{message}"):
            raise result


def test_rows_that_are_equal_on_one_process_only_are_no_error():
    shares = [([0, 1], torch.tensor([2.0, 2.0])), ([2, 3], torch.tensor([2.0, 5.0]))]
    for measured in collect_all(shares, best(1)):
        assert measured.indices == [0, 1, 2, 3]  # looked at as a whole
        assert measured.rows.tolist() == [2, 2, 2, 5]


def test_equal_rows_of_a_part_that_is_not_ranked_are_no_error():
    shares = [([0, 1], torch.ones(2)), ([2], torch.ones(1))]
    for measured in collect_all(shares, lambda rows: None, ranked=False):
        assert measured.rows.tolist() == [1, 1, 1]
