import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_al import MarginAcquisition, RandomSubset
from lightning_al.acquisition.checks import check_size
from tests.digits import fit, make_data


@pytest.mark.parametrize(
    ("size", "expected"),
    [(5, 5), (0.5, 0.5), (1.0, 1.0), (np.int64(5), 5), (np.float32(0.5), 0.5), (torch.tensor(7), 7), (np.array(3), 3)],
)
def test_numbers_of_any_library_keep_their_kind(size, expected):
    checked = check_size("`f(size)`", size, "the dataset")
    assert (checked, type(checked)) == (expected, type(expected))


@pytest.mark.parametrize("size", [0, -1, True, 1.5, 0.0, np.int64(0), torch.tensor(2.5), "5", None, float("nan")])
def test_what_is_neither_a_number_nor_a_share_is_refused(size):
    with pytest.raises(
        ValueError, match=r"`f\(size\)`: expected a number of samples \(int, at least 1\) or a share of"
    ):
        check_size("`f(size)`", size, "the dataset")


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
