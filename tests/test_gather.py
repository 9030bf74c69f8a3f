import pytest
import torch
from lightning.pytorch import Trainer

from lightning_al.gather import check_rows, gather_rows


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
