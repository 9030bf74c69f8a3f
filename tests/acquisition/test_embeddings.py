"""Where the vectors of strategies that measure distances come from: one mechanism for all of them."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn.functional import normalize

from lightning_al import (
    BAITAcquisition,
    CoreSetAcquisition,
    MarginAcquisition,
    Mixture,
    OncePerGroup,
    ProbCoverAcquisition,
    RandomAcquisition,
    TypiClustAcquisition,
    UncertaintyHerding,
    functional,
)
from lightning_al.acquisition import embeddings
from lightning_al.data.batch import first_input
from lightning_al.numerics.seeding import make_generator
from lightning_al.testing import ToyDataset
from tests.strategy_settings import GROUPS
from tests.wrappers.fits import alone, fit, picks_of

STRATEGIES = {
    "core-set": CoreSetAcquisition,
    "typiclust": TypiClustAcquisition,
    "probcover": partial(ProbCoverAcquisition, radius=0.3),
    "bait": BAITAcquisition,
    "bait of a regression": partial(BAITAcquisition, output="identity"),
    "herding": partial(UncertaintyHerding, acquisition=MarginAcquisition),
    "max herding": partial(UncertaintyHerding, acquisition=RandomAcquisition),
}
WITHOUT_PASS = {"core-set", "typiclust", "probcover", "bait of a regression", "max herding"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, torch.randn(120, 7, generator=make_generator(0)).numpy())
    return str(path)


def vectors_of(name, source):
    """Return the vectors from which a strategy selects, and the indices of their samples, candidates first."""
    prepared, query = alone(STRATEGIES[name](7, embeddings=source))
    parts = prepared.embedding_source.of_query(query, begin=int(name in ("bait", "herding")))
    assert [len(part) for part in parts] == [100, 20]
    return torch.cat(parts), [*query.indices, *query.labeled_indices]


def in_unit_length(name, vectors):
    return vectors if name.startswith(("core", "bait")) else normalize(vectors)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_file_gives_its_rows_and_replaces_the_pass_over_the_data(name, file):
    assert STRATEGIES[name](7, embeddings=file).needs_forward == (name not in WITHOUT_PASS)
    vectors, indices = vectors_of(name, file)
    assert torch.equal(vectors, in_unit_length(name, torch.from_numpy(np.load(file)[indices])))


@pytest.mark.parametrize("name", STRATEGIES)
def test_inputs_give_their_principal_components(name):
    vectors, indices = vectors_of(name, "input")
    points = ToyDataset().points[indices].double().numpy()
    expected = torch.from_numpy(PCA(svd_solver="full").fit(points[:100]).transform(points))
    distances = torch.pdist(in_unit_length(name, expected))  # a component is one up to its sign
    torch.testing.assert_close(torch.pdist(vectors.double()), distances, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [CoreSetAcquisition, partial(UncertaintyHerding, acquisition=RandomAcquisition)])
def test_picks_of_another_part_of_a_mixture_are_covered_by_their_rows(make, file):
    inner, rows = partial(make, embeddings=file), torch.from_numpy(np.load(file))
    _, query = alone(inner(4))
    picks = picks_of(Mixture(8, [RandomAcquisition, inner]))
    candidates = [index for index in query.indices if index not in picks[:4]]
    points, labeled = rows[candidates], rows[[*query.labeled_indices, *picks[:4]]]
    if make is CoreSetAcquisition:
        expected = functional.k_center(points, 4, centers=labeled)
    else:
        points, labeled = normalize(points), normalize(labeled)
        expected = functional.herding(points, 4, labeled=labeled, width=functional.neighbor_width(points))
    assert picks[4:] == [candidates[row] for row in expected.tolist()]


def test_components_are_fitted_on_a_spread_of_the_candidates_that_fits_into_memory(monkeypatch):
    reads = []
    principal_components = embeddings.principal_components
    monkeypatch.setattr(
        embeddings,
        "principal_components",
        lambda points, count: reads.append(points) or principal_components(points, 2),
    )
    monkeypatch.setattr(embeddings, "MAX_FIT_NUMBERS", 30)
    _, query = alone(CoreSetAcquisition(7, embeddings="input"))
    candidates = [query.indices[row] for row in (0, 11, 22, 33, 44, 55, 66, 77, 88, 99)]
    assert torch.equal(reads[0], ToyDataset().points[candidates])
    assert query.pool.shape == (100, 2)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((119, 2), np.float32), "expected numbers of shape (N, D) with 120 rows, one per sample of the"),
        (np.zeros(120, np.float32), "got float32 of shape (120,)"),
        (np.zeros((120, 0), np.float32), "got float32 of shape (120, 0)"),
        (np.array([["a"]] * 120), "got <U1 of shape (120, 1)"),
        (np.array([[None]] * 120), "expected a file that `numpy.save` wrote; "),
    ],
)
def test_a_file_for_another_dataset_is_refused_before_training(array, message, tmp_path):
    np.save(tmp_path / "rows.npy", array, allow_pickle=True)
    acquisition = OncePerGroup(7, partial(CoreSetAcquisition, embeddings=str(tmp_path / "rows.npy")), GROUPS)
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(acquisition)
    assert not acquisition.inner._trained


def test_a_missing_file_is_refused_before_training(tmp_path):
    with pytest.raises(FileNotFoundError):
        fit(CoreSetAcquisition(7, embeddings=str(tmp_path / "none.npy")))


@pytest.mark.parametrize("name", STRATEGIES)
def test_other_sources_and_a_module_that_is_not_used_are_refused(name):
    with pytest.raises(ValueError, match=r"Acquisition\(embeddings='pixels'\)`: expected \"model|Herding\(embeddings"):
        STRATEGIES[name](7, embeddings="pixels")
    with pytest.raises(ValueError, match=r"features='net\.1'\)`: a module was named, but its features are not used"):
        STRATEGIES[name](7, embeddings="input", features="net.1")


def test_inputs_of_several_sizes_are_refused():
    batches = [(torch.rand(2, size), torch.zeros(2)) for size in (3, 4)]
    context = type("Context", (), {"batch": batches[0], "candidates": range(4), "read": lambda indices: batches})
    with pytest.raises(ValueError, match=r"`S\(embeddings=\"input\"\)`: expected inputs of one size, got 3 and 4 num"):
        embeddings.EmbeddingSource("S", "input").prepare(context)


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(2, 3), torch.zeros(2)),
        {"label": torch.zeros(2), "pixels": torch.ones(2, 3)},
        {"index": torch.zeros(2), "image": torch.ones(2, 3), "y": torch.zeros(2)},
        [{"x": torch.ones(2, 3)}, torch.zeros(2)],
    ],
)
def test_the_first_input_is_no_label_and_no_index(batch):
    assert torch.equal(first_input(batch), torch.ones(2, 3))


@pytest.mark.parametrize("batch", [["text", "text"], {"label": torch.zeros(2)}, torch.tensor(1.0), ()])
def test_a_batch_without_a_tensor_of_inputs_is_refused(batch):
    with pytest.raises(TypeError, match="Found no tensor of inputs"):
        first_input(batch)
