"""KeyIndex: which rows of a table have a given key; built once, probed by whole columns.

Integers and times of a narrow range index an array directly; other values are looked up in a hash
table of the distinct ones. Keys of several columns are combined pairwise into integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .grouping import comparable, integers, is_integral, null_mask
from .kernel import MORSEL_ROWS
from .morsels import contiguous

#: a direct index may have this many slots for each value
_SPARSE = 8


@dataclass(frozen=True)
class _Range:
    """Value v has code v - low."""

    low: int
    size: int

    def lookup(self, array: pa.Array) -> np.ndarray:
        mask = null_mask(array)
        values = integers(array)
        codes = values - self.low
        inside = (values >= self.low) & (values < self.low + self.size)
        if mask is not None:
            inside &= ~mask
        return np.where(inside, codes, -1)


@dataclass(frozen=True)
class _Dictionary:
    """Value v has as code its position among the distinct values."""

    values: pa.Array

    @property
    def size(self) -> int:
        return len(self.values)

    def lookup(self, array: pa.Array) -> np.ndarray:
        codes = pc.index_in(array, value_set=self.values)
        return codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


class KeyIndex:
    """Rows by key. Null matches nothing, NaN matches NaN, and -0.0 matches 0.0.

    Args:
        columns: the key columns, of equal length.

    Attributes:
        unique: no key stands in two rows.
        probe_rows: how many rows to probe at once, so that the hash table's cost is spread well.

    Example:
        >>> index = KeyIndex([pa.array(["a", "b", "a", None])])
        >>> codes = index.lookup([pa.array(["a", "c", None])])
        >>> index.counts(codes).tolist()
        [2, 0, 0]
    """

    def __init__(self, columns: Sequence[pa.ChunkedArray | pa.Array]):
        self._steps: list[_Range | _Dictionary] = []
        codes = self._build(_plain(columns[0]))
        for column in columns[1:]:
            more = self._build(_plain(column))
            codes = self._build(_combine(codes, more, self._steps[-1].size))
        rows = np.flatnonzero(codes >= 0)
        found = codes[rows]
        counts = np.bincount(found, minlength=self._steps[-1].size + 1)
        self.unique = bool(counts.max() <= 1)
        #: rows of code c are ``_rows[_starts[c]:_starts[c + 1]]``; code -1 reads the last, empty slot
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._counts = counts
        if self.unique:
            self._rows = np.empty(len(rows), dtype=np.int64)
            self._rows[self._starts[found]] = rows
        else:
            self._rows = rows[np.argsort(found, kind="stable")]
        sizes = [step.size for step in self._steps if isinstance(step, _Dictionary)]
        self.probe_rows = max([MORSEL_ROWS, *sizes])

    def lookup(self, columns: Sequence[pa.ChunkedArray | pa.Array]) -> np.ndarray:
        """Return the code of each key, -1 for one that isn't here; shape (rows,), int64."""
        steps = iter(self._steps)
        codes = next(steps).lookup(_plain(columns[0]))
        for column in columns[1:]:
            single = next(steps)
            more = single.lookup(_plain(column))
            codes = next(steps).lookup(_combine(codes, more, single.size))
        return codes

    def counts(self, codes: np.ndarray) -> np.ndarray:
        """Return how many rows each code has; shape of ``codes``, int64."""
        return self._counts[codes]

    def rows(self, codes: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Return the row that stands ``ranks``-th, in row order, among those of each code."""
        return self._rows[self._starts[codes] + ranks]

    def _build(self, array: pa.Array) -> np.ndarray:
        step = _choose(array)
        self._steps.append(step)
        return step.lookup(array)


def _choose(array: pa.Array) -> _Range | _Dictionary:
    values = array.drop_null()
    if is_integral(array.type) and len(values):
        numbers = integers(values)
        low, high = int(numbers.min()), int(numbers.max())
        if high - low < _SPARSE * len(numbers) + 1024:
            return _Range(low, high - low + 1)
    return _Dictionary(pc.unique(values))


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = comparable(contiguous(column))
    if pa.types.is_uint64(array.type):
        return array.view(pa.int64())
    return array


def _combine(left: np.ndarray, right: np.ndarray, size: int) -> pa.Array:
    """One integer for each pair of codes, null where one is missing."""
    missing = (left < 0) | (right < 0)
    return pa.array(left * size + right, mask=missing if missing.any() else None)
