"""K-means and logistic regression in NumPy, as users of engines that train nothing would write them.

Threads take the rows in blocks, so that what is computed from them stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from workloads import GRADIENT_STEPS, LLOYD_ITERATIONS, POINT_COLUMNS, RATE

BLOCK = 1 << 14


def kmeans(points: np.ndarray, centers: np.ndarray, threads: int) -> pa.Table:
    """Lloyd's algorithm.

    Args:
        points: shape (rows, columns), float64.
        centers: shape (clusters, columns): where to begin.
        threads: how many to use.
    """
    numbers = np.arange(len(centers))

    def sums(rows: slice) -> np.ndarray:
        """What the points of each cluster sum to, and how many they are: shape (clusters, columns + 1)."""
        x = points[rows]
        # The squared distance, but for the point's own square, which is the same for all centers.
        nearest = (np.square(centers).sum(axis=1) - 2.0 * (x @ centers.T)).argmin(axis=1)
        belongs = (nearest[:, None] == numbers).astype(np.float64)
        return np.column_stack([belongs.T @ x, belongs.sum(axis=0)])

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(LLOYD_ITERATIONS):
            total = over_blocks(pool, sums, len(points))
            centers = total[:, :-1] / total[:, -1:]
    return pa.table(dict(zip(POINT_COLUMNS, centers.T.copy())))


def logistic(x: np.ndarray, label: np.ndarray, threads: int) -> pa.Table:
    """Gradient descent over all rows.

    Args:
        x: shape (rows, columns), float64.
        label: shape (rows,), 0 or 1.
        threads: how many to use.
    """
    weights = np.zeros(x.shape[1] + 1)  # the intercept comes last

    def gradient(rows: slice) -> np.ndarray:
        error = 1.0 / (1.0 + np.exp(-(x[rows] @ weights[:-1] + weights[-1]))) - label[rows]
        return np.append(error @ x[rows], error.sum())

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(GRADIENT_STEPS):
            weights = weights - RATE * over_blocks(pool, gradient, len(x)) / len(x)
    return pa.table({"weight": weights})


def over_blocks(pool: ThreadPoolExecutor, part: Callable[[slice], np.ndarray], rows: int) -> np.ndarray:
    """Add up what a function makes of each block of rows."""
    blocks = [slice(start, start + BLOCK) for start in range(0, rows, BLOCK)]
    return sum(pool.map(part, blocks), start=np.float64(0.0))
