"""Norm blocks: the gradient's norm from sums over fixed blocks, so that owners of slices find the same."""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_namespace

#: elements of the gradient whose squares are summed among themselves; slices begin at multiples of it
NORM_BLOCK = 4096


def block_squares(grad: Array) -> np.ndarray:
    """Return the sum of squares of each `NORM_BLOCK` elements of a gradient, or of a slice that begins at one.

    Args:
        grad: shape (n,); the last block may be smaller.

    Returns:
        Float64, on the host. Those of slices, put together, are those of the whole, to the bit.
    """
    xp = array_namespace()
    whole = len(grad) // NORM_BLOCK * NORM_BLOCK
    table = grad[:whole].reshape(-1, NORM_BLOCK)
    squares = xp.einsum("ij,ij->i", table, table).astype(xp.float64)
    rest = grad[whole:]
    if len(rest):
        squares = xp.concatenate([squares, xp.einsum("i,i->", rest, rest).astype(xp.float64).reshape(1)])
    return squares.get() if hasattr(squares, "get") else squares
