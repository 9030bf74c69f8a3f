import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al import MarginAcquisition, Pool, RandomSubset
from lightning_al.acquisition.agreement import check_agreement, state_of
from tests.digits import fit, make_data

ROOT = Path(__file__).parents[2]


def test_a_numpy_integer_is_no_share():
    assert len(fit(MarginAcquisition(np.int64(5))).picks) == 5


@pytest.mark.parametrize(
    ("acquisition", "data"),
    [
        (lambda: MarginAcquisition(20), {"candidates": 20}),
        (lambda: RandomSubset(20, MarginAcquisition, candidates=20), {}),
        (lambda: RandomSubset(20, MarginAcquisition, candidates=0.01), {}),
    ],
    ids=["data", "number", "share"],
)
def test_candidates_that_leave_no_choice_are_refused_before_training(acquisition, data):
    data = make_data(**data)
    with pytest.raises(MisconfigurationException, match=r"20 samples are to be picked from 20 candidates, though"):
        fit(acquisition(), data=data)
    assert len(data.pool.history) == 1


def datamodule(*labelings):
    pool = Pool(20)
    for indices in labelings:
        pool.label(indices, strategy="someone")
    return SimpleNamespace(pool=pool, cycle=pool.cycle, labeled_indices=pool.labeled_by)


def trainer_of_second_process(first, votes):
    strategy = SimpleNamespace(
        broadcast=lambda state: state_of(first),
        reduce_boolean_decision=lambda vote: votes.append(vote) or vote,
    )
    return SimpleNamespace(world_size=2, global_rank=1, strategy=strategy)


def test_processes_with_equal_pools_agree():
    votes = []
    check_agreement(trainer_of_second_process(datamodule([1, 2], [5]), votes), datamodule([1, 2], [5]))
    assert votes == [True]
    check_agreement(SimpleNamespace(world_size=1), datamodule())


@pytest.mark.parametrize("labelings", [([1, 2],), ([2, 1], [5]), ([1, 2], [6]), ([1], [2, 5]), ([1, 2], [5], [7])])
def test_a_process_with_another_pool_is_refused(labelings):
    votes = []
    with pytest.raises(MisconfigurationException, match=r"process 1 is in cycle \d with Pool.*all nodes share"):
        check_agreement(trainer_of_second_process(datamodule([1, 2], [5]), votes), datamodule(*labelings))
    assert votes == [False]  # so that the others raise, too


@pytest.mark.sweep
def test_processes_with_different_pools_all_stop_before_training(tmp_path):
    command = [sys.executable, "-m", "tests.ddp_disagreement", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode != 0
    for rank, cycle in ((0, 0), (1, 1)):
        assert f"process {rank} is in cycle {cycle} with Pool({10 + 5 * cycle} of 120 labeled" in finished.stderr
    assert "on a disk that all nodes share" in finished.stderr
    assert [Pool.load(tmp_path / f"pool-{rank}.json").cycle for rank in (0, 1)] == [0, 1]
