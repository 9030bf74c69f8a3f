import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split
from torchvision import transforms as T
from torchvision.datasets import FakeData

from lightning_al.data.evaluation_view import check_same_samples, with_transforms_of
from lightning_al.data.fingerprint import differing_samples, fingerprint, warn_if_reads_differ
from lightning_al.data.initial_labels import check_initial_size, draw_initial
from lightning_al.testing import ToyDataset
from tests.image_files import write_cifar10, write_image_folder, write_mnist, write_voc_segmentation


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


class Unreadable(Items):
    def __getitem__(self, index):
        raise AssertionError("what an attribute holds needs no reading")


def fail(samples):
    raise ValueError("expected another number of samples")


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


# ---------------------------------------------------------------- the same samples


class Files(Items):
    """Items with a path each."""

    def __init__(self, paths):
        super().__init__(range(len(paths)), paths=paths)


PATHS = ["/a/0.png", "/a/b/1.png", "/a/2.png"]
EYE = torch.eye(3).byte()


@pytest.mark.parametrize(
    ("train", "pool", "difference"),
    [
        (Files(PATHS), Files([path.replace("/a/", "/elsewhere/") for path in PATHS]), None),
        (Files(PATHS), Files(PATHS[::-1]), r"`paths` has '2\.png' where it has '0\.png'"),
        (Subset(Files(PATHS), [0, 1]), Subset(Files(PATHS), [0, 2]), r"`paths` has '2\.png' where it has 'b/1\.png'"),
        (Files(PATHS), Items(range(3)), None),
        (Subset(Items(range(9)), [0, 1]), Subset(Items(range(9)), [0, 2]), "it takes other samples of its Items"),
        (Subset(Items(range(9)), [0, 1]), Subset(Items(range(8)), [0, 2]), None),
        (ConcatDataset([Files(PATHS), Items([0])]), ConcatDataset([Files(PATHS[::-1]), Items([0])]), "`paths` has"),
        (ConcatDataset([Files(PATHS), Items([0])]), ConcatDataset([Items([0]), Files(PATHS[::-1])]), None),
        (Items(range(3), data=EYE, targets=0), Items(range(3), data=EYE.clone(), targets=1), None),
        (Items(range(3), data=EYE, targets=0), Items(range(3), data=EYE.flip(0), targets=0), "sample 0 of its `data`"),
        (TensorDataset(EYE), TensorDataset(EYE.flip(0)), None),  # may be inputs after another preparation
    ],
)
def test_a_pool_dataset_of_other_samples_is_refused_where_that_can_be_seen(train, pool, difference):
    if difference is None:
        check_same_samples(train, pool)
        return
    expected = rf"pool_dataset=\.\.\.\)`: expected the {len(train)} training samples in the same order .*{difference}"
    with pytest.raises(ValueError, match=expected):
        check_same_samples(train, pool)


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


def mix(samples):
    return torch.stack([torch.tensor(float(sample)) for sample in samples]) * torch.rand(1)


@pytest.mark.parametrize("collate", [mix, torch.tensor, fail])
def test_a_random_collate_function_is_warned_about(collate, recwarn):
    before = rng_states()
    warn_if_reads_differ(Items(range(9)), collate)
    assert rng_states() == before
    assert len(recwarn) == (collate is mix)
    assert all("depend on the augmentation in `collate_fn`" in str(warning.message) for warning in recwarn)


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
