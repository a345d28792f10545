"""Sort keys as few unsigned words a row, in the order of the keys: a device's `key_words`.

Each word is packed from as many keys as the ranges of their values leave room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...backend import Array, to_host
from ...ordering import SortKey
from ..column import DeviceColumn, is_coded
from ..modules import kernel, launch, on_device

#: a word has so many values
WORD = 1 << 64
_MOST = WORD - 1
_SIGN = np.uint64(1 << 63)
#: what the kernels are built for, by dtype
TYPES = {
    np.dtype(dtype): {"float32": "float", "float64": "double"}.get(dtype, dtype)
    for dtype in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    + ("float32", "float64")
}
#: rows that a thread takes
EACH = 8


def sort_words(columns: Sequence[DeviceColumn], keys: Sequence[SortKey], xp: ModuleType) -> list[Array]:
    """Pack sort keys into words; comparing the words in turn compares the keys in turn.

    NaN is above every number, -0.0 equals 0.0, and strings are in the order that the host gives them.

    Traffic, in bytes a row, for each key of width w: w for its range, w for its part, and 1 twice where it has nulls;
    8 for each word, and 16 for each key in it after the first. Strings: 12 more.

    Args:
        columns: one for each key, of equal length.
        keys: most significant first; their column names aren't looked at.
        xp: NumPy or CuPy.

    Returns:
        Arrays of shape (rows,), dtype uint64, as few as the ranges of the values allow; none if all rows are equal.

    Example:
        >>> from ..column import to_device
        >>> x, y = to_device(pa.array([3, 1, None]), np), to_device(pa.array([7, 7, 7]), np)
        >>> [word.tolist() for word in sort_words([x, y], [SortKey("x", descending=True), SortKey("y")], np)]
        [[0, 2, 3]]
    """
    columns = [ranked(column, xp) for column in columns]
    parts: list[
        tuple[DeviceColumn, bool, int, int, int]
    ] = []  # column, descending, low, place of nulls, size
    flips = [key.descending for key in keys]
    for column, key, (low, high) in zip(columns, keys, key_ranges(columns, flips, xp)):
        if low > high:
            continue
        size = high - low + 1
        if column.valid is None:
            parts.append((column, key.descending, low, 0, size))
        elif size < WORD:
            below = int(key.nulls_first)
            parts.append((column, key.descending, low - below, 0 if below else size, size + 1))
        else:
            flags = DeviceColumn(pa.bool_(), column.valid)
            parts.append(
                (flags, not key.nulls_first, int(_SIGN) if key.nulls_first else _MOST - int(_SIGN) - 1, 0, 2)
            )
            parts.append((column, key.descending, low, 0, size))
    words: list[Array] = []
    room = 1
    for column, descending, low, null, size in parts:
        if size == 1:
            continue
        fits = bool(words) and room * size <= WORD
        room = room * size if fits else size
        last = words.pop() if fits else None
        words.append(_packed(last, size, column, descending, low % WORD, null, xp))
    return words


def key_ranges(
    columns: Sequence[DeviceColumn], descending: Sequence[bool], xp: ModuleType
) -> list[tuple[int, int]]:
    """Return the least and the greatest `ordered` word of each column, of the rows that aren't null.

    Where there are none, the least is above the greatest.

    Args:
        columns: of any length each.
        descending: whether the words of a column are turned around.
        xp: NumPy or CuPy.
    """
    if not on_device(xp):
        found = []
        for column, flip in zip(columns, descending):
            words = ordered(column.values, flip)
            words = words if column.valid is None else words[column.valid]
            found.append((int(words.min()), int(words.max())) if len(words) else (_MOST, 0))
        return found
    start = np.array([[_MOST, 0]] * len(columns), np.uint64).reshape(-1, 2)
    ranges = xp.asarray(start)
    for place, (column, flip) in enumerate(zip(columns, descending)):
        find = kernel(xp, "sort_keys", "key_range", VALUE=TYPES[np.dtype(column.values.dtype)])
        args = [*key_args(column, xp), np.int32(flip), ranges[place]]
        launch(find, len(column), args, each=EACH)
    return [(int(low), int(high)) for low, high in to_host(ranges)]


def ordered(values: np.ndarray, descending: bool = False) -> np.ndarray:
    """Return words of the order of the values, on the host.

    Args:
        values: shape (rows,), a dtype of `TYPES`.
        descending: turns the order around.

    Returns:
        Shape (rows,), dtype uint64; equal for both zeros, and for all NaN.

    Example:
        >>> np.argsort(ordered(np.array([np.nan, 1.0, -np.inf, -1.0]))).tolist()
        [2, 3, 1, 0]
    """
    if values.dtype.kind == "f":
        whole: Any = np.int32 if values.dtype.itemsize == 4 else np.int64
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values + values.dtype.type(0))
        bits = values.view(whole)
        values = np.where(bits < 0, bits ^ np.iinfo(whole).max, bits)
    if values.dtype.kind == "u":
        words = values.astype(np.uint64)
    else:
        words = values.astype(np.int64).view(np.uint64) ^ _SIGN
    return ~words if descending else words


def ranked(column: DeviceColumn, xp: ModuleType) -> DeviceColumn:
    """Replace codes of strings by the ranks of these, so that ranks order as strings do; other columns unchanged."""
    if not is_coded(column.type):
        return column
    assert column.dictionary is not None
    ranks = pc.rank(column.dictionary, sort_keys="ascending", tiebreaker="dense").to_numpy().astype(np.int32)
    return translated(column, ranks, xp, nulls=column.dictionary)


def translated(
    column: DeviceColumn, table: np.ndarray, xp: ModuleType, nulls: pa.Array | None = None
) -> DeviceColumn:
    """Replace codes by what a small table on the host has for them.

    Args:
        column: of codes.
        table: a value for each code, int32.
        xp: NumPy or CuPy.
        nulls: codes of nulls in this dictionary become null.

    Returns:
        A column of int32.
    """
    if not len(table):
        table = np.zeros(1, np.int32)
    there = table if xp is np else xp.asarray(table)
    valid = column.valid
    if nulls is not None and nulls.null_count:
        known = nulls.is_valid().to_numpy(zero_copy_only=False)
        marks = (known if xp is np else xp.asarray(known))[column.values]
        valid = marks if valid is None else valid & marks
    return replace(column, type=pa.int32(), values=there[column.values], valid=valid, dictionary=None)


def key_args(column: DeviceColumn, xp: ModuleType) -> list[object]:
    """Return the first arguments of the kernels of a key: values, marks, whether there are any, rows."""
    values = xp.ascontiguousarray(column.values)
    if column.valid is None:
        return [
            values,
            values.view(np.uint8),
            np.int32(0),
            np.int64(len(column)),
        ]  # any bytes: there are no marks
    return [values, xp.ascontiguousarray(column.valid), np.int32(1), np.int64(len(column))]


def _packed(
    words: Array | None,
    size: int,
    column: DeviceColumn,
    descending: bool,
    low: int,
    null: int,
    xp: ModuleType,
) -> Array:
    """Append a key to words, in place, or begin them."""
    factor = 0 if words is None else size
    if on_device(xp):
        words = xp.empty(len(column), dtype=np.uint64) if words is None else words
        pack = kernel(xp, "sort_keys", "pack_key", VALUE=TYPES[np.dtype(column.values.dtype)])
        numbers = [np.uint64(low), np.uint64(null), np.uint64(factor), words]
        launch(pack, len(column), [*key_args(column, xp), np.int32(descending), *numbers], each=EACH)
        return words
    part = ordered(column.values, descending) - np.uint64(low)
    if column.valid is not None:
        part = np.where(column.valid, part, np.uint64(null))
    return part if words is None else words * np.uint64(factor) + part
