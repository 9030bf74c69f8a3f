import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset, random_split
from torchvision import transforms as T
from torchvision.datasets import FakeData

from lightning_al.data.evaluation_view import with_transforms_of
from lightning_al.data.fingerprint import differing_samples, fingerprint
from lightning_al.data.initial_labels import check_initial_size, class_labels, draw_initial
from lightning_al.testing import ToyDataset
from tests.image_files import write_cifar10, write_image_folder, write_mnist, write_voc_segmentation

ROOT = Path(__file__).parents[2]


def rng_states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Items(Dataset):
    """Given samples; it is strict about its indices and remembers them."""

    def __init__(self, items, **attributes):
        self.items, self.read = list(items), []
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if type(index) is not int:
            raise TypeError(f"plain integers only, got {type(index).__name__}")
        self.read.append(index)
        return self.items[index]


class Noisy(Items):
    """Random where it says so, with each of the three libraries."""

    def __init__(self, items, noisy, draw=torch.rand):
        super().__init__(items)
        self.noisy, self.draw = noisy, draw

    def __getitem__(self, index):
        return super().__getitem__(index) + (float(self.draw(1)) if index in self.noisy else 0.0)


class Broken(Items):
    def __getitem__(self, index):
        torch.rand(3)
        raise OSError("broken image")


# ---------------------------------------------------------------- evaluation transforms

AUGMENT = T.Compose([T.RandomCrop(8), T.ColorJitter(0.4, 0.4), T.ToTensor()])
EVALUATE = T.Compose([T.CenterCrop(8), T.ToTensor(), T.Normalize(0.5, 0.5)])


def minus_one(label):
    return label - 1


def open_images(kind, folder):
    """Return a function that opens the training or the validation images with transforms."""
    if kind == "FakeData":
        return lambda train, **options: FakeData(12, (3, 10, 12), 4, random_offset=0 if train else 100, **options)
    if kind == "ImageFolder":
        classes = {train: write_image_folder(folder / str(train)) for train in (True, False)}
        return lambda train, **options: classes[train](folder / str(train), **options)
    cls = {"MNIST": write_mnist, "CIFAR10": write_cifar10}[kind](folder)
    return lambda train, **options: cls(folder, train=train, **options)


WRAPPERS = {
    "plain": lambda dataset: dataset,
    "Subset": lambda dataset: Subset(dataset, [7, 2, 5]),
    "random_split": lambda dataset: random_split(dataset, [0.6, 0.4], generator=generator())[0],
    "ConcatDataset": lambda dataset: ConcatDataset([Subset(dataset, [1, 0]), dataset]),
    "nested": lambda dataset: Subset(
        ConcatDataset([random_split(dataset, [0.8, 0.2], generator())[0], dataset]), [3, 0]
    ),
}


@pytest.mark.parametrize("kind", ["FakeData", "ImageFolder", "MNIST", "CIFAR10"])
def test_the_pool_gets_the_transforms_of_the_validation_data(tmp_path, kind):
    images = open_images(kind, tmp_path)
    train, plain = images(True, transform=AUGMENT, target_transform=minus_one), images(True)
    val = images(False, transform=EVALUATE)
    for wrap in WRAPPERS.values():
        wrapped, expected = wrap(train), wrap(plain)
        view = with_transforms_of(wrapped, Subset(ConcatDataset([val, val]), [0]))
        assert type(view) is type(wrapped)
        assert len(view) == len(wrapped) == len(expected)
        for index in range(len(view)):
            image, label = expected[index]
            assert torch.equal(view[index][0], EVALUATE(image))
            assert view[index][1] == label
            assert wrapped[index][0].shape == view[index][0].shape
            assert wrapped[index][1] == label - 1
        assert differing_samples(view) == []
    assert train.transform is AUGMENT
    assert val.transform is EVALUATE
    view = with_transforms_of(train, val)
    for name in {"data", "targets", "samples", "imgs"} & set(vars(train)):
        assert getattr(view, name) is getattr(train, name)  # shared, not copied


def test_joint_transforms_of_image_and_mask_are_replaced_too(tmp_path):
    cls = write_voc_segmentation(tmp_path)

    def flip(image, mask):
        return T.functional.hflip(image), T.functional.hflip(mask)

    train, val = cls(tmp_path, transforms=flip), cls(tmp_path, image_set="val", transform=EVALUATE)
    image, mask = cls(tmp_path)[2]
    viewed, mask_viewed = with_transforms_of(Subset(train, [4, 2]), val)[1]
    assert torch.equal(viewed, EVALUATE(image))
    assert np.array_equal(mask_viewed, mask)
    assert np.array_equal(train[2][1], T.functional.hflip(mask))


class TransformedSubset(Subset):
    """What many a tutorial writes to give the parts of a random split their own transforms."""

    def __init__(self, dataset, indices, transform):
        super().__init__(dataset, indices)
        self.transform = transform

    def __getitem__(self, index):
        image, label = self.dataset[self.indices[index]]
        return self.transform(image), label

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_a_subset_with_a_transform_of_its_own_is_understood():
    images = FakeData(12, (3, 10, 12), 4)
    train, val = TransformedSubset(images, [3, 1, 2], AUGMENT), TransformedSubset(images, [5], EVALUATE)
    view = with_transforms_of(train, val)
    assert torch.equal(view[0][0], EVALUATE(images[3][0]))
    assert torch.equal(with_transforms_of(FakeData(12, (3, 10, 12), 4, AUGMENT), val)[2][0], EVALUATE(images[2][0]))
    assert train.transform is AUGMENT
    assert view.dataset is images


def test_attributes_that_the_reference_lacks_stay():
    train = FakeData(4, (3, 10, 12), 4, transform=AUGMENT, target_transform=minus_one)
    view = with_transforms_of(train, Items([0], transform=EVALUATE))
    assert view.target_transform is minus_one
    assert torch.equal(view[1][0], EVALUATE(FakeData(4, (3, 10, 12), 4)[1][0]))


class ReadOnly(Items):
    transform = property(lambda self: AUGMENT)


@pytest.mark.parametrize(
    ("train", "reference"),
    [
        (ToyDataset(8), FakeData(4, transform=EVALUATE)),
        (FakeData(4, transform=AUGMENT), ToyDataset(8)),
        (FakeData(4, transform=AUGMENT), Subset(ToyDataset(8), [1])),
        (FakeData(4, transform=AUGMENT), None),
        (TensorDataset(torch.zeros(3)), TensorDataset(torch.zeros(3))),
        (ConcatDataset([FakeData(4, transform=AUGMENT), ToyDataset(8)]), FakeData(4, transform=EVALUATE)),
        (Subset(ToyDataset(8), [1]), FakeData(4, transform=EVALUATE)),
        (ReadOnly([1, 2]), FakeData(4, transform=EVALUATE)),
    ],
)
def test_data_without_transform_attributes_gives_none(train, reference):
    assert with_transforms_of(train, reference) is None


# ---------------------------------------------------------------- two reads


def numpy_draw(count):
    return np.random.rand(count)[0]


def python_draw(count):
    return random.random()


@pytest.mark.parametrize("draw", [torch.rand, numpy_draw, python_draw])
def test_random_samples_are_found_and_the_random_numbers_left_alone(draw):
    dataset = Noisy(range(100), noisy={33, 99}, draw=draw)
    before = rng_states()
    assert differing_samples(dataset) == [33, 99]
    assert rng_states() == before
    assert dataset.read == [0, 0, 33, 33, 66, 66, 99, 99]


def test_an_augmentation_is_found_and_a_deterministic_transform_is_not():
    torch.manual_seed(0)
    assert differing_samples(FakeData(40, (3, 10, 12), 4, transform=AUGMENT)) == [0, 13, 26, 39]
    assert differing_samples(FakeData(40, (3, 10, 12), 4, transform=EVALUATE)) == []
    assert differing_samples(ToyDataset()) == []


@pytest.mark.parametrize(("size", "count", "read"), [(1, 4, [0]), (2, 4, [0, 1]), (3, 4, [0, 1, 2]), (9, 1, [0])])
def test_a_small_dataset_is_read_once_over(size, count, read):
    dataset = Noisy(range(size), noisy=set(range(size)))
    assert differing_samples(dataset, count) == read


def test_a_sample_that_cannot_be_read_leaves_the_random_numbers_alone():
    before = rng_states()
    with pytest.raises(OSError, match="broken image"):
        differing_samples(Broken(range(3)))
    with pytest.raises(OSError, match="broken image"):
        fingerprint(Broken(range(3)))
    assert rng_states() == before


# ---------------------------------------------------------------- fingerprints


def hugging_face(values):
    from datasets import Dataset as HuggingFaceDataset

    return HuggingFaceDataset.from_dict({"text": [f"number {value}" for value in values], "label": list(values)})


def image(value):
    return Image.fromarray(np.full((4, 5, 3), value, dtype=np.uint8))


KINDS = {
    "tensors": lambda values: TensorDataset(torch.tensor(values).float(), torch.tensor(values)),
    "dicts": lambda values: StackDataset(x=torch.tensor(values).bfloat16(), y=[value > 3 for value in values]),
    "nested": lambda values: Items([{"a": [value, (None, {"b": value / 7})]} for value in values]),
    "images": lambda values: Items([(image(value), 0) for value in values]),
    "palette": lambda values: Items([(image(value).convert("L").convert("P"), 0) for value in values]),
    "numpy": lambda values: Items([(np.full((2, 2), value), np.float32(value)) for value in values]),
    "objects": lambda values: Items([np.array([f"number {value}", None, value], dtype=object) for value in values]),
    "words": lambda values: Items([np.array([f"number {value}", "of"]) for value in values]),
    "strings": lambda values: Items([f"number {value}" for value in values]),
    "bytes": lambda values: Items([bytes([value]) for value in values]),
    "complex": lambda values: Items([(complex(0, value), torch.tensor(value * 1j)) for value in values]),
    "hugging_face": hugging_face,
    "split": lambda values: Subset(KINDS["images"](values), range(len(values))),
}


def fingerprints():
    return {kind: fingerprint(make(list(range(8)))) for kind, make in KINDS.items()}


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("tensors", "2ade2be17853a528"),
        ("dicts", "88aeec605f544d7b"),
        ("nested", "12ca14717fe30386"),
        ("numpy", "de07520da8642f53"),
        ("objects", "1d4edb3446afa02e"),
        ("strings", "d6de3bd2eb19c1f4"),
        ("bytes", "77a98f2aa5a822eb"),
    ],
)
def test_fingerprints_are_those_in_the_files_of_earlier_runs(kind, digest):
    assert fingerprint(KINDS[kind](list(range(8)))) == digest


@pytest.mark.sweep
def test_fingerprints_are_the_same_where_strings_have_other_hashes():
    script = "import json; from tests.data.test_datasets import fingerprints; print(json.dumps(fingerprints()))"
    environment = {**os.environ, "PYTHONHASHSEED": "271828"}
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout.splitlines()[-1]) == fingerprints()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_tells_order_content_and_size(kind):
    make = KINDS[kind]
    values = list(range(8))
    others = [values[::-1], [1, 0, *values[2:]], [*values[:5], 9, 6, 7], [*values, 8], values[:7]]
    digests = [fingerprint(make(values)), *(fingerprint(make(other)) for other in others)]
    assert len(set(digests)) == len(digests)
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)
    assert fingerprint(make(values)) == digests[0]


def test_a_fingerprint_tells_the_type_the_shape_and_the_size():
    made = [
        TensorDataset(torch.zeros(8, 4)),
        TensorDataset(torch.zeros(8, 2, 2)),
        TensorDataset(torch.zeros(8, 4, dtype=torch.int32)),
        Items([(np.zeros(4, dtype=np.float32),)] * 8),
        Items([([0.0] * 4,)] * 8),
        Items([{"x": 0}] * 8),
        Items([{"y": 0}] * 8),
        Items([[0, 0]] * 8),
        Items([(0, 0)] * 8),
        Items([(0, 0)] * 9),
    ]
    assert len(set(map(fingerprint, made))) == len(made)


def test_a_fingerprint_reads_eight_samples_by_plain_integers():
    dataset = Items(range(1000))
    fingerprint(dataset)
    assert sorted(set(dataset.read)) == [0, 143, 285, 428, 571, 714, 856, 999]


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_another_transform_is_the_same_data(tmp_path, wrap):
    cls = write_image_folder(tmp_path)
    made = [cls(tmp_path, transform=transform) for transform in (None, AUGMENT, EVALUATE)]
    made.append(cls(tmp_path, transform=EVALUATE, target_transform=minus_one))
    before = rng_states()
    digests = {fingerprint(wrap(dataset)) for dataset in made}
    assert rng_states() == before
    assert len(digests) == 1
    for path in tmp_path.glob("*/*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert fingerprint(wrap(made[0])) not in digests


class NeedsTransform(Items):
    def __getitem__(self, index):
        value = super().__getitem__(index)
        return self.prepare(value) if self.mode == "call" else self.prepare.weight * value

    @property
    def prepare(self):
        return self.transform


@pytest.mark.parametrize("mode", ["call", "attribute"])
def test_a_dataset_that_cannot_do_without_its_transform_keeps_it(mode):
    transform = torch.nn.Linear(1, 1)
    transform.weight.data.fill_(2.0)
    transform.forward = lambda value: 2.0 * value
    made = [NeedsTransform(values, transform=transform, mode=mode) for values in (range(8), range(8), range(1, 9))]
    first, again, other = map(fingerprint, made)
    assert first == again != other


def test_random_samples_count_with_their_shape_only():
    noisy = set(range(8))
    torch.manual_seed(0)
    first = fingerprint(Noisy(range(8), noisy))
    torch.manual_seed(1)
    assert fingerprint(Noisy(range(8), noisy)) == first
    assert fingerprint(Noisy(range(9), noisy)) != first
    assert fingerprint(Noisy(torch.zeros(8, 2), noisy)) != first
    assert fingerprint(Noisy(range(8), noisy - {3})) != first


# ---------------------------------------------------------------- labels


class Unreadable(Items):
    def __getitem__(self, index):
        raise AssertionError("labels in an attribute need no reading")


@pytest.mark.parametrize("name", ["targets", "labels", "y"])
@pytest.mark.parametrize("kind", [list, torch.tensor, np.array, lambda labels: np.array(labels)[:, None]])
def test_labels_come_from_an_attribute(name, kind):
    dataset = Unreadable(range(4), **{name: kind([2, 0, 1, 2])})
    assert class_labels(dataset) == [2, 0, 1, 2]
    assert {type(label) for label in class_labels(dataset)} == {int}
    assert class_labels(Subset(Subset(dataset, [3, 1, 0]), [2, 1])) == [2, 0]
    first, second = random_split(dataset, [3, 1], generator())
    assert sorted(class_labels(first) + class_labels(second)) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.zeros(3, 2), torch.tensor([1, 0, 2])),
        StackDataset(image=torch.zeros(3, 2), label=[1, 0, 2]),
        Items([{"x": 0, "target": np.int64(label)} for label in (1, 0, 2)]),
        Items([(0, torch.tensor([label])) for label in (1, 0, 2)]),
        Items([(0, np.array([label])) for label in (1, 0, 2)]),
        Items([(0, float(label)) for label in (1, 0, 2)]),
        Items([(0, label) for label in (1, 0, 2)], targets=[5, 5]),
        Items([(0, label) for label in (1, 0, 2)], labels=print),
        ConcatDataset([Items([(0, 1)], targets=[1]), Items([("text", 0), ("text", 2)])]),
        hugging_face([1, 0, 2]),
    ],
)
def test_labels_are_read_where_there_is_no_attribute(dataset):
    assert class_labels(dataset) == [1, 0, 2]
    assert {type(label) for label in class_labels(dataset)} == {int}


def test_labels_of_files_in_the_genuine_formats(tmp_path):
    assert class_labels(write_mnist(tmp_path / "m")(tmp_path / "m")) == [*range(10), 0, 1]
    cifar = write_cifar10(tmp_path / "c")(tmp_path / "c", transform=AUGMENT)
    assert class_labels(Subset(cifar, [14, 0, 3])) == [6, 0, 1]
    assert class_labels(write_image_folder(tmp_path / "f", 2, 3)(tmp_path / "f")) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("dataset", "found"),
    [
        (Items(["text"]), r"str"),
        (TensorDataset(torch.zeros(3, 2)), r"tuple\(Tensor\(2,\) of torch.float32\)"),
        (Items([(0, torch.zeros(2))]), r"tuple\(int, Tensor\(2,\)"),
        (Items([(0, [1, 0])]), r"tuple\(int, list\(int, int\)\)"),
        (Items([(0, 0.7)]), r"tuple\(int, float\)"),
        (Items([(0, "cat")]), r"tuple\(int, str\)"),
        (Items([{"x": 0}]), r"dict\(x: int\)"),
        (Items([0], targets=[[0, 1]]), r"list\(int, int\)"),
        (Items([0], targets=[{"boxes": torch.zeros(1, 4)}]), r"dict\(boxes: Tensor\(1, 4\)"),
    ],
)
def test_a_sample_without_a_class_is_shown_with_the_remedy(dataset, found):
    with pytest.raises(ValueError, match=rf"Found no class label in .*{found}.*leave `balanced_start` off"):
        class_labels(dataset)


# ---------------------------------------------------------------- the first draw


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1, 1),
        (0.25, 0.25),
        (1.0, 1.0),
        ([3, 1], [3, 1]),
        ((3, 1), [3, 1]),
        (range(2), [0, 1]),
        (np.int64(7), 7),
        (np.float64(0.5), 0.5),
        (np.array([3, 1]), [3, 1]),
        (torch.tensor([3, 1]), [3, 1]),
    ],
)
def test_every_form_of_an_initial_size_becomes_plain_numbers(given, expected):
    checked = check_initial_size(given)
    assert checked == expected
    assert type(checked) is type(expected)
    assert not isinstance(checked, list) or {type(index) for index in checked} == {int}


@pytest.mark.parametrize("given", [0, -1, 0.0, 1.5, -0.1, float("nan"), True, None, "10", np.int64(0), {}])
def test_an_initial_size_that_is_none_is_refused(given):
    shown = re.escape(f"`ActiveLearningDataModule(initial_size={getattr(given, 'item', lambda: given)()!r})`")
    with pytest.raises(ValueError, match=f"{shown}: expected a number of samples .* share .* sequence of dataset"):
        check_initial_size(given)


@pytest.mark.parametrize(
    ("initial_size", "count"), [(1, 1), (7, 7), (30, 30), (0.2, 6), (0.05, 2), (0.001, 1), (1.0, 30)]
)
def test_a_draw_has_the_size_asked_for(initial_size, count):
    dataset = Unreadable(range(30))
    drawn = draw_initial(dataset, initial_size, generator(3))
    assert len(drawn) == len(set(drawn)) == count
    assert set(drawn) <= set(range(30))
    assert {type(index) for index in drawn} == {int}
    assert draw_initial(dataset, initial_size, generator(3)) == drawn
    # a larger start has the smaller one in it
    assert draw_initial(dataset, 30, generator(3))[:count] == drawn
    assert count == 30 or draw_initial(dataset, 29, generator(4)) != draw_initial(dataset, 29, generator(3))


def test_given_indices_are_taken_as_they_are():
    assert draw_initial(Unreadable(range(5)), [4, 0], generator(), balanced=True) == [4, 0]


def test_a_draw_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"`ActiveLearningDataModule\(initial_size=31\)`: the dataset has 30 samples"):
        draw_initial(Unreadable(range(30)), 31, generator())


@given(labels=st.lists(st.integers(-1, 4), min_size=1, max_size=40), seed=st.integers(0, 2**31), data=st.data())
def test_a_balanced_draw_takes_the_classes_in_turns(labels, seed, data):
    count = data.draw(st.integers(1, len(labels)))
    drawn = draw_initial(Unreadable(labels, targets=labels), count, generator(seed), balanced=True)
    assert len(set(drawn)) == count
    available, taken = Counter(labels), Counter(labels[index] for index in drawn)
    most = max(taken.values())
    assert all(taken[label] >= min(most - 1, available[label]) for label in available)
    order = draw_initial(Unreadable(labels), len(labels), generator(seed))
    for label in taken:  # within a class, the draw is the random one
        of_class = [index for index in order if labels[index] == label]
        assert [index for index in drawn if labels[index] == label] == of_class[: taken[label]]
