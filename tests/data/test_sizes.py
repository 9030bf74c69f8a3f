import numpy as np
import pytest
import torch

from lightning_al.data.sizes import check_size


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
