"""K-means and logistic regression in NumPy, as users of engines that train nothing would write them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from workloads import GRADIENT_STEPS, LLOYD_ITERATIONS, POINT_COLUMNS, RATE


def kmeans(points: np.ndarray, centers: np.ndarray) -> pa.Table:
    """Lloyd's algorithm.

    Args:
        points: shape (rows, columns), float64.
        centers: shape (clusters, columns): where to begin.
    """
    for _ in range(LLOYD_ITERATIONS):
        # The squared distance, but for the point's own square, which is the same for all centers.
        nearest = (np.square(centers).sum(axis=1) - 2.0 * (points @ centers.T)).argmin(axis=1)
        belongs = (nearest[:, None] == np.arange(len(centers))).astype(np.float64)
        centers = (belongs.T @ points) / belongs.sum(axis=0)[:, None]
    return pa.table(dict(zip(POINT_COLUMNS, centers.T.copy())))


def logistic(x: np.ndarray, label: np.ndarray) -> pa.Table:
    """Gradient descent over all rows.

    Args:
        x: shape (rows, columns), float64.
        label: shape (rows,), 0 or 1.
    """
    weights, intercept = np.zeros(x.shape[1]), 0.0
    for _ in range(GRADIENT_STEPS):
        error = 1.0 / (1.0 + np.exp(-(x @ weights + intercept))) - label
        weights -= RATE * (x.T @ error) / len(x)
        intercept -= RATE * error.mean()
    return pa.table({"weight": [*weights, intercept]})
