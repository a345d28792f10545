"""Compaction: the rows that a mask keeps, in order.

The mask is packed to bits and counted once, and one kernel then moves all columns: it reads the bits, and of each
column the kept items (whole sectors of 32 bytes), and writes them without gaps. Where the mask comes from a predicate,
`chain` has it in bits from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np

from ...backend import Array
from ..modules import kernel, launch, on_device
from ..table import DeviceTable

#: rows that a warp of 32 threads takes
TILE = 1024


def compact(arrays: Sequence[Array], keep: Array, xp: ModuleType) -> list[Array]:
    """Return the items of arrays where a mask is true, in order.

    Traffic, in bytes a row: 1.25 for the mask; and for each array of width w with a share s kept at most w + s * w.

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
    launch(kernel(xp, "compaction", "pack_mask"), tiles * 32, [keep, np.int64(rows), words, counts])
    starts, kept, _ = starts_of(counts, None, xp)
    if kept == rows:
        return list(arrays)
    moved = [xp.empty(kept, dtype=array.dtype) for array in arrays]
    if kept and arrays:
        sources = [xp.ascontiguousarray(array) for array in arrays]
        places = [(one.data.ptr, other.data.ptr, one.dtype.itemsize) for one, other in zip(sources, moved)]
        args = [xp.asarray(np.array(places, np.uint64)), np.int32(len(places)), words, starts, np.int64(rows)]
        launch(kernel(xp, "compaction", "move_kept"), tiles * 32, args)
    return moved


def starts_of(counts: Array, failed: Array | None, xp: ModuleType) -> tuple[Array, int, bool]:
    """Return where the items of each tile begin, how many there are, and whether a flag is set; waits once.

    Args:
        counts: how many each tile has, shape (tiles,), int32; at least one tile.
        failed: shape (1,), int32; None is a flag that isn't set.
        xp: CuPy.

    Returns:
        The starts, shape (tiles + 2,), int64, the last two being the total and the flag; then these two.
    """
    tiles = int(counts.shape[0])
    starts = xp.empty(tiles + 2, dtype=np.int64)
    threads = min(1024, (tiles + 127) // 128 * 32)
    flag = counts if failed is None else failed
    args = [counts, np.int64(tiles), flag, np.int32(failed is not None), starts]
    launch(kernel(xp, "compaction", "scan_counts"), threads, args, threads=threads)
    total, told = starts[tiles:].get().tolist()
    return starts, total, bool(told)


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
