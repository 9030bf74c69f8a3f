import re
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from lightning_al.data.fingerprint import fingerprint
from tests.data.test_datasets import (
    AUGMENT,
    EVALUATE,
    WRAPPERS,
    Items,
    Noisy,
    Unreadable,
    generator,
    minus_one,
    rng_states,
)
from tests.image_files import write_cifar10, write_image_folder, write_mnist


@dataclass
class Fields:
    x: Any
    y: Any


class Named(NamedTuple):
    image: Any
    label: Any


class Graph:
    """As PyTorch Geometric's: read by keys, but no mapping."""

    def __init__(self, **entries):
        self._store = entries

    def keys(self):
        return list(self._store)

    def __getitem__(self, key):
        return self._store[key]


class Plain:
    def __init__(self, x, y):
        self.x, self.y = x, y


def hugging_face(values):
    from datasets import Dataset as HuggingFaceDataset

    return HuggingFaceDataset.from_dict({"text": [f"number {value}" for value in values], "label": list(values)})


def image(value):
    return Image.fromarray(np.full((4, 5, 3), value, dtype=np.uint8))


# Inputs of all kinds, as functions of a number.
INPUTS = {
    "tensor": lambda value: torch.tensor([value, 1.0]),
    "bfloat16": lambda value: torch.tensor(value).bfloat16(),
    "one element with a stride": lambda value: torch.as_strided(torch.tensor([float(value), 0.0]), (1,), (2,)),
    "transposed": lambda value: torch.full((2, 3), value).t(),
    "sparse": lambda value: torch.diag(torch.full((3,), float(value))).to_sparse(),
    "nested": lambda value: torch.nested.nested_tensor([torch.ones(2), value * torch.ones(3)], layout=torch.jagged),
    "conjugated": lambda value: torch.tensor([complex(1, value)]).conj(),
    "quantized": lambda value: torch._make_per_tensor_quantized_tensor(torch.tensor([value]).byte(), 0.5, 0),
    "array": lambda value: np.full((2, 2), value),
    "objects": lambda value: np.array([f"number {value}", None, value], dtype=object),
    "words": lambda value: np.array([f"number {value}", "of"]),
    "image": image,
    "palette": lambda value: image(value).convert("L").convert("P"),
    "text": lambda value: f"number {value}",
    "bytes": lambda value: bytes([value]),
    "path": lambda value: Path(f"{value}.png"),
    "complex": lambda value: complex(0, value),
    "containers": lambda value: {"a": [0, (None, UserDict(b=value / 7))]},
    "dataclass": lambda value: Fields(torch.tensor(value), 0),
    "object": lambda value: Plain(0, {"deep": Plain(value, 0)}),
}

# Samples of all forms, from an input and a target.
SAMPLES = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y, 7],
    "dict": lambda x, y: {"image": x, "mask": y, "label": y},
    "unusual names": lambda x, y: {"question": x, "label": y},
    "dataclass": Fields,
    "named": Named,
    "graph": lambda x, y: Graph(edge_index=x, y=y),
    "object": Plain,
}

KINDS = {
    "tensors": lambda values: TensorDataset(torch.tensor(values).float(), torch.zeros(len(values))),
    "columns": lambda values: StackDataset(x=torch.tensor(values), y=[0] * len(values)),
    "hugging_face": hugging_face,
    "names": lambda values: Unreadable(values, paths=[f"/data/{value}.png" for value in values]),
    "pairs": lambda values: Unreadable(values, samples=[(Path("a") / str(value), 0) for value in values]),
    "records": lambda values: Unreadable(values, data=[{"image": f"{value}.nii", "label": 0} for value in values]),
    "ids": lambda values: Unreadable(values, ids=[value + 7 for value in values]),
    "array": lambda values: Unreadable(values, data=np.array(values), targets=None),
    "split": lambda values: Subset(Items([(image(value), 0) for value in values]), range(len(values))),
    "joined": lambda values: ConcatDataset([TensorDataset(torch.tensor(values)), Items([0])]),
    **{kind: lambda values, make=make: Items([(make(value), 0) for value in values]) for kind, make in INPUTS.items()},
    **{
        f"{kind} sample": lambda values, make=make: Items([make(torch.tensor(value), 0) for value in values])
        for kind, make in SAMPLES.items()
    },
}
VALUES = list(range(8))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_tells_order_content_and_size(kind):
    make = KINDS[kind]
    others = [VALUES[::-1], [1, 0, *VALUES[2:]], [*VALUES[:5], 9, 6, 7], [*VALUES, 8], VALUES[:7]]
    digests = [fingerprint(make(VALUES)), *(fingerprint(make(other)) for other in others)]
    assert len(set(digests)) == len(digests)
    assert all(re.fullmatch("2:[0-9a-f]{16}", digest) for digest in digests)
    assert fingerprint(make(VALUES)) == digests[0]


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("tensors", "2:08cdaaee02443505"),
        ("names", "2:f672ea7ecdec33c3"),
        ("array", "2:660de64d004390cb"),
        ("dict sample", "2:fbf07d2054f503c4"),
        ("text", "2:98ad6bfcff552443"),
    ],
)
def test_fingerprints_are_those_in_the_files_of_earlier_runs(kind, digest):
    assert fingerprint(KINDS[kind](VALUES)) == digest


@pytest.mark.parametrize("kind", SAMPLES)
def test_targets_are_no_part_of_the_identity(kind):
    first, filled_in = (Items([SAMPLES[kind](torch.tensor(value), y) for value in VALUES]) for y in (None, 3))
    assert fingerprint(first) == fingerprint(filled_in)


@pytest.mark.parametrize(
    ("label_key", "make"),
    [(0, lambda y, x: (y, x)), (-3, lambda y, x: [y, x, 0]), ("mood", lambda y, x: {"mood": y, "words": x})],
)
def test_a_declared_target_is_no_part_of_the_identity(label_key, make):
    digests = {fingerprint(Items([make(y, value) for value in VALUES]), label_key) for y in (None, 3)}
    others = {fingerprint(Items([make(3, value + 1) for value in VALUES]), label_key)}
    assert len(digests) == 1
    assert not digests & others


class Untouchable(Items):
    """Its targets cannot be read, in no way."""

    @property
    def targets(self):
        raise AssertionError("a target was read")

    def __getitem__(self, index):
        value = super().__getitem__(index)

        class Sample(dict):
            def __getitem__(self, key):
                return self.targets if key == "label" else super().__getitem__(key)

        return Sample(image=value, label=None)


@pytest.mark.parametrize("attributes", [{}, {"ids": [3, 1, 2]}, {"data": torch.eye(3)}])
def test_targets_are_not_read(attributes):
    assert fingerprint(Untouchable([3, 1, 2], **attributes)) != fingerprint(Untouchable([1, 3, 4]))


@pytest.mark.parametrize(
    "attributes",
    [
        {"ids": list(range(8))},  # they just count
        {"files": ["video.mp4"] * 8},  # of all samples
        {"paths": ["a", "b"]},  # of something else
        {"paths": [None] * 8},
        {"data": np.zeros((8, 2))},  # may hold the targets
        {"images": "12345678"},
    ],
)
def test_attributes_that_identify_nothing_are_passed_over(attributes):
    plain, other = Items(VALUES), Items(VALUES[::-1], **attributes)
    assert fingerprint(Items(VALUES, **attributes)) == fingerprint(plain) != fingerprint(other)


def test_a_fingerprint_tells_the_type_and_the_shape():
    made = [
        TensorDataset(torch.zeros(8, 4)),
        TensorDataset(torch.zeros(8, 2, 2)),
        TensorDataset(torch.zeros(8, 4, dtype=torch.int32)),
        *(Items([(x, 0)] * 8) for x in (np.zeros(4, dtype=np.float32), [0.0] * 4, {"x": 0}, {"y": 0}, [0, 0], (0, 0))),
    ]
    assert len(set(map(fingerprint, made))) == len(made)


def test_reads_are_bounded_and_by_plain_integers():
    dataset = Items(range(1000))
    fingerprint(dataset)
    assert 28 <= len(set(dataset.read)) <= 32
    assert len(dataset.read) == 2 * len(set(dataset.read))


def test_one_changed_sample_among_hundreds_is_seen_in_names_and_in_an_array():
    names, rows = [f"{number}.png" for number in range(800)], torch.arange(250)
    other_names, other_rows = [*names[:77], "x.png", *names[78:]], rows.index_fill(0, torch.tensor(77), -1)
    assert fingerprint(Items(names, paths=names)) != fingerprint(Items(names, paths=other_names))
    assert fingerprint(TensorDataset(rows)) != fingerprint(TensorDataset(other_rows))


def test_the_order_of_all_indices_of_a_subset_counts():
    dataset, order = TensorDataset(torch.arange(50_000)), torch.randperm(50_000, generator=generator()).tolist()
    swapped = [order[1], order[0], *order[2:]]
    assert fingerprint(Subset(dataset, order)) != fingerprint(Subset(dataset, swapped))
    nested = Subset(Subset(ConcatDataset([dataset]), order), range(50_000))
    assert fingerprint(nested) == fingerprint(Subset(dataset, order))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_another_transform_or_folder_is_the_same_data_and_other_files_are_not(tmp_path, wrap):
    folders = [tmp_path / "a", tmp_path / "b" / "c"]
    cls, _ = [write_image_folder(folder) for folder in folders]
    made = [cls(folder, transform=transform) for folder in folders for transform in (None, AUGMENT)]
    made.append(cls(folders[0], transform=EVALUATE, target_transform=minus_one))
    before = rng_states()
    digests = {fingerprint(wrap(dataset)) for dataset in made}
    assert rng_states() == before
    assert len(digests) == 1
    for path in folders[0].glob("*/*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert fingerprint(wrap(made[0])) not in digests


@pytest.mark.parametrize("write", [write_mnist, write_cifar10])
def test_arrays_of_torchvision_are_compared_without_their_targets(tmp_path, write):
    dataset = write(tmp_path)(tmp_path)
    before = fingerprint(dataset)
    dataset.targets[:] = dataset.targets[::-1] if isinstance(dataset.targets, list) else dataset.targets.flip(0)
    assert fingerprint(dataset) == before
    dataset.data = dataset.data[::-1] if isinstance(dataset.data, np.ndarray) else dataset.data.flip(0)
    assert fingerprint(dataset) != before


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


def test_random_inputs_are_read_with_fixed_numbers_and_count_with_their_shape_where_that_does_not_help():
    noisy, other_numbers = set(range(8)), np.random.default_rng(0)

    def draw(count):
        return other_numbers.random()

    torch.manual_seed(0)
    first = fingerprint(Noisy(range(8), noisy))
    torch.manual_seed(1)
    assert fingerprint(Noisy(range(8), noisy)) == first != fingerprint(Noisy(range(1, 9), noisy))
    first = fingerprint(Noisy(range(8), noisy, draw=draw))
    assert fingerprint(Noisy(range(1, 9), noisy, draw=draw)) == first
    assert fingerprint(Noisy(range(9), noisy, draw=draw)) != first
    assert fingerprint(Noisy(torch.zeros(8, 2), noisy, draw=draw)) != first
