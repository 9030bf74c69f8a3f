import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skactiveml.pool import TypiClust
from sklearn.cluster import KMeans

from lightning_al.formulas.clusters import k_means
from lightning_al.formulas.typiclust import typical_rows
from lightning_al.functional import typiclust


def blobs(centers, size=12, seed=0, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.as_tensor(centers, dtype=torch.float32)
    owners = torch.arange(len(centers)).repeat_interleave(size)
    return centers[owners] + spread * torch.randn(len(owners), centers.shape[1], generator=generator), owners


def most_typical(points, rows, neighbors):
    """The row with the smallest mean distance to its nearest neighbors among `rows`, in NumPy."""
    x = points[rows].double().numpy()
    distances = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, 1 : neighbors + 1]
    return rows[int(distances.mean(1).argmin())]


CORNERS = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]]


def test_each_blob_without_a_label_gets_its_most_typical_point():
    points, owners = blobs(CORNERS)
    labeled = torch.tensor([[10.0, 0.1]])
    rows = typiclust(points, 3, labeled=labeled, seed=0, neighbors=5)
    assert set(owners[rows].tolist()) == {0, 2, 3}
    for row in rows.tolist():
        assert row == most_typical(points, (owners == owners[row]).nonzero().flatten().tolist(), 5)


def test_the_largest_cluster_comes_first_and_outliers_last():
    points, owners = blobs([[0.0, 0.0], [10.0, 0.0]])
    points = torch.cat([points[:20], points.new_tensor([[0.0, 50.0]])])  # 12, 8 and a lone point
    clusters = torch.cat([owners[:20], torch.tensor([2])])
    rows = typical_rows(points, clusters, torch.empty(0, dtype=torch.long), 5)
    assert clusters[rows].tolist() == [0, 1, 0, 1, 0]
    labeled = torch.tensor([0, 0, 1])
    assert clusters[typical_rows(points, clusters, labeled, 3)].tolist() == [1, 0, 1]
    assert typical_rows(points, clusters, labeled, 21).tolist()[-1] == 20


@pytest.mark.parametrize("seed", range(3))
def test_picks_what_scikit_activeml_picks(seed):
    """One per cluster without a label, the largest first, as in its implementation, for clusters above five points."""
    sizes = [9, 14, 11, 20, 17]
    parts = [blobs([[8.0 * i, 3.0 * i]], size=size, seed=seed + i)[0] for i, size in enumerate(sizes)]
    points, labeled = torch.cat([parts[0][1:], *parts[1:]]), parts[0][:1]
    rows = typiclust(points, 4, labeled=labeled, seed=seed, neighbors=5)
    y = np.full(len(points) + 1, np.nan)
    y[-1] = 0
    theirs = TypiClust(cluster_algo=KMeans, cluster_algo_dict={"random_state": seed, "n_init": 5}, k=5, random_state=0)
    picked = theirs.query(torch.cat([points, labeled]).numpy(), y, batch_size=4)
    assert rows.tolist() == picked.tolist()


def test_no_label_at_all_and_one_cluster_only():
    points, owners = blobs(CORNERS)
    nothing = torch.empty(0, 2)
    assert sorted(owners[typiclust(points, 4, labeled=nothing, seed=1)].tolist()) == [0, 1, 2, 3]
    ranked = typiclust(points[:12], 3, labeled=nothing, seed=1, max_clusters=1, neighbors=4)
    assert ranked[0] == most_typical(points, list(range(12)), 4)


def test_many_clusters_are_found_on_parts_of_the_points():
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    rows = typiclust(points, 80, labeled=points[:10] + 0.01, seed=3)
    assert len(set(rows.tolist())) == 80
    assert torch.equal(rows, typiclust(points, 80, labeled=points[:10] + 0.01, seed=3))


def test_blocks_do_not_matter(monkeypatch):
    points, _ = blobs(CORNERS)
    whole = typiclust(points, 9, labeled=points[:1], seed=0)
    # the package gives the function for this name
    monkeypatch.setattr(sys.modules["lightning_al.formulas.typiclust"], "_BLOCK_ELEMENTS", 10)
    assert torch.equal(typiclust(points, 9, labeled=points[:1], seed=0), whole)


def test_points_that_coincide_are_picked_once_each():
    rows = typiclust(torch.ones(7, 2), 7, labeled=torch.ones(2, 2), seed=0)
    assert sorted(rows.tolist()) == list(range(7))


@given(seed=st.integers(0, 100), size=st.integers(1, 25), budget=st.integers(1, 30), labeled=st.integers(0, 5))
def test_picks_are_distinct_rows_of_the_pool(seed, size, budget, labeled):
    points = torch.randn(size + labeled, 3, generator=torch.Generator().manual_seed(seed))
    rows = typiclust(points[:size], budget, labeled=points[size:], seed=seed)
    assert len(set(rows.tolist())) == len(rows) == min(size, budget)
    assert set(rows.tolist()) <= set(range(size))


def test_as_many_clusters_as_points_at_most():
    assert sorted(k_means(torch.tensor([[0.0], [5.0]]), 9, 0).tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_clusters": 0}, r"`typiclust\(labeled, max_clusters=0, neighbors=20\)`: expected at least 1 of both"),
        ({"neighbors": 0}, "neighbors=0"),
        ({"labeled": torch.ones(2, 3)}, r"labeled points of shape \(M, 2\), got \(2, 3\)"),
        ({"budget": 0}, r"`typiclust\(budget=0\)`"),
    ],
)
def test_refuses_what_cannot_be(options, message):
    arguments = {"budget": 1, "labeled": torch.ones(1, 2), "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        typiclust(torch.ones(4, 2), **arguments)


def test_names_the_extra_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"lightning_al\[cluster\]\""):
        typiclust(torch.randn(5, 2), 1, labeled=torch.empty(0, 2), seed=0)
