"""Range segments: the partition of a range exchange that each row on a device goes to, as `ordering.segments` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...backend import Array
from ...morsels import contiguous
from ...ordering import SortKey, segments
from ..column import DeviceColumn, is_coded, to_device
from ..modules import kernel, launch, on_device
from ..table import DeviceTable
from .row_hash import kind_of, segment_type

_SIGN = np.uint64(1 << 63)
_ALL = (1 << 64) - 1
_VALIDITY, _CODES, _UNSIGNED = 11, 10, 12


@dataclass(frozen=True)
class _Part:
    """A sort key, or whether it is null: words that order rows, and the boundaries' words.

    Attributes:
        values: of the rows.
        kind: how a value becomes a word, as range_segments.cu numbers it.
        flip: every word is xor-ed with it; all bits turn the order around.
        ranks: the words of codes, on the host; None for other values.
        bounds: the boundaries' words, shape (boundaries,), uint64, on the host.
    """

    values: Array
    kind: int
    flip: int
    ranks: np.ndarray | None
    bounds: np.ndarray


def range_segments(
    table: DeviceTable, boundaries: pa.Table, keys: Sequence[SortKey], count: int, xp: ModuleType
) -> Array:
    """Count, for each row, the boundaries that it doesn't come before.

    Boundaries are searched by halving, one key after another. Traffic, in bytes a row: the keys' widths (of all but the
    first only where the keys before are equal to a boundary's), one for each validity mask, and 1, 2 or 4 for the
    result.

    Args:
        table: has the key columns.
        boundaries: on the host; key columns of distinct rows in the order of the keys.
        keys: most significant first.
        count: number of segments, above the number of boundaries.
        xp: NumPy or CuPy.

    Returns:
        Shape (rows,), the narrowest of uint8, uint16 and uint32; from 0 to the number of boundaries.

    Example:
        >>> from ..table import to_device
        >>> rows, boundaries = to_device(pa.table({"x": [1, 5, 9, None]}), np), pa.table({"x": [5]})
        >>> range_segments(rows, boundaries, [SortKey("x")], 2, np).tolist()
        [0, 1, 1, 1]
    """
    dtype = segment_type(count)
    if not boundaries.num_rows or not table.rows:
        return xp.zeros(table.rows, dtype=dtype)
    parts = [part for key in keys for part in _parts(table.column(key.column), boundaries, key, xp)]
    if not on_device(xp):
        return _search(parts, boundaries.num_rows, table.rows).astype(dtype)
    out = xp.empty(table.rows, dtype=dtype)
    kept: list[Array] = []

    def address(array: Array) -> int:
        kept.append(xp.asarray(array) if isinstance(array, np.ndarray) else xp.ascontiguousarray(array))
        return int(kept[-1].data.ptr)

    words = np.zeros((len(parts), 5), np.uint64)
    for entry, part in zip(words, parts):
        ranks = 0 if part.ranks is None else address(part.ranks)
        entry[:] = address(part.values), part.kind, part.flip, ranks, address(part.bounds)
    args = [xp.asarray(words), np.int32(len(parts)), np.int32(boundaries.num_rows), np.int64(table.rows), out]
    launch(kernel(xp, "range_segments", "range_segments", BITS=8 * dtype.itemsize), table.rows, args)
    return out


def _parts(column: DeviceColumn, boundaries: pa.Table, key: SortKey, xp: ModuleType) -> list[_Part]:
    """A key's parts: whether it is null, if rows or boundaries may be, then its value."""
    limits = contiguous(boundaries.column(key.column))
    bounds = to_device(limits, np)
    parts = []
    if column.valid is not None or bounds.valid is not None:
        flip = 0 if key.nulls_first else _ALL
        known = np.ones(len(bounds), bool) if bounds.valid is None else bounds.valid
        valid = xp.ones(len(column), dtype=bool) if column.valid is None else column.valid
        parts.append(_Part(valid, _VALIDITY, flip, None, known.astype(np.uint64) ^ np.uint64(flip)))
    flip = _ALL if key.descending else 0
    if is_coded(column.type):
        ranks, words = _ranks(column, limits)
        parts.append(_Part(column.values, _CODES, flip, ranks, words ^ np.uint64(flip)))
    else:
        kind = _UNSIGNED if column.values.dtype == np.uint64 else kind_of(column)
        parts.append(_Part(column.values, kind, flip, None, _words(bounds.values) ^ np.uint64(flip)))
    return parts


def _ranks(column: DeviceColumn, limits: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Words for the codes of a column, and for boundaries: odd for what is a boundary's, even for what is between.

    A null boundary has the word of code 0, as null rows have.
    """
    assert column.dictionary is not None
    values, limits = _plain(column.dictionary), _plain(limits)
    known = pc.unique(limits.drop_null())
    known = known.take(pc.sort_indices(known))
    below = segments(pa.table({"x": values}), pa.table({"x": known}), [SortKey("x")]).astype(np.uint64)
    ranks = 2 * below - pc.is_in(values, known).to_numpy(zero_copy_only=False)
    ranks = ranks if len(ranks) else np.zeros(1, np.uint64)
    places = pc.index_in(limits, known).to_numpy(zero_copy_only=False)
    words = np.where(
        limits.is_valid().to_numpy(zero_copy_only=False), 2 * np.nan_to_num(places) + 1, ranks[0]
    )
    return ranks, words.astype(np.uint64)


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _words(values: np.ndarray) -> np.ndarray:
    """Unsigned words in the order of values; NaN is above every number, and -0.0 equals 0.0."""
    if values.dtype.kind in "bu":
        return values.astype(np.uint64)
    if values.dtype.kind == "i":
        return values.astype(np.int64).view(np.uint64) ^ _SIGN
    wide = values.astype(np.float64) + 0.0
    wide[np.isnan(wide)] = np.nan
    bits = wide.view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _search(parts: Sequence[_Part], boundaries: int, rows: int) -> np.ndarray:
    """The twin of the kernel: all rows halve their range of boundaries together."""
    low, high = np.zeros(rows, np.int64), np.full(rows, boundaries, np.int64)
    for part in parts:
        values = part.values if part.ranks is None else part.ranks[part.values]
        words = (_words(values) if part.ranks is None else values) ^ np.uint64(part.flip)
        low = _halve(low, high, part.bounds, words, False)
        high = _halve(low, high, part.bounds, words, True)
    return high


def _halve(
    low: np.ndarray, high: np.ndarray, bounds: np.ndarray, words: np.ndarray, equal: bool
) -> np.ndarray:
    """Find, from ``low`` to ``high``, the first bound that is above each word; or if not ``equal``, not below it."""
    for _ in range(len(bounds).bit_length()):
        middle = np.minimum((low + high) >> 1, len(bounds) - 1)
        there = bounds[middle]
        right = ((there <= words) if equal else (there < words)) & (low < high)
        low, high = np.where(right, middle + 1, low), np.where(right | (low >= high), high, middle)
    return low
