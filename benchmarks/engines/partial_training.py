"""One partition's part of a step of k-means and of logistic regression, in NumPy, and what the parts together make."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
from workloads import FEATURE_COLUMNS, GRADIENT_STEPS, LLOYD_ITERATIONS, POINT_COLUMNS, RATE

#: calls a function with each partition and the second argument, where the partitions are, and returns the results
Everywhere = Callable[[Callable[[np.ndarray, np.ndarray], np.ndarray], np.ndarray], Iterable[np.ndarray]]


def cluster_sums(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """What the points of each cluster sum to, and how many they are: shape (clusters, columns + 1).

    Args:
        points: shape (rows, columns), float64.
        centers: shape (clusters, columns).
    """
    # The squared distance, but for the point's own square, which is the same for all centers.
    nearest = (np.square(centers).sum(axis=1) - 2.0 * (points @ centers.T)).argmin(axis=1)
    belongs = (nearest[:, None] == np.arange(len(centers))).astype(np.float64)
    return np.column_stack([belongs.T @ points, belongs.sum(axis=0)])


def gradient(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The gradient of the log loss, summed over rows, then their number: shape (columns + 2,).

    Args:
        rows: features, then the label: shape (rows, columns + 1), float64.
        weights: of the features, then the intercept: shape (columns + 1,).
    """
    x, label = rows[:, :-1], rows[:, -1]
    error = 1.0 / (1.0 + np.exp(-(x @ weights[:-1] + weights[-1]))) - label
    return np.concatenate([error @ x, [error.sum(), float(len(rows))]])


def kmeans(everywhere: Everywhere, centers: np.ndarray) -> pa.Table:
    """Lloyd's algorithm from the given centers."""
    for _ in range(LLOYD_ITERATIONS):
        total = sum(everywhere(cluster_sums, centers))
        centers = total[:, :-1] / total[:, -1:]
    return pa.table(dict(zip(POINT_COLUMNS, centers.T.copy())))


def logistic(everywhere: Everywhere) -> pa.Table:
    """Gradient descent over all rows, from zeros."""
    weights = np.zeros(len(FEATURE_COLUMNS) + 1)
    for _ in range(GRADIENT_STEPS):
        total = sum(everywhere(gradient, weights))
        weights = weights - RATE * total[:-1] / total[-1]
    return pa.table({"weight": weights})
