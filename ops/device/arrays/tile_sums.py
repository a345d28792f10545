"""Tile sums: float sums over rows in an order that the rows alone fix, so that they are the same on any device.

A tile of 2048 rows is summed in stripes, and the stripes by halves; tiles 16 at a time from left to right, and these
groups from left to right. All in float64.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ...backend import Array
from ..modules import THREADS, kernel, launch, on_device

#: rows of a tile, and tiles of a group
TILE, GROUP = 2048, 16
#: stripes of a tile with several columns
STRIPES = 8


class TileSums:
    """Sums of tiles that come one after the other; how many come at once changes nothing.

    Args:
        width: numbers of a tile.
        xp: the namespace.

    Example:
        >>> sums = TileSums(1, np)
        >>> sums.add(np.array([[1.0], [2.0]]))
        >>> sums.add(np.array([[4.0]]))
        >>> sums.total().tolist()
        [7.0]
    """

    def __init__(self, width: int, xp: ModuleType):
        self.width, self.xp = width, xp
        self._total: Array | None = None
        self._waiting: list[Array] = []

    def add(self, partial: Array) -> None:
        """Take tiles' sums, shape (tiles, width), float64."""
        tiles = self.xp.concatenate([*self._waiting, partial]) if self._waiting else partial
        whole = len(tiles) // GROUP * GROUP
        if whole:
            self._total = self._added(self._total, tiles[:whole])
        self._waiting = [tiles[whole:]] if whole < len(tiles) else []

    def total(self) -> Array:
        """Return the sums so far, shape (width,), float64."""
        total = self._total
        for waiting in self._waiting:
            total = self._added(None if total is None else total.copy(), waiting)
        return self.xp.zeros(self.width, dtype=np.float64) if total is None else total

    def _added(self, total: Array | None, tiles: Array) -> Array:
        """Add tiles to a total, in place. No sum is -0.0, so that the first of all needs no 0 before it."""
        groups = tiles if len(tiles) == 1 else _groups(tiles, self.xp)
        if total is None:
            total, groups = groups[0].copy(), groups[1:]
        _add_groups(total, groups, self.xp)
        return total


def column_sums(values: Array, xp: ModuleType, factors: Array | None = None) -> Array:
    """Sum each column of a matrix over its rows, or a vector.

    Traffic: the matrix is read once, with as many factors; 1 / 2048 of it is written and read in float64.

    Args:
        values: shape (rows, m) or (rows,), float32 or float64.
        xp: NumPy or CuPy.
        factors: shape (rows,), of the same dtype: each row is multiplied by its own, in float64. None is all 1.

    Returns:
        Shape (m,), or (), float64.

    Example:
        >>> column_sums(np.array([[1.0, 2.0], [3.0, 4.0]]), np).tolist()
        [4.0, 6.0]
    """
    table = values[:, None] if values.ndim == 1 else values
    rows, width = table.shape
    sums = TileSums(width, xp)
    if rows and width:
        sums.add(tiles_of(table, xp, factors))
    total = sums.total()
    return total[0] if values.ndim == 1 else total


def striped(terms: np.ndarray, stripes: int) -> np.ndarray:
    """Sum tiles of rows as the kernels do: the twin of what a block computes.

    Args:
        terms: shape (rows, m), float64.
        stripes: of a tile, a power of two.

    Returns:
        Shape (tiles, m), float64.
    """
    rows, width = terms.shape
    tiles = -(-rows // TILE)
    padded = np.zeros((tiles * TILE, width))
    padded[:rows] = terms
    table = padded.reshape(tiles, TILE // stripes, stripes, width)
    sums = np.zeros((tiles, stripes, width))
    for step in range(TILE // stripes):
        sums += table[:, step]
    while stripes > 1:
        stripes //= 2
        sums = sums[:, :stripes] + sums[:, stripes:]
    return sums[:, 0]


def tiles_of(table: Array, xp: ModuleType, factors: Array | None = None) -> Array:
    """Sum each tile of a matrix's rows; arguments as of `column_sums`, with at least one row and column.

    Returns:
        Shape (tiles, m), float64. A tile's sums depend on its own rows alone.
    """
    rows, width = table.shape
    stripes = STRIPES if width > 1 else THREADS
    if not on_device(xp):
        terms = table.astype(np.float64)
        return striped(terms if factors is None else terms * factors.astype(np.float64)[:, None], stripes)
    table = xp.ascontiguousarray(table)
    factors = table if factors is None else xp.ascontiguousarray(factors.astype(table.dtype, copy=False))
    tiles, across = -(-rows // TILE), THREADS // stripes
    partial = xp.empty((tiles, width), dtype=np.float64)
    kernel(xp, "tile_sums", "column_sums", REAL="float" if table.dtype == np.float32 else "double")(
        (tiles, -(-width // across)),
        (THREADS,),
        (
            table,
            factors,
            np.int32(factors is not table),
            np.int64(rows),
            np.int32(width),
            np.int32(stripes),
            partial,
        ),
    )
    return partial


def _groups(tiles: Array, xp: ModuleType) -> Array:
    """Sum tiles 16 at a time; the last group may have fewer."""
    count, width = tiles.shape
    groups = -(-count // GROUP)
    if not on_device(xp):
        padded = np.zeros((groups * GROUP, width))
        padded[:count] = tiles
        sums = np.zeros((groups, width))
        for part in padded.reshape(groups, GROUP, width).transpose(1, 0, 2):
            sums += part
        return sums
    sums = xp.empty((groups, width), dtype=np.float64)
    args = [xp.ascontiguousarray(tiles), np.int64(count), np.int64(width), sums]
    launch(kernel(xp, "tile_sums", "sum_groups", REAL="double"), groups * width, args)
    return sums


def _add_groups(total: Array, groups: Array, xp: ModuleType) -> None:
    count, width = groups.shape
    if not on_device(xp):
        for group in groups:
            total += group
        return
    add = kernel(xp, "tile_sums", "add_groups", REAL="double")
    if count:
        launch(add, width, [xp.ascontiguousarray(groups), np.int64(count), np.int64(width), total])
