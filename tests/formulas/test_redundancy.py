import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from lightning_al.functional import redundancy


def draw(seed, samples, width=5):
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 10**6), samples=st.integers(2, 30))
def test_equals_scikit_learn(seed, samples):
    features = draw(seed, samples)
    similarities = cosine_similarity(features - features.mean(0))
    np.fill_diagonal(similarities, -np.inf)
    assert float(redundancy(features)) == pytest.approx(similarities.max(1).mean(), abs=1e-12)


def test_twins_are_redundant_and_a_spread_is_not():
    assert float(redundancy(draw(0, 8).repeat(2, 1))) == pytest.approx(1)
    assert float(redundancy(torch.eye(4))) == pytest.approx(-1 / 3)  # the corners of a tetrahedron


def test_blocks_do_not_matter(monkeypatch):
    features = draw(1, 23)
    whole = redundancy(features)
    monkeypatch.setattr(sys.modules["lightning_al.formulas.redundancy"], "BLOCK", 4)
    torch.testing.assert_close(redundancy(features), whole)


def test_samples_that_are_all_the_same_are_no_error():
    assert float(redundancy(torch.ones(3, 2))) == 0


@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (4,)])
def test_refuses_fewer_than_two_rows(shape):
    with pytest.raises(ValueError, match=r"`redundancy\(features\)`: expected at least two rows"):
        redundancy(torch.ones(shape))
