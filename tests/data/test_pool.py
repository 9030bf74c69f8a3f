import io
import json
import math
import pickle
import re
import shutil
import sys
import tempfile
import tracemalloc
from array import array
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightning_al import Pool
from lightning_al.data.pool import Labeling

finite = st.floats(allow_nan=False, allow_infinity=False)


def labeled_pool(size=10, first=(4, 1), second=(7,)):
    pool = Pool(size, fingerprint="0123456789abcdef")
    pool.label(first, strategy="initial")
    pool.label(second, strategy="EntropyAcquisition", scores=[0.5] * len(second), seconds={"score": 1.5})
    return pool


def through_checkpoint(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def snapshot(pool):
    return pool.size, pool.fingerprint, pool.history, pool.labeled, list(pool.unlabeled), pool.cycle


# ---------------------------------------------------------------- any sequence of operations


class PoolMachine(RuleBasedStateMachine):
    """A pool beside the plainest possible model of it: a list of lists."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())

    def teardown(self):
        shutil.rmtree(self.folder)

    @initialize(size=st.integers(1, 40), fingerprint=st.sampled_from(["", "0123456789abcdef"]))
    def make(self, size, fingerprint):
        self.pool, self.model = Pool(size, fingerprint), []

    @precondition(lambda self: self.pool.num_unlabeled)
    @rule(data=st.data(), scored=st.booleans(), kind=st.sampled_from([list, tuple, torch.tensor, np.array, iter]))
    def label(self, data, scored, kind):
        chosen = data.draw(st.lists(st.sampled_from(list(self.pool.unlabeled)), min_size=1, max_size=8, unique=True))
        scores = data.draw(st.lists(finite, min_size=len(chosen), max_size=len(chosen))) if scored else None
        self.pool.label(kind(chosen), strategy=f"cycle {len(self.model)}", scores=scores)
        self.model.append(chosen)
        assert self.pool.history[-1] == Labeling(
            f"cycle {len(self.model) - 1}", array("q", chosen), None if scores is None else array("d", scores)
        )

    @rule(data=st.data())
    def refuse(self, data):
        fresh = list(self.pool.unlabeled)
        known, outside = [index for entry in self.model for index in entry], [-1, self.pool.size, 2**63, -(2**80)]
        wrong = data.draw(st.sampled_from(known + outside + [True, 1.0, "0", None]))
        others = data.draw(st.lists(st.sampled_from(fresh), max_size=4, unique=True)) if fresh else []
        before = snapshot(self.pool)
        with pytest.raises((TypeError, ValueError), match=re.escape(str(wrong))):
            self.pool.label([*others, wrong], strategy="refused")
        if others:
            with pytest.raises(ValueError, match=f"index {others[0]} came more than once"):
                self.pool.label([*others, others[0]], strategy="refused")
            with pytest.raises(ValueError, match="one score per index"):
                self.pool.label(others, strategy="refused", scores=[1.0] * (len(others) + 1))
            with pytest.raises(ValueError, match=f"finite.* {others[-1]}"):
                self.pool.label(others, strategy="refused", scores=[1.0] * (len(others) - 1) + [math.nan])
        assert snapshot(self.pool) == before

    @rule()
    def save_and_load(self):
        self.pool.save(self.folder / "pool.json")
        self.swap(Pool.load(self.folder / "pool.json"))

    @rule()
    def checkpoint(self):
        self.swap(Pool.from_state_dict(through_checkpoint(self.pool.state_dict())))

    def swap(self, restored):
        assert snapshot(restored) == snapshot(self.pool)
        assert restored.extends(self.pool)
        assert self.pool.extends(restored)
        self.pool = restored

    @invariant()
    def parts_partition_the_dataset(self):
        labeled, unlabeled = list(self.pool.labeled), list(self.pool.unlabeled)
        assert labeled == [index for entry in self.model for index in entry]
        assert sorted(labeled + unlabeled) == list(range(self.pool.size))
        assert unlabeled == sorted(unlabeled)
        assert (self.pool.num_labeled, self.pool.num_unlabeled) == (len(labeled), len(unlabeled))

    @invariant()
    def cycles_are_positions_in_the_history(self):
        assert self.pool.cycle == max(len(self.model) - 1, 0)
        assert len(self.pool.history) == len(self.model)
        expected = {index: cycle for cycle, entry in enumerate(self.model) for index in entry}
        assert {i: self.pool.cycle_of(i) for i in range(self.pool.size)} == {
            i: expected.get(i) for i in range(self.pool.size)
        }
        for cycle in range(len(self.model)):
            assert list(self.pool.labeled_by(cycle)) == [index for entry in self.model[: cycle + 1] for index in entry]

    @invariant()
    def indices_are_plain_integers(self):
        listed = [*self.pool.labeled, *self.pool.unlabeled, *(i for entry in self.pool.history for i in entry.indices)]
        assert {type(index) for index in listed} <= {int}


TestAnySequence = PoolMachine.TestCase
TestAnySequence.settings = settings(stateful_step_count=12)


# ---------------------------------------------------------------- labeling


@pytest.mark.parametrize(
    "indices",
    [
        [2, 0],
        (index for index in (2, 0)),
        np.array([2, 0]),
        np.array([2, 0], dtype=np.uint8),
        torch.tensor([2, 0]),
        torch.tensor([2, 0], dtype=torch.int16),
        [np.int32(2), torch.tensor(0)],
    ],
    ids=["list", "generator", "numpy", "uint8", "tensor", "int16", "scalars"],
)
def test_any_sequence_of_integers_becomes_plain_integers(indices):
    pool = Pool(5)
    pool.label(indices, strategy="initial", scores=torch.tensor([0.5, 0.25]), seconds={"score": np.float32(2)})
    assert pool.history == (Labeling("initial", array("q", [2, 0]), array("d", [0.5, 0.25]), {"score": 2.0}),)
    assert [type(index) for index in pool.history[0].indices] == [int, int]
    assert [type(score) for score in pool.history[0].scores] == [float, float]
    assert type(pool.history[0].seconds["score"]) is float
    assert type(pool.cycle_of(2)) is int


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([3, 5, 3], r"every index once, but index 3 came more than once"),
        ([3, 5, 3, 5], r"every index once, but indices 3, 5 came more than once"),
        ([8, 4], r"index 4 labeled already \(in cycle \[0\]\)"),
        ([7, 1], r"indices 7, 1 labeled already \(in cycle \[1, 0\]\)"),
        ([-1], r"index -1 out of range; dataset indices run from 0 to 9"),
        ([10, 3], r"index 10 out of range; dataset indices run from 0 to 9"),
        (range(9, 20), r"indices 10, 11, 12, 13, 14 and 5 more out of range"),
        ([2**64], rf"index {2**64} out of range"),
        ([], r"at least one index is needed"),
        (torch.tensor([]), r"at least one index is needed"),
    ],
)
def test_a_refused_index_is_named(indices, message):
    pool = labeled_pool()
    before = snapshot(pool)
    with pytest.raises(ValueError, match=message):
        pool.label(indices, strategy="refused")
    assert snapshot(pool) == before


@pytest.mark.parametrize(
    ("indices", "found"),
    [
        ([0, True], "True (bool)"),
        ([0, 2.0], "2.0 (float)"),
        (["3"], "'3' (str)"),
        ("3", "'3' (str)"),
        ([None], "None (NoneType)"),
        ([[0, 2]], "[0, 2] (list)"),
        (np.array([True, False]), "np.True_ (bool)"),
        (np.array([2.0]), "np.float64(2.0) (float64)"),
        (np.array([[0, 2]]), "[0, 2] (list)"),
        (torch.tensor([0.5]), "0.5 (float)"),
        (torch.tensor([1 + 0j]), "(1+0j) (complex)"),
        (torch.tensor([True]), "True (bool)"),
        ([torch.tensor(True)], "tensor(True) (Tensor)"),
        ([torch.tensor(2.0)], "tensor(2.) (Tensor)"),
        (torch.tensor([[0, 2]]), "[0, 2] (list)"),
    ],
)
def test_an_index_that_is_no_integer_is_shown(indices, found):
    pool = labeled_pool()
    before = snapshot(pool)
    with pytest.raises(TypeError, match=re.escape(f"expected a flat sequence of integers, got {found}.")):
        pool.label(indices, strategy="refused")
    assert snapshot(pool) == before


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1], r"one score per index, got 1 for 2 indices"),
        (torch.zeros(3), r"one score per index, got 3 for 2 indices"),
        ([], r"one score per index, got 0 for 2 indices"),
        ([math.nan, 1.0], r"every score must be finite; not so for index 3"),
        (torch.tensor([1.0, -math.inf]), r"every score must be finite; not so for index 5"),
        ([math.inf, math.nan], r"every score must be finite; not so for indices 3, 5"),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores, message):
    pool = labeled_pool()
    before = snapshot(pool)
    with pytest.raises(ValueError, match=message):
        pool.label([3, 5], strategy="refused", scores=scores)
    assert snapshot(pool) == before


@pytest.mark.parametrize("index", [-1, 10])
def test_cycle_of_refuses_an_index_out_of_range(index):
    with pytest.raises(ValueError, match=f"index {index} out of range; dataset indices run from 0 to 9"):
        labeled_pool().cycle_of(index)


@pytest.mark.parametrize("size", [0, -3])
def test_an_empty_dataset_is_refused(size):
    with pytest.raises(ValueError, match=rf"`Pool\(size={size}\)`: a dataset of at least one sample"):
        Pool(size)


def test_the_history_is_a_record_that_later_labels_do_not_change():
    pool = Pool(6)
    assert (list(pool.labeled), pool.cycle, repr(pool)) == ([], 0, "Pool(0 of 6 labeled, cycle 0)")
    chosen = [4, 1]
    pool.label(chosen, strategy="initial")
    history = pool.history
    chosen.append(0)
    pool.labeled.append(5)
    pool.label([0], strategy="RandomAcquisition")
    assert history == (Labeling("initial", array("q", [4, 1])),)
    assert (list(pool.labeled), list(pool.unlabeled), repr(pool)) == (
        [4, 1, 0],
        [2, 3, 5],
        "Pool(3 of 6 labeled, cycle 1)",
    )


# ---------------------------------------------------------------- extends


def test_extends_compares_the_labelings_in_their_order():
    pool, empty = labeled_pool(), Pool(10)
    assert pool.extends(empty)
    assert not empty.extends(pool)
    assert pool.extends(pool)
    longer = labeled_pool()
    longer.label([9], strategy="CoreSetAcquisition")
    assert longer.extends(pool)
    assert not pool.extends(longer)
    assert not labeled_pool(first=(1, 4)).extends(pool)
    assert not labeled_pool(second=(8,)).extends(pool)
    assert not longer.extends(labeled_pool(second=(7, 9)))
    assert not labeled_pool(size=11).extends(pool)


# ---------------------------------------------------------------- the dataset behind it


def test_other_data_is_refused_with_the_mismatch():
    pool = labeled_pool()
    pool.check_dataset(10, "0123456789abcdef", "The pool")
    pool.check_dataset(10, "", "The pool")
    Pool(10).check_dataset(10, "fedcba9876543210", "The pool")
    with pytest.raises(ValueError, match=r"Pool file a\.json belongs to other data: it has 10 samples.* has 11\."):
        pool.check_dataset(11, "0123456789abcdef", "Pool file a.json")
    with pytest.raises(
        ValueError, match=r'is 0123456789abcdef, this dataset has fedcba9876543210 .*set "fingerprint" to ""'
    ):
        pool.check_dataset(10, "fedcba9876543210", "The pool")


def test_the_remedy_of_an_empty_fingerprint_works(tmp_path):
    path = tmp_path / "pool.json"
    labeled_pool().save(path)
    path.write_text(path.read_text().replace("0123456789abcdef", ""))
    Pool.load(path).check_dataset(10, "fedcba9876543210", "The pool")


# ---------------------------------------------------------------- states and files


def plain_types(value):
    if isinstance(value, dict):
        return {dict}.union(*(plain_types(entry) for pair in value.items() for entry in pair))
    if isinstance(value, list):
        return {list}.union(*map(plain_types, value))
    return {type(value)}


def test_the_state_survives_a_checkpoint_with_weights_only():
    state = labeled_pool().state_dict()
    assert plain_types(state) <= {dict, list, int, float, str, torch.Tensor, type(None)}
    restored = Pool.from_state_dict(through_checkpoint(state))
    assert snapshot(restored) == snapshot(labeled_pool())
    assert restored.history[1] == Labeling("EntropyAcquisition", array("q", [7]), array("d", [0.5]), {"score": 1.5})


def test_a_pool_pickles():
    assert snapshot(pickle.loads(pickle.dumps(labeled_pool()))) == snapshot(labeled_pool())


def test_the_file_is_json_with_one_line_per_cycle(tmp_path):
    path = tmp_path / "new folder" / "pool.json"
    labeled_pool().save(path)
    assert json.loads(path.read_text()) == {
        "schema_version": 1,
        "size": 10,
        "fingerprint": "0123456789abcdef",
        "history": [
            {"cycle": 0, "strategy": "initial", "indices": [4, 1], "scores": None, "seconds": {}},
            {
                "cycle": 1,
                "strategy": "EntropyAcquisition",
                "indices": [7],
                "scores": [0.5],
                "seconds": {"score": 1.5},
            },
        ],
    }
    assert [line.strip()[:10] for line in path.read_text().splitlines()[2:4]] == ['{"cycle": ', '{"cycle": ']


def test_scores_survive_the_file_bit_for_bit(tmp_path):
    scores = [1 / 3, 5e-324, -0.0, 1.7976931348623157e308]
    pool = Pool(4)
    pool.label(range(4), strategy="initial", scores=scores)
    pool.save(tmp_path / "pool.json")
    restored = Pool.load(tmp_path / "pool.json").history[0].scores
    assert np.array(restored).tobytes() == np.array(scores).tobytes()


def broken(**changes):
    state = {
        "schema_version": 1,
        "size": 10,
        "fingerprint": "",
        "history": [{"cycle": 0, "strategy": "initial", "indices": [4, 1], "scores": None, "seconds": {}}],
    }
    entry = {**state["history"][0], **changes.pop("entry", {})}
    state["history"] = [{key: value for key, value in entry.items() if value != "missing"}]
    return json.dumps({key: value for key, value in {**state, **changes}.items() if value != "missing"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (broken()[:-4], r"is not valid JSON \(.*char \d+\)\); restore the file from a copy"),
        ("", r"is not valid JSON \(Expecting value"),
        ("[1, 2]", r"holds a list, expected fields with names"),
        (broken(schema_version=2), r"`schema_version` is 2, expected 1"),
        (broken(schema_version="missing"), r"`schema_version` is None, expected 1"),
        (broken(size="missing"), r"lacks the field `size`"),
        (broken(fingerprint="missing"), r"lacks the field `fingerprint`"),
        (broken(history="missing"), r"lacks the field `history`"),
        (broken(entry={"indices": "missing"}), r"history\[0\] lacks the field `indices`"),
        (broken(entry={"strategy": "missing"}), r"history\[0\] lacks the field `strategy`"),
        (broken(entry={"indices": [4, 10]}), r"index 10 out of range; dataset indices run from 0 to 9"),
        (broken(entry={"indices": [4, 4]}), r"index 4 came more than once"),
        (broken(entry={"indices": [4, 1.5]}), r"`indices\[1\]` is 1\.5, expected int"),
        (broken(entry={"scores": [1.0]}), r"one score per index, got 1 for 2 indices"),
        (broken(entry={"scores": [1.0, math.nan]}), r"every score must be finite; not so for index 1"),
        (broken(size=0), r"at least one sample"),
        (broken(size="10"), r"`size` is '10', expected int"),
        (broken(history=[3]), r"history\[0\] holds a int, expected fields"),
    ],
)
def test_a_file_that_is_no_pool_is_named_with_the_reason(tmp_path, text, message):
    path = tmp_path / "pool.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"(?s)^{re.escape(str(path))}.*{message}"):
        Pool.load(path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "pool.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"pool\.json is not valid JSON"):
        Pool.load(tmp_path / "pool.json")


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pool\.json"):
        Pool.load(tmp_path / "pool.json")


def test_a_state_names_its_source():
    with pytest.raises(ValueError, match="The checkpoint's pool: `schema_version` is 7, expected 1"):
        Pool.from_state_dict({"schema_version": 7}, "The checkpoint's pool")


# ---------------------------------------------------------------- ten million samples


def test_ten_million_samples_fit_in_modest_memory(tmp_path):
    size, chosen = 10_000_000, range(0, 10_000_000, 100)
    pool = Pool(size)
    tracemalloc.start()
    try:
        pool.label(chosen, strategy="initial")
        pool.save(tmp_path / "pool.json")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6  # a hundred thousand indices as integers and as text, nothing per sample
    assert pool._cycle_of.nbytes == 4 * size
    assert (tmp_path / "pool.json").stat().st_size < 1.2e6
    assert (pool.num_labeled, pool.num_unlabeled) == (100_000, 9_900_000)

    unlabeled = pool.unlabeled
    assert sys.getsizeof(unlabeled) < 9 * len(unlabeled)
    assert (len(unlabeled), unlabeled[0], unlabeled[-1], type(unlabeled[0])) == (9_900_000, 1, size - 1, int)

    restored = Pool.load(tmp_path / "pool.json")
    assert restored.extends(pool)
    assert list(restored.labeled) == list(chosen)
    assert restored.state_dict()["history"][0]["indices"].nbytes == 8 * len(chosen)


def test_lines_in_another_order_are_refused(tmp_path):
    pool = Pool(9)
    pool.label([1], strategy="initial")
    pool.label([2], strategy="someone")
    pool.save(tmp_path / "pool.json")
    state = json.loads((tmp_path / "pool.json").read_text())
    state["history"].reverse()
    (tmp_path / "pool.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"`history\[0\]\.cycle` is 1, expected 0; restore the order of its lines"):
        Pool.load(tmp_path / "pool.json")
