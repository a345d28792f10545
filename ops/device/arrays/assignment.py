"""Assignment: rows put to the nearest of some centers, and summed for each of them, in one pass over the rows.

A distance is scored as ``|c|**2 - 2 x . c`` in the rows' type, products added from the first column to the last; of
equal scores the lowest center counts. Sums are float64: within a tile of 2048 rows a center's rows are added in their
order, and tiles as `headwater.ops.device.arrays.tile_sums` says. So they depend on the rows alone.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ...backend import Array
from ..modules import THREADS, kernel, on_device
from .tile_sums import TILE, TileSums

#: what one kernel takes; beyond, matrix products do it
MOST_CENTERS, MOST_COLUMNS = 510, 128
#: (center, column) pairs that a block sums at once
_PAIRS = 16 * THREADS
#: bytes of a block's rows in shared memory
_ROOM = 34304


def fits(k: int, d: int) -> bool:
    """Whether `CenterSums` takes so many centers of so many columns."""
    return 1 <= k <= MOST_CENTERS and 1 <= d <= MOST_COLUMNS


class CenterSums:
    """Sums of the rows nearest to each center, and how many they are, over blocks that come one after the other.

    Traffic, in bytes a row of d columns of width w, if k * (d + 1) is at most 4096: d * w, read once (and w for a
    weight), 4 for a label, and k * (d + 1) / 128 for partial sums. For more centers labels are read again, and columns
    twice. It takes 2 * k * d operations a row, which for k above some 30 is what it waits for.

    Args:
        centers: shape (k, d), on the host, less ``mean``.
        mean: shape (d,), on the host; is taken from each row first.
        dtype: float32 or float64, of the scores.
        xp: NumPy or CuPy.

    Example:
        >>> sums = CenterSums(np.array([[0.0], [5.0]]), np.zeros(1), np.float64, np)
        >>> sums.add(np.array([[1.0], [4.0], [6.0]])).tolist()
        [0, 1, 1]
        >>> sums.total().tolist()
        [[1.0, 1.0], [10.0, 2.0]]
    """

    def __init__(self, centers: np.ndarray, mean: np.ndarray, dtype: np.typing.DTypeLike, xp: ModuleType):
        self.xp, self.dtype = xp, np.dtype(dtype)
        self.k, self.d = centers.shape
        exact = centers.astype(self.dtype)
        padded = -(-self.k // 8) * 8
        factors, norms = np.zeros((self.d, padded), self.dtype), np.full(padded, np.inf, self.dtype)
        factors[:, : self.k] = -2 * exact.T
        norms[: self.k] = 0
        for column in exact.T:
            norms[: self.k] += column * column
        self._factors, self._norms = _there(factors, xp), _there(norms, xp)
        self._mean = _there(mean.astype(self.dtype), xp)
        self._sums = TileSums(self.k * (self.d + 1), xp)

    def add(self, x: Array, weight: Array | None = None) -> Array:
        """Take a block of rows; all but the last have a multiple of 2048.

        Args:
            x: shape (rows, d), in the order of rows or of columns.
            weight: shape (rows,), or None for 1 each.

        Returns:
            The rows' centers, shape (rows,), int32.
        """
        labels = self.xp.empty(len(x), dtype=np.int32)
        if len(x):
            x = x.astype(self.dtype, copy=False)
            weight = None if weight is None else weight.astype(self.dtype)
            self._sums.add((self._launch if on_device(self.xp) else self._twin)(x, weight, labels))
        return labels

    def total(self) -> Array:
        """Return the sums, shape (k, d + 1), float64: of rows less the mean, and in the last column of weights."""
        return self._sums.total().reshape(self.k, self.d + 1)

    def _launch(self, x: Array, weight: Array | None, labels: Array) -> Array:
        xp, k, d = self.xp, self.k, self.d
        size = self.dtype.itemsize
        part = next(part for part in (256, 128, 64, 32) if (part + 1) * (d + 1) * size <= _ROOM)
        base = x if x.flags.c_contiguous else x.T
        if not base.flags.c_contiguous:
            x = base = xp.ascontiguousarray(x)
        row_step, column_step = (d, 1) if base is x else (1, len(x))
        tiles = -(-len(x) // TILE)
        sums = xp.empty((tiles, k * (d + 1)), dtype=np.float64)
        shared = [
            base,
            np.int64(row_step),
            np.int64(column_step),
            np.int64(len(x)),
            np.int32(d),
            self._mean,
            self._factors,
            self._norms,
            np.int32(k),
            np.int32(len(self._norms)),
            np.int32(part),
            base if weight is None else xp.ascontiguousarray(weight),
            np.int32(weight is not None),
            labels,
        ]
        run = kernel(xp, "assignment", "put_to_centers", REAL="float" if size == 4 else "double")
        if k * (d + 1) <= _PAIRS:
            run((tiles,), (THREADS,), (*shared, np.int32(0), np.int32(d + 1), sums))
            return sums
        columns = _PAIRS // k
        run((tiles,), (THREADS,), (*shared, np.int32(0), np.int32(0), sums))
        run((tiles, -(-(d + 1) // columns)), (THREADS,), (*shared, np.int32(1), np.int32(columns), sums))
        return sums

    def _twin(self, x: np.ndarray, weight: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
        x = x - self._mean
        scores = np.zeros((len(x), len(self._norms)), self.dtype)
        for column, factors in zip(x.T, self._factors):
            scores += column[:, None] * factors
        scores += self._norms
        labels[:] = np.where(np.isnan(scores), np.inf, scores).argmin(axis=1)
        rows = np.concatenate([x, np.ones((len(x), 1), self.dtype)], axis=1).astype(np.float64)
        if weight is not None:
            rows *= weight.astype(np.float64)[:, None]
        tiles = -(-len(x) // TILE)
        sums = np.zeros((tiles, self.k, self.d + 1))
        np.add.at(sums, (np.arange(len(x)) // TILE, labels), rows)  # in the order of the rows
        return sums.reshape(tiles, -1)


def _there(array: np.ndarray, xp: ModuleType) -> Array:
    return xp.asarray(array) if on_device(xp) else array
