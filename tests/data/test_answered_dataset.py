from collections import namedtuple

import pytest
import torch
from torch.utils.data import Dataset

from lightning_al.data.answered_dataset import AnsweredDataset, with_target
from lightning_al.data.targets import AmbiguousTargetError
from lightning_al.storage.labels_file import Labels

Sample = namedtuple("Sample", "image label")


class Untouchable:
    """A target that nobody may look at."""

    def __getattribute__(self, name):
        raise AssertionError(f"the target was touched: {name}")


@pytest.mark.parametrize(
    ("sample", "label_key", "expected"),
    [
        (("x", Untouchable()), None, ("x", 7)),
        (["x", Untouchable()], None, ["x", 7]),
        (("x",), None, ("x", 7)),
        ("x", None, ("x", 7)),
        ({"image": "x"}, None, {"image": "x", "label": 7}),
        ({"image": "x", "target": Untouchable()}, None, {"image": "x", "target": 7}),
        ({"image": "x", "y": 0, "label": 0}, "y", {"image": "x", "y": 7, "label": 0}),
        (("x", "length", Untouchable()), 2, ("x", "length", 7)),
        ((Untouchable(), "x"), 0, (7, "x")),
        (Sample("x", Untouchable()), None, Sample("x", 7)),
        (Sample("x", Untouchable()), "label", Sample("x", 7)),
    ],
)
def test_a_sample_gets_the_answer_where_its_target_is(sample, label_key, expected):
    answered = with_target(sample, 7, label_key)
    assert type(answered) is type(expected)
    assert answered == expected


@pytest.mark.parametrize("sample", [("x", "mask", "id"), {"label": 1, "y": 2}])
def test_several_places_are_asked_about(sample):
    with pytest.raises(AmbiguousTargetError, match=r"label_key"):
        with_target(sample, 7)


class Inputs(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return float(index), Untouchable()


def test_targets_are_the_answers_as_losses_take_them(tmp_path):
    labels = Labels(tmp_path / "labels.jsonl", classes=["cat", "dog"])
    for index, label in enumerate(["dog", ["cat", "dog"], None]):
        labels.append(index, label)
    dataset = AnsweredDataset(Inputs(), labels)
    assert dataset[0] == (0.0, 1)
    (_, many), _ = dataset.__getitems__([1, 0])
    assert torch.equal(many, torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match=r"Labels.target_of\(2\)"):
        dataset[2]
    numbers = Labels(tmp_path / "numbers.jsonl")
    numbers.append(1, 2.5)
    assert torch.equal(AnsweredDataset(Inputs(), numbers)[1][1], torch.tensor(2.5))
