"""Norms, summed in an order that depends on the number of elements alone.

The same bits on any processor and for any layout in memory: every addition is written out, none is left
to a library's ``sum``, which adds in an order that it chooses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType

from ..backend import Array
from .parts import namespace_of

#: elements that are summed among themselves first
BLOCK = 4096

#: elements that are squared at a time, on a CPU; a multiple of BLOCK
CHUNK = 32 * BLOCK


def global_norm(arrays: Mapping[str, Array]) -> float:
    """Return the Euclidean norm of all elements of some arrays, as if they were one vector.

    Squares are summed in float64: by blocks of 4096 elements, then over blocks, then over arrays by
    name, each by halves (element i with element i + n/2), zeros filling up what isn't a power of two.

    Example:
        >>> import numpy as np
        >>> global_norm({"a": np.array([3.0]), "b": np.array([[4.0]])})
        5.0
    """
    squares = 0.0
    for name in sorted(arrays):
        squares += _squares(arrays[name])
    return math.sqrt(squares)


def _squares(array: Array) -> float:
    xp = namespace_of(array)
    flat = xp.ascontiguousarray(array).reshape(-1)
    if not flat.size:
        return 0.0
    blocks = -(-flat.size // BLOCK)
    sums = xp.zeros(_power_of_two(blocks), xp.float64)
    chunk = CHUNK if xp.__name__ == "numpy" else blocks * BLOCK
    squares = xp.empty(min(chunk, blocks * BLOCK), xp.float64)
    for begin in range(0, flat.size, chunk):
        part = flat[begin : begin + chunk]
        rows = -(-part.size // BLOCK)
        squares[: part.size] = part
        squares[part.size : rows * BLOCK] = 0.0
        table = squares[: rows * BLOCK].reshape(rows, BLOCK)
        xp.multiply(table, table, out=table)
        first = begin // BLOCK
        sums[first : first + rows] = _halve(table, xp)
    return float(_halve(sums.reshape(1, -1), xp)[0])


def _halve(table: Array, xp: ModuleType) -> Array:
    """Return the sum of each row, whose width is a power of two; overwrites the table."""
    width = table.shape[1]
    while width > 1:
        width //= 2
        xp.add(table[:, :width], table[:, width : 2 * width], out=table[:, :width])
    return table[:, 0]


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
