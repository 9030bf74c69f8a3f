from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from lightning_al.storage.settings import describe_changes, lacking_settings, plain, write_settings


class Color(Enum):
    RED = "red"


class Nameless:
    """Its text holds its address."""


def group(threshold, default=1):
    return lambda index, step=default: index // threshold + step


def recursive():
    def count(number):
        return number and count(number - 1)

    return count


def first_letter(text):
    return text[0] in {"a", "b", "c"}


# Makers of one value, each twice with equal and once with another content.
VALUES = {
    "array": (lambda: np.arange(3000.0), lambda: np.arange(3000.0) + (np.arange(3000) == 1500)),
    "tensor": (lambda: torch.eye(40), lambda: torch.eye(40).bfloat16()),
    "lambda": (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    "global": (lambda: lambda x: np.sum(x), lambda: lambda x: np.prod(x)),
    "closure": (lambda: group(5), lambda: group(6)),
    "default": (lambda: group(5), lambda: group(5, 2)),
    "recursive": (recursive, lambda: group(5)),
    "set": (lambda: {"a", "b", "c"}, lambda: {"a", "b"}),
    "network": (lambda: nn.Sequential(*[nn.Linear(2, 2)] * 30), lambda: nn.Sequential(*[nn.Linear(2, 2)] * 31)),
    "object": (Nameless, object),
    "method": (lambda: Nameless().__eq__, lambda: Nameless().__ne__),
    "built-in": (lambda: max, lambda: min),
    "path": (lambda: Path("a/b"), lambda: Path("a/c")),
    "scalar": (lambda: np.float64(0.5), lambda: np.float64(0.25)),
    "enum": (lambda: Color.RED, lambda: "green"),
    "bytes": (lambda: partial(max, 1).func, lambda: b"max"),
}


@pytest.mark.parametrize("kind", VALUES)
def test_settings_are_compared_by_content(tmp_path, kind):
    make, other = VALUES[kind]
    assert plain(make()) == plain(make()) != plain(other())
    write_settings(tmp_path / "config.yaml", {"a": [make()]})
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert describe_changes(kept, plain({"a": (make(),)})) == ""
    assert describe_changes(kept, plain({"a": (other(),)})).startswith("a: [")


def test_settings_stay_legible():
    assert plain(first_letter).startswith("first_letter ")
    assert plain(Nameless()) == "<tests.storage.test_settings.Nameless object>"
    assert len(plain(VALUES["network"][0]())) < 250


def test_sections_that_an_older_file_lacks_are_not_compared():
    before = {"trainer": {"max_epochs": 3}, "data": {"seed": 0}}
    assert lacking_settings(before) == ["model", "data.batch_size"]
    assert lacking_settings({"model": {"class": "Net"}, "data": {"batch_size": 4}}) == ["trainer"]
