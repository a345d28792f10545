"""Compaction: the rows that a mask keeps, in order.

The mask is packed to bits and counted once, and each column then moves by itself: it reads the bits and its kept
items (whole sectors of 32 bytes), and writes them without gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np

from ..backend import Array
from .modules import kernel, launch, on_device
from .table import DeviceTable

#: rows that a warp of 32 threads takes
TILE = 1024


def compact(arrays: Sequence[Array], keep: Array, xp: ModuleType) -> list[Array]:
    """Return the items of arrays where a mask is true, in order.

    Traffic, in bytes a row: 1.13 for the mask, once; and for each array of width w with a share s kept at most
    w + s * w + 0.13.

    Args:
        arrays: each of shape (rows,), of 1, 2, 4 or 8 bytes an item.
        keep: shape (rows,), dtype bool.
        xp: NumPy or CuPy.

    Returns:
        As many arrays, each of shape (kept,); the same arrays, not copies, where everything is kept.

    Example:
        >>> compact([np.array([1, 2, 3])], np.array([True, False, True]), np)[0].tolist()
        [1, 3]
    """
    if not on_device(xp):
        kept = int(np.count_nonzero(keep))
        if kept == len(keep):
            return list(arrays)
        return [array[keep] if kept else array[:0] for array in arrays]
    rows = int(keep.shape[0])
    tiles = (rows + TILE - 1) // TILE
    if not tiles:
        return list(arrays)
    keep = xp.ascontiguousarray(keep)
    words = xp.empty(tiles * 32, dtype=np.uint32)
    counts = xp.empty(tiles, dtype=np.int32)
    launch(kernel(xp, "compaction", "pack_mask", WIDTH=1), tiles * 32, [keep, np.int64(rows), words, counts])
    ends = xp.cumsum(counts, dtype=np.int64)
    kept = int(ends[-1])
    if kept == rows:
        return list(arrays)
    moved = []
    for array in arrays:
        out = xp.empty(kept, dtype=array.dtype)
        if kept:
            move = kernel(xp, "compaction", "move_kept", WIDTH=array.dtype.itemsize)
            launch(move, tiles * 32, [xp.ascontiguousarray(array), words, ends, np.int64(rows), out])
        moved.append(out)
    return moved


def compact_table(table: DeviceTable, keep: Array, xp: ModuleType) -> DeviceTable:
    """Return the rows of a table where a mask is true, in order.

    Args:
        table: the rows.
        keep: shape (rows,), dtype bool.
        xp: NumPy or CuPy.

    Returns:
        A table with the same columns; the same one where everything is kept.
    """
    arrays = [column.values for column in table.columns]
    arrays += [column.valid for column in table.columns if column.valid is not None]
    if not arrays:
        return replace(table, rows=int(xp.count_nonzero(keep)))
    moved = compact(arrays, keep, xp)
    if moved[0] is arrays[0]:
        return table
    valid = iter(moved[len(table.columns) :])
    columns = tuple(
        replace(column, values=values, valid=None if column.valid is None else next(valid))
        for column, values in zip(table.columns, moved)
    )
    return DeviceTable(columns, table.schema, int(moved[0].shape[0]))
