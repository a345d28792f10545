"""KeyIndex: which rows of a table have a given key; built once, probed by whole columns.

The values of each key column become integers, and those of several columns one integer, which a key table
finds. Only values that aren't integers by nature are first looked up among the distinct ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .grouping import comparable, integers, is_integral, null_mask
from .kernel import MORSEL_ROWS
from .key_table import KeyTable, key_table
from .morsels import contiguous

#: columns of a range up to this are packed as they are
_NARROW = 1 << 31


@dataclass(frozen=True)
class _Whole:
    """An integer is its own code: what a single key column needs."""

    size = 1 << 64

    def codes(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
        """The code of each value, and which have none (None for all); shape (rows,)."""
        return _bits(array), null_mask(array)


@dataclass(frozen=True)
class _Range:
    """An integer v of the range has code v - low."""

    low: int
    size: int

    def codes(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
        """The code of each value, and which have none (None for all); shape (rows,)."""
        values, nulls = _bits(array), null_mask(array)
        outside = (values < self.low) | (values > self.low + (self.size - 1))
        return values - np.int64(self.low), _either(nulls, outside if outside.any() else None)


@dataclass(frozen=True)
class _Sparse:
    """An integer has as code the first row that has it."""

    table: KeyTable
    size: int

    def codes(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
        """The code of each value, and which have none (None for all); shape (rows,)."""
        codes = self.table.lookup(_bits(array)).astype(np.int64)
        outside = codes < 0
        return codes, _either(null_mask(array), outside if outside.any() else None)


@dataclass(frozen=True)
class _Dictionary:
    """A value that is no integer has as code its position among the distinct values."""

    values: pa.Array

    @property
    def size(self) -> int:
        return max(1, len(self.values))

    def codes(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
        """The code of each value, and which have none (None for all); shape (rows,)."""
        found = pc.index_in(array, value_set=self.values)
        codes = found.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, null_mask(found)


class KeyIndex:
    """Rows by key. Null matches nothing, NaN matches NaN, and -0.0 matches 0.0.

    Args:
        columns: the key columns, of equal length.

    Attributes:
        unique: no key stands in two rows.
        probe_rows: how many rows to probe at once, so that the cost of finding distinct values is spread well.

    Example:
        >>> index = KeyIndex([pa.array(["a", "b", "a", None])])
        >>> codes = index.lookup([pa.array(["a", "c", None])])
        >>> index.counts(codes).tolist()
        [2, 0, 0]
    """

    def __init__(self, columns: Sequence[pa.ChunkedArray | pa.Array]):
        arrays = [_plain(column) for column in columns]
        self._encoders = [_encoder(array, len(arrays) == 1) for array in arrays]
        #: for each column after the first: what shortens the integers of those before it, None if it needn't
        self._shorteners: list[KeyTable | None] = []
        keys, missing = self._pack(arrays, building=True)
        rows = None if missing is None else np.flatnonzero(~missing)
        self._table = key_table(keys if rows is None else keys[rows])
        firsts = self._table.firsts
        is_first = firsts == np.arange(len(firsts), dtype=firsts.dtype)
        self.unique = bool(is_first.all())
        #: the row of each code, if keys are unique; None if that is the code
        self._rows = rows
        if not self.unique:
            numbers = np.cumsum(is_first) - 1
            self._table.renumber(numbers)
            codes = numbers[firsts]
            order = np.argsort(codes, kind="stable")
            self._rows = order if rows is None else rows[order]
            #: rows of code c are ``_rows[_starts[c]:_starts[c] + _counts[c]]``; code -1 reads the last, 0
            self._counts = np.bincount(codes, minlength=int(numbers[-1]) + 2)
            self._starts = np.cumsum(self._counts) - self._counts
        sizes = [encoder.size for encoder in self._encoders if isinstance(encoder, _Dictionary)]
        self.probe_rows = max([MORSEL_ROWS, *sizes])

    def lookup(self, columns: Sequence[pa.ChunkedArray | pa.Array]) -> np.ndarray:
        """Return the code of each key, -1 for one that isn't here; shape (rows,), integers."""
        keys, missing = self._pack([_plain(column) for column in columns])
        codes = self._table.lookup(keys)
        if missing is not None:
            codes[missing] = -1
        return codes

    def counts(self, codes: np.ndarray) -> np.ndarray:
        """Return how many rows each code has; shape of ``codes``, int64."""
        return (codes >= 0).astype(np.int64) if self.unique else self._counts[codes]

    def rows(self, codes: np.ndarray, ranks: np.ndarray | None = None) -> np.ndarray:
        """Return the row that stands ``ranks``-th (None: first), in row order, among those of each code."""
        if self._rows is None:
            return codes
        if self.unique:
            return self._rows[codes]
        starts = self._starts[codes]
        return self._rows[starts if ranks is None else starts + ranks]

    def _pack(
        self, arrays: Sequence[pa.Array], building: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """One integer for each row, and which rows can match nothing (None if all can)."""
        keys, missing = self._encoders[0].codes(arrays[0])
        size = self._encoders[0].size
        for place, (encoder, array) in enumerate(zip(self._encoders[1:], arrays[1:])):
            codes, none = encoder.codes(array)
            missing = _either(missing, none)
            if building:
                self._shorteners.append(key_table(keys) if size > _NARROW else None)
            if (table := self._shorteners[place]) is not None:
                keys, size = table.lookup(keys).astype(np.int64), len(table.firsts)
                missing = _either(missing, keys < 0)
            keys = keys * encoder.size + codes
            size *= encoder.size
        return keys, missing


def _encoder(array: pa.Array, alone: bool) -> _Whole | _Range | _Sparse | _Dictionary:
    if not (is_integral(array.type) or pa.types.is_floating(array.type)):
        return _Dictionary(pc.unique(array.drop_null()))
    if alone:
        return _Whole()
    numbers = _bits(array)
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    if high - low < _NARROW:
        return _Range(low, high - low + 1)
    return _Sparse(key_table(numbers), len(numbers))


def _either(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a | b


def _bits(array: pa.Array) -> np.ndarray:
    """Integers that are equal where values are, int64, 0 for null; of `comparable` floats, their bits."""
    if pa.types.is_float32(array.type):
        array = array.view(pa.int32())
    elif pa.types.is_float64(array.type):
        array = array.view(pa.int64())
    return integers(array)


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = comparable(contiguous(column))
    if pa.types.is_uint64(array.type):
        return array.view(pa.int64())
    return array
