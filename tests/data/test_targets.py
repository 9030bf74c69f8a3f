from collections import namedtuple
from dataclasses import make_dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset, random_split

from lightning_al.data.batch import LABEL_KEYS
from lightning_al.data.initial_labels import class_labels, draw_initial
from lightning_al.data.targets import AmbiguousTargetError, inputs_of, label_of
from tests.data.test_datasets import AUGMENT, Items, Unreadable, generator
from tests.data.test_fingerprint import hugging_face
from tests.image_files import write_cifar10, write_image_folder, write_mnist

X = torch.zeros(4, 3)
Point = namedtuple("Point", "where what")
Triple = namedtuple("Triple", "image mask label")


@pytest.mark.parametrize("key", LABEL_KEYS)
def test_a_target_has_a_usual_name(key):
    assert label_of({"image": X, "mask": 1, key: 3, "id": 8}) == 3
    assert label_of(make_dataclass("Sample", ["x", "mask", key])(X, 1, 3)) == 3


@pytest.mark.parametrize("label", [3, np.int64(3), torch.tensor(3), torch.tensor([[3]]), np.array([3], dtype=np.uint8)])
def test_a_class_becomes_a_plain_integer(label):
    samples = [(X, label), [X, label], ((X, X), label), Point(X, label), Triple(X, X, label)]
    assert [label_of(sample) for sample in samples] == [3] * 5
    assert type(label_of((X, label))) is int


@pytest.mark.parametrize("kind", [torch.tensor, np.array, lambda hot: torch.tensor([hot]).float(), torch.BoolTensor])
def test_a_vector_of_zeros_and_ones_has_several_classes(kind):
    assert label_of((X, kind([0, 1, 0, 1]))) == (1, 3)
    assert label_of((X, kind([0, 0]))) == ()


@pytest.mark.parametrize(
    ("label_key", "sample"),
    [
        (1, (X, 3, 1234)),
        (2, (X, torch.tensor([0, 1]), 3)),
        (0, [3, X]),
        (-2, (X, 3, 50)),
        ("mood", {"x": X, "label": 9, "mood": 3}),
        ("mood", make_dataclass("Sample", ["label", "mood"])(9, 3)),
        ("what", Point(X, 3)),
    ],
)
def test_a_declared_target_is_taken(label_key, sample):
    assert label_of(sample, label_key) == 3


@pytest.mark.parametrize(
    "sample",
    [
        (X, torch.tensor([0, 1]), 3),
        (X, X, 3),
        (X, 17, 3),
        [X, 3, 1234],
        {"x": X, "label": 3, "target": 3},
    ],
)
def test_a_target_that_could_be_another_one_is_asked_for(sample):
    message = r"More than one entry of .* may be its target\. Declare it by `ActiveLearningDataModule\(label_key="
    with pytest.raises(AmbiguousTargetError, match=message):
        label_of(sample)


@pytest.mark.parametrize(
    ("sample", "part"),
    [
        (X, r"Found no target in Tensor\(4, 3\) of torch\.float32"),
        ((X,), r"Found no target in tuple\(Tensor\(4, 3\)"),
        ("text", "Found no target in str"),
        ({"image": X}, r"Found no target in dict\(image: Tensor"),
        (None, "Found no target in NoneType"),
        ((X, None), "Found no class in the target NoneType"),
        ((X, "cat"), "Found no class in the target str"),
        ((X, {"boxes": X}), r"Found no class in the target dict\(boxes"),
        ((X, X), r"Found no class in the target Tensor\(4, 3\)"),
        ((X, torch.tensor([0, 2])), r"Found no class in the target Tensor\(2,\)"),
        ((X, torch.tensor([0.5, 1.0])), r"Found no class in the target Tensor\(2,\)"),
        ((X, [0, 1]), r"Found no class in the target list\(int, int\)"),  # numbers of two classes, or one of two
        *(((X, value), "Found no class in the target") for value in (3.0, np.float32(3), torch.tensor(3.0), X[:0, 0])),
    ],
)
def test_a_sample_without_a_class_is_described_with_the_remedy(sample, part):
    with pytest.raises(ValueError, match=rf"{part}.*label_key=.*leave `balanced_start` off"):
        label_of(sample)


@pytest.mark.parametrize("label_key", [5, "mood"])
def test_a_declared_target_that_is_missing_is_refused(label_key):
    for sample in ((X, 3), {"x": X, "y": 3}, X):
        with pytest.raises(ValueError, match=rf"label_key={label_key!r}\)`: expected a position or a key of a sample"):
            label_of(sample, label_key)


@pytest.mark.parametrize(
    ("sample", "label_key", "inputs"),
    [
        ((1, 2, 3), None, 1),
        ((1, 2, 3), 0, 2),
        ((1,), 0, None),
        ({"x": 1, "mask": 2}, None, {"x": 1}),
        ({"question": 1, "mood": 2, "y": 3}, "mood", {"question": 1}),
        (Triple(1, 2, 3), None, {"image": 1}),
        (Point(1, 2), None, 1),
        ("text", None, "text"),
    ],
)
def test_inputs_leave_the_target_out(sample, label_key, inputs):
    assert inputs_of(sample, label_key) == inputs


@pytest.mark.parametrize("name", ["targets", "labels", "y"])
@pytest.mark.parametrize("kind", [list, torch.tensor, np.array, lambda labels: np.array(labels)[:, None]])
def test_classes_come_from_an_attribute(name, kind):
    dataset = Unreadable(range(4), **{name: kind([2, 0, 1, 2])})
    assert class_labels(dataset) == [2, 0, 1, 2]
    assert {type(label) for label in class_labels(dataset)} == {int}
    assert class_labels(Subset(Subset(dataset, [3, 1, 0]), [2, 1])) == [2, 0]
    first, second = random_split(dataset, [3, 1], generator())
    assert sorted(class_labels(first) + class_labels(second)) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("dataset", "label_key"),
    [
        (TensorDataset(torch.zeros(3, 2), torch.tensor([1, 0, 2])), None),
        (StackDataset(image=torch.zeros(3, 2), label=[1, 0, 2]), None),
        (Items([(0, label) for label in (1, 0, 2)], targets=[5, 5]), None),
        (Items([(0, label) for label in (1, 0, 2)], labels=print), None),
        (Items([(0, label, 7) for label in (1, 0, 2)], targets=[5, 5, 5]), 1),
        (Items([{"fine": label} for label in (1, 0, 2)], targets=[5, 5, 5]), "fine"),
        (Unreadable(range(3), fine=[1, 0, 2], targets=[5, 5, 5]), "fine"),
        (ConcatDataset([Items([(0, 1)], targets=[1]), Items([("text", 0), ("text", 2)])]), None),
        (hugging_face([1, 0, 2]), None),
    ],
)
def test_classes_are_read_where_there_is_no_attribute(dataset, label_key):
    assert class_labels(dataset, label_key=label_key) == [1, 0, 2]
    assert {type(label) for label in class_labels(dataset, label_key=label_key)} == {int}


def test_sequences_of_binary_tags_are_no_classes():
    with pytest.raises(ValueError, match=r"Targets of different lengths \(\[2, 3\]\) are no classes"):
        class_labels(Items([(X, torch.tensor([0, 1])), (X, torch.tensor([0, 1, 1]))]))


def test_classes_of_files_in_the_genuine_formats(tmp_path):
    assert class_labels(write_mnist(tmp_path / "m")(tmp_path / "m")) == [*range(10), 0, 1]
    cifar = write_cifar10(tmp_path / "c")(tmp_path / "c", transform=AUGMENT)
    assert class_labels(Subset(cifar, [14, 0, 3])) == [6, 0, 1]
    assert class_labels(write_image_folder(tmp_path / "f", 2, 3)(tmp_path / "f")) == [0, 0, 1, 1, 2, 2]


def test_a_balanced_start_of_several_labels_has_every_class():
    hot = torch.zeros(200, 4, dtype=torch.int64)
    hot[:, 0] = 1
    hot[:3, 1], hot[3:5, 2:] = 1, 1  # the others are rare, and some samples have none
    hot[190:] = 0
    drawn = draw_initial(TensorDataset(hot, hot.float()), 4, generator(), balanced=True)
    assert hot[drawn].any(0).all()
    assert not hot[drawn].any(1).all()
