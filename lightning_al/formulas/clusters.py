"""Cluster points by scikit-learn."""

import warnings

import torch
from torch import Tensor

# Clusters up to which k-means uses all points at a time; for more it uses batches, as the authors of TypiClust do.
_LARGEST_EXACT = 50
# Points per batch.
_BATCH = 5000


def k_means(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Assign points to clusters by k-means.

    Args:
        points: Points of shape (N, D).
        clusters: Number of clusters, at least 1; at most one per point is made.
        seed: Seed of the first centers, in [0, 2^32).

    Returns:
        The cluster of each point, (N,), on the CPU; some may be empty.

    Raises:
        ModuleNotFoundError: Without scikit-learn.

    """
    try:
        from sklearn.cluster import KMeans, MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Clustering needs scikit-learn: pip install "lightning_al[cluster]".', name="sklearn"
        ) from error
    clusters = min(clusters, len(points))
    if clusters <= _LARGEST_EXACT:
        algorithm = KMeans(clusters, n_init=1, random_state=seed)
    else:
        algorithm = MiniBatchKMeans(clusters, n_init=1, batch_size=_BATCH, random_state=seed)
    with warnings.catch_warnings():
        # points that coincide leave clusters empty, which is allowed
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = algorithm.fit_predict(points.cpu().numpy())
    return torch.from_numpy(labels).long()
