"""Norm blocks: the gradient's norm from sums over fixed blocks, so that owners of slices find the same."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ..backend import Array, array_namespace
from ..device.arrays.tile_sums import tiles_of

#: elements of the gradient whose squares are summed among themselves; slices begin at multiples of it; two tiles
NORM_BLOCK = 4096


def block_squares(grad: Array) -> np.ndarray:
    """Return the sum of squares of each `NORM_BLOCK` elements of a gradient, or of a slice that begins at one.

    Args:
        grad: shape (n,); the last block may be smaller.

    Returns:
        Float64, on the host. Those of slices, put together, are those of the whole, to the bit.
    """
    xp = array_namespace()
    if xp is not np:
        return _on_device(grad, xp)
    whole = len(grad) // NORM_BLOCK * NORM_BLOCK
    table = grad[:whole].reshape(-1, NORM_BLOCK)
    squares = xp.einsum("ij,ij->i", table, table).astype(xp.float64)
    rest = grad[whole:]
    if len(rest):
        squares = xp.concatenate([squares, xp.einsum("i,i->", rest, rest).astype(xp.float64).reshape(1)])
    return squares


def _on_device(grad: Array, xp: ModuleType) -> np.ndarray:
    """Sums in an order that each block's elements alone fix, in one pass; a block is two tiles."""
    if not len(grad):
        return np.zeros(0)
    tiles = tiles_of(grad[:, None], xp, grad).get()[:, 0]
    if len(tiles) % 2:
        tiles = np.append(tiles, 0.0)
    return tiles[0::2] + tiles[1::2]
