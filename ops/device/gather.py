"""Gather: rows by their numbers, with nulls where there is none."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np

from ..backend import Array
from .column import DeviceColumn
from .modules import kernel, launch, on_device


def take_or_null(column: DeviceColumn, rows: Array, xp: ModuleType) -> DeviceColumn:
    """Return rows of a column, null where a row is -1.

    Traffic, in bytes a row, for a column of width w: 9 + w, and w from anywhere (a sector of 32 if rows are apart);
    as much again for marks of nulls, with a width of 1.

    Args:
        column: may have no rows, if all of ``rows`` are -1.
        rows: shape (n,), dtype int64.
        xp: NumPy or CuPy.

    Returns:
        A column of n rows, with 0 under nulls.

    Example:
        >>> import pyarrow as pa
        >>> from .column import to_arrow, to_device
        >>> to_arrow(take_or_null(to_device(pa.array([5, 6]), np), np.array([1, -1, 0]), np)).to_pylist()
        [6, None, 5]
    """
    count, dtype = int(rows.shape[0]), column.values.dtype
    if not on_device(xp):
        there = rows >= 0
        if column.valid is not None and len(column):
            there = there & column.valid[rows]
        values = np.zeros(count, dtype)
        values[there] = column.values[rows[there]]
        return replace(column, values=values, valid=there)
    values, marks = xp.empty(count, dtype=dtype), xp.empty(count, dtype=bool)
    items = xp.ascontiguousarray(column.values)
    valid = items if column.valid is None else xp.ascontiguousarray(column.valid)
    args = [items, valid, np.int32(column.valid is not None), rows, np.int64(count), values, marks]
    launch(kernel(xp, "gather", "take_or_null", WIDTH=dtype.itemsize), count, args, each=4)
    return replace(column, values=values, valid=marks)
