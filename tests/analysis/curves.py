"""Learning curves and comparisons of a few numbers."""

import numpy as np

from lightning_al.analysis.comparison import Comparison
from lightning_al.analysis.learning_curves import LearningCurves

LABELS = (10.0, 20.0, 40.0)


def make_curves(values, seeds=None, labels=LABELS, query_seconds=0.5):
    values = np.array(values, dtype=float)
    seeds = tuple(range(len(values))) if seeds is None else tuple(seeds)
    shape = values.shape
    return LearningCurves(seeds, np.array(labels), values, np.full(shape, 2.0), np.full(shape, query_seconds))


def compare(curves, metric="test/accuracy", baseline="random", **options):
    return Comparison(curves, metric, baseline, **options)


def compare_three(**options):
    """Compare three strategies over three seeds: margin is always above random, and entropy mostly below."""
    curves = {
        "random": make_curves([[0.5, 0.6, 0.7], [0.4, 0.6, 0.8], [0.5, 0.5, 0.6]]),
        "margin": make_curves([[0.5, 0.8, 0.9], [0.4, 0.7, 0.9], [0.5, 0.7, 0.75]]),
        "entropy": make_curves([[0.5, 0.4, 0.6], [0.4, 0.5, 0.9], [0.5, 0.3, 0.65]]),
    }
    return compare(curves, against=("margin",), **options)


def compare_unequal_seeds():
    """Compare random over four seeds with margin over three; they have two seeds in common."""
    curves = {
        "random": make_curves([[0.2] * 3, [0.3] * 3, [0.1] * 3, [0.9] * 3], seeds=(1, 2, 5, 6)),
        "margin": make_curves([[0.3] * 3, [0.9] * 3, [0.5] * 3], seeds=(0, 1, 2)),
    }
    return compare(curves)
