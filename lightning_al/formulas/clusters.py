"""Clusters of points, by scikit-learn."""

import warnings

import torch
from torch import Tensor

_LARGEST_EXACT = 50  # clusters; more are found on parts of the points at a time, as the authors of TypiClust do
_BATCH = 5000


def k_means(points: Tensor, clusters: int, seed: int) -> Tensor:
    """Assign points to clusters by k-means.

    Args:
        points: Points of shape (N, D).
        clusters: How many, at least 1; no more than there are points are made.
        seed: Of the first centers, in [0, 2^32).

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
        # points that coincide leave clusters empty, which is no failure
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = algorithm.fit_predict(points.cpu().numpy())
    return torch.from_numpy(labels).long()
