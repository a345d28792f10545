"""Row hash: 64 bits for each row of some device columns, the same as `lineage.hashing.hash_columns` gives.

One kernel absorbs all columns, whatever their types, and holds a row's state in registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ....lineage.hashing import NULL_WORD, mix, start_state, string_words
from ...backend import Array
from ..column import DeviceColumn, is_coded
from ..modules import kernel, launch, on_device

#: rows that a thread takes
EACH = 4
_KINDS = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64", "int64"]
_DECIMAL, _CODES = 9, 10


def hash_rows(columns: Sequence[DeviceColumn], xp: ModuleType, exact: bool = False) -> Array:
    """Hash the rows of some columns of equal length.

    Traffic, in bytes a row: the columns' widths, one for each validity mask, 8 for the result; for strings the code
    and the words of its value, which come from the cache as long as the dictionary is small.

    Args:
        columns: at least one.
        xp: NumPy or CuPy.
        exact: as `hash_columns` has it: True tells -0.0 from 0.0.

    Returns:
        Shape (rows,), dtype uint64.

    Example:
        >>> from headwater.lineage.hashing import hash_columns
        >>> from headwater.ops.device.column import to_device
        >>> column = pa.array([7, None])
        >>> bool((hash_rows([to_device(column, np)], np) == hash_columns([column])).all())
        True
    """
    rows = len(columns[0])
    if not on_device(xp):
        return _hash(columns, exact)
    out = xp.empty(rows, dtype=np.uint64)
    if rows:
        packed = PackedColumns(columns, xp)
        args = [*packed.args, np.int32(exact), np.int64(rows), out]
        launch(kernel(xp, "row_hash", "hash_rows", BITS=32), rows, args, each=EACH)
    return out


def hash_segments(columns: Sequence[DeviceColumn], parts: int, xp: ModuleType) -> Array:
    """Return the segment, below ``parts``, that a `HashPartitioner` with these keys gives each row.

    Traffic: as `hash_rows`, with 1, 2 or 4 bytes for the result.

    Returns:
        Shape (rows,), of the dtype that `segment_type` gives.
    """
    rows, dtype = len(columns[0]), segment_type(parts)
    if not on_device(xp):
        half = np.uint64(32)
        return (((_hash(columns, False) >> half) * np.uint64(parts)) >> half).astype(dtype)
    out = xp.empty(rows, dtype=dtype)
    if rows:
        packed = PackedColumns(columns, xp)
        args = [*packed.args, np.int32(parts), np.int64(rows), out]
        function = kernel(xp, "row_hash", "hash_segments", BITS=8 * dtype.itemsize)
        launch(function, rows, args, each=EACH)
    return out


def segment_type(parts: int) -> np.dtype:
    """Return the narrowest dtype for numbers below ``parts``: uint8, uint16 or uint32."""
    return np.min_scalar_type(max(parts - 1, 0))


class PackedColumns:
    """Where columns lie on the device, as the kernels of row_hash.cu read it; keeps what it points to.

    Args:
        columns: at least one.
        xp: CuPy.

    Attributes:
        args: the kernels' first arguments: the addresses, how many columns, and the state that rows begin with.
    """

    def __init__(self, columns: Sequence[DeviceColumn], xp: ModuleType):
        self._kept: list[Array] = []
        words = np.zeros((len(columns), 5), np.uint64)
        for entry, column in zip(words, columns):
            kind = kind_of(column)
            entry[0], entry[2] = self._address(column.values, xp), kind
            if column.valid is not None:
                entry[1] = self._address(column.valid, xp)
            if kind == _CODES:
                text, bounds = string_words(_dictionary(column))
                entry[3], entry[4] = self._address(bounds, xp), self._address(text, xp)
        self.args: list[Any] = [xp.asarray(words), np.int32(len(columns)), start_state()]

    def _address(self, array: Array, xp: ModuleType) -> int:
        there = xp.asarray(array) if isinstance(array, np.ndarray) else xp.ascontiguousarray(array)
        self._kept.append(there)
        return int(there.data.ptr)


def kind_of(column: DeviceColumn) -> int:
    """Return the number that row_hash.cu has for a column's values."""
    if is_coded(column.type):
        return _CODES
    if pa.types.is_decimal(column.type):
        return _DECIMAL
    name = column.values.dtype.name
    return _KINDS.index({"bool": "uint8", "uint64": "int64"}.get(name, name))


def _dictionary(column: DeviceColumn) -> pa.Array:
    assert column.dictionary is not None
    return column.dictionary


def _hash(columns: Sequence[DeviceColumn], exact: bool) -> np.ndarray:
    states = np.full(len(columns[0]), start_state(), dtype=np.uint64)
    for column in columns:
        known = np.True_ if column.valid is None else column.valid
        for word, rows in _words(column, exact):
            if rows is None:
                states ^= np.where(known, word, NULL_WORD)
                mix(states)
            else:
                states[rows] = mix(states[rows] ^ word)
    return states


def _words(column: DeviceColumn, exact: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """What rows absorb, in order: words of all rows, or of those whose numbers come with them."""
    values, kind = column.values, kind_of(column)
    if kind == _CODES:
        yield from _text(column)
    elif values.dtype.kind == "f":
        wide = values.astype(np.float64)
        if not exact:
            wide += 0.0
        wide[np.isnan(wide)] = np.nan
        yield wide.view(np.uint64), None
    elif values.dtype.kind == "i":
        word = values.astype(np.int64)
        yield word.view(np.uint64), None
        if kind == _DECIMAL:
            yield (word >> 63).view(np.uint64), None
    else:
        yield values.astype(np.uint64), None


def _text(column: DeviceColumn) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    text, bounds = string_words(_dictionary(column))
    if not len(text):
        yield np.zeros(len(column), np.uint64), None
        return
    first, last = bounds[:-1][column.values], bounds[1:][column.values] - 1
    if column.valid is not None:
        first = np.where(column.valid, first, last)
    for place in range(int((last - first).max(initial=0))):
        rows = np.flatnonzero(last - first > place)
        yield text[first[rows] + place], rows
    yield text[last], None
