"""Gather: rows by their numbers, of all columns in one kernel, with nulls where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np

from ...backend import Array
from ..column import DeviceColumn
from ..modules import kernel, launch, on_device

#: rows that a thread takes, as in the source
_EACH = 4


def take_columns(columns: Sequence[DeviceColumn], rows: Array, xp: ModuleType) -> list[DeviceColumn]:
    """Return rows of columns, each of which must be there.

    Traffic, in bytes a row: the width of a row's number, once; and for a column of width w, w written and w read from
    anywhere (a sector of 32 if rows are apart); as much again for marks of nulls, with a width of 1.

    Args:
        columns: of as many rows as one another.
        rows: shape (n,), any integer dtype.
        xp: NumPy or CuPy.

    Returns:
        Columns of n rows.

    Example:
        >>> import pyarrow as pa
        >>> from ..column import to_device
        >>> take_columns([to_device(pa.array([5, 6]), np)], np.array([1, 0, 1]), np)[0].values.tolist()
        [6, 5, 6]
    """
    count = int(rows.shape[0])
    if not on_device(xp) or not count:
        return [column.take(rows) for column in columns]
    there = rows if rows.dtype in (np.int32, np.int64) else rows.astype(np.int64)
    sources = [array for c in columns for array in (c.values, c.valid) if array is not None]
    sources = [xp.ascontiguousarray(array) for array in sources]
    moved = [xp.empty(count, dtype=array.dtype) for array in sources]
    _launch(sources, moved, [], [], there, xp)
    found = iter(moved)
    return [
        replace(c, values=next(found), valid=None if c.valid is None else next(found))  # in this order
        for c in columns
    ]


def take_columns_or_null(columns: Sequence[DeviceColumn], rows: Array, xp: ModuleType) -> list[DeviceColumn]:
    """Return rows of columns, null where a row is -1.

    Traffic: as `take_columns`, with marks of nulls for each column written.

    Args:
        columns: may have no rows, if all of ``rows`` are -1.
        rows: shape (n,), dtype int64.
        xp: NumPy or CuPy.

    Returns:
        Columns of n rows, with 0 under nulls.
    """
    count = int(rows.shape[0])
    if not on_device(xp):
        return [_on_host(column, rows) for column in columns]
    sources = [xp.ascontiguousarray(column.values) for column in columns]
    known = [None if column.valid is None else xp.ascontiguousarray(column.valid) for column in columns]
    moved = [xp.empty(count, dtype=array.dtype) for array in sources]
    marks = [xp.empty(count, dtype=bool) for _ in columns]
    _launch(sources, moved, known, marks, rows, xp)
    return [replace(c, values=values, valid=valid) for c, values, valid in zip(columns, moved, marks)]


def take_or_null(column: DeviceColumn, rows: Array, xp: ModuleType) -> DeviceColumn:
    """Return rows of a column, null where a row is -1; see `take_columns_or_null`.

    Example:
        >>> import pyarrow as pa
        >>> from ..column import to_arrow, to_device
        >>> to_arrow(take_or_null(to_device(pa.array([5, 6]), np), np.array([1, -1, 0]), np)).to_pylist()
        [6, None, 5]
    """
    return take_columns_or_null([column], rows, xp)[0]


def _launch(
    sources: Sequence[Array],
    moved: Sequence[Array],
    known: Sequence[Array | None],
    marks: Sequence[Array],
    rows: Array,
    xp: ModuleType,
) -> None:
    """Move items; with marks where there are any."""
    count = int(rows.shape[0])
    if not sources or not count:
        return
    words = np.zeros((len(sources), 5), np.uint64)
    for word, source, out in zip(words, sources, moved):
        word[:3] = source.data.ptr, out.data.ptr, source.dtype.itemsize
    for word, valid, mark in zip(words, known, marks):
        word[3:] = 0 if valid is None else valid.data.ptr, mark.data.ptr
    index = "int" if rows.dtype == np.int32 else "i64"
    take = kernel(xp, "gather", "take_columns", INDEX=index, NULLS=int(bool(marks)))
    args = [xp.asarray(words), np.int32(len(sources)), xp.ascontiguousarray(rows), np.int64(count)]
    launch(take, count, args, each=_EACH)


def _on_host(column: DeviceColumn, rows: np.ndarray) -> DeviceColumn:
    there = rows >= 0
    if column.valid is not None and len(column):
        there = there & column.valid[rows]
    values = np.zeros(len(rows), column.values.dtype)
    values[there] = column.values[rows[there]]
    return replace(column, values=values, valid=there)
