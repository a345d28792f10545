"""Key words: sort keys as few unsigned integers a row, in the order of the keys, so that NumPy can sort them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .grouping import comparable, integers, is_integral, null_mask

#: a word has so many values
_WORD = 1 << 64
_SIGN = np.uint64(1 << 63)
#: digits of decimals that fit 64 bits
_SHORT = 18
#: keys below so many times the rows are told apart by an array of slots
_SPARSE = 4


def sortable(array: pa.Array) -> pa.Array:
    """Replace values by integers of the same order, where there are any of 64 bits.

    Floats are those of `comparable`, NaN above every number; Arrow itself puts it beside the nulls.

    Args:
        array: one column.

    Returns:
        For integers, booleans, dates, times, floats and decimals of at most 18 digits an array of int64 or a
        narrower or unsigned integer, with the same nulls; other types unchanged.
    """
    type = array.type
    if pa.types.is_decimal128(type) and type.precision <= _SHORT:
        return pa.array(_low_words(array), mask=null_mask(array))
    if pa.types.is_floating(type):
        array = comparable(array)
        bits: Any = np.int32 if array.type.bit_width == 32 else np.int64
        raw = array.to_numpy(zero_copy_only=False).view(bits)
        return pa.array(np.where(raw < 0, raw ^ np.iinfo(bits).max, raw), mask=null_mask(array))
    if is_integral(type) and not pa.types.is_integer(type):
        return pa.array(integers(array), mask=null_mask(array))
    return array


def key_words(keys: Sequence[tuple[pa.Array, bool, bool]]) -> list[np.ndarray] | None:
    """Pack keys into words; comparing the words in turn compares the keys in turn.

    Args:
        keys: most significant first: a column as `sortable` gives it, whether it is descending, and whether
            nulls come first.

    Returns:
        Arrays of shape (rows,), dtype uint64, as few as the range of the values allows; None if a column isn't
        of integers.

    Example:
        >>> x, y = pa.array([3, 1, None]), pa.array([7, 7, 7])
        >>> [word.tolist() for word in key_words([(x, True, False), (y, False, False)])]
        [[0, 2, 3]]
    """
    parts: list[tuple[np.ndarray, int]] = []  # values from 0 on, and how many there may be
    for array, descending, nulls_first in keys:
        if not pa.types.is_integer(array.type):
            return None
        parts += _parts(array, descending, nulls_first)
    words: list[np.ndarray] = []
    room = 1
    for values, size in parts:
        if size == 1:
            continue
        if words and room * size <= _WORD:
            words[-1] = words[-1] * np.uint64(size) + values
            room *= size
        else:
            words.append(values)
            room = size
    return words


def order_of(words: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Return the rows in the order of their words, equal ones as they stand; shape (rows,), int64 or uint64.

    Example:
        >>> order_of([np.array([2, 1, 2, 0], np.uint64)], 4).tolist()
        [3, 1, 0, 2]
    """
    if not words:
        return np.arange(rows)
    first, most = words[0], int(words[0].max(initial=0))
    if len(words) == 1 and most < 1 << 32:
        return _radix_order(first, most)
    bits = max(1, (rows - 1).bit_length())
    if len(words) == 1 and most < 1 << (64 - bits):
        numbered = (first << np.uint64(bits)) | np.arange(rows, dtype=np.uint64)
        numbered.sort()
        return numbered & np.uint64((1 << bits) - 1)
    order = np.argsort(first)  # not stable, but vectorized
    ordered = first[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        rank = np.concatenate([[0], np.cumsum(~same)])
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        members = order[tied]
        rest = [word[members] for word in words[:0:-1]]
        order[tied] = members[np.lexsort([members, *rest, rank[tied]])]
    return order


def first_rows_of(word: np.ndarray) -> np.ndarray:
    """Return the first row of each distinct word, ascending; shape (distinct words,), int64.

    Example:
        >>> first_rows_of(np.array([2, 1, 2, 0], np.uint64)).tolist()
        [0, 1, 3]
    """
    rows, most = len(word), int(word.max(initial=0))
    if not rows:
        return np.zeros(0, np.int64)
    if most < _SPARSE * rows:
        places = word.view(np.int64)
        slots = np.empty(most + 1, np.int64)
        slots[places[::-1]] = np.arange(rows - 1, -1, -1)
        return np.flatnonzero(slots[places] == np.arange(rows))
    bits = np.uint64(max(1, (rows - 1).bit_length()))
    if most >= 1 << 32 and most < 1 << (64 - int(bits)):
        numbered = (word << bits) | np.arange(rows, dtype=np.uint64)
        numbered.sort()
        differs = np.diff(numbered >> bits) != 0
        firsts = numbered & ((np.uint64(1) << bits) - np.uint64(1))
    else:
        firsts = order_of([word], rows)
        differs = np.diff(word[firsts]) != 0
    found = np.zeros(rows, bool)
    found[firsts[np.append(True, differs)].astype(np.int64)] = True
    return np.flatnonzero(found)


def _radix_order(word: np.ndarray, most: int) -> np.ndarray:
    """Order words below 2**32, stable: NumPy sorts 16 bits by radix, which takes half the time of all at once."""
    order = np.argsort((word & np.uint64(0xFFFF)).astype(np.uint16), kind="stable")
    if most >> 16:
        order = order[np.argsort((word >> np.uint64(16)).astype(np.uint16)[order], kind="stable")]
    return order


def _parts(array: pa.Array, descending: bool, nulls_first: bool) -> list[tuple[np.ndarray, int]]:
    nulls = null_mask(array)
    if nulls is not None and nulls.all():
        return []
    values = _unsigned(array.fill_null(0) if nulls is not None else array)
    if descending:
        values = ~values
    known = values if nulls is None else values[~nulls]
    if not len(known):
        return []
    low, high = int(known.min()), int(known.max())
    values, size = values - np.uint64(low), high - low + 1
    if nulls is None:
        return [(values, size)]
    if size < _WORD:
        values += np.uint64(nulls_first)
        values[nulls] = 0 if nulls_first else size
        return [(values, size + 1)]
    values[nulls] = 0
    return [((nulls != nulls_first).astype(np.uint64), 2), (values, size)]


def _unsigned(array: pa.Array) -> np.ndarray:
    """Integers as unsigned ones of the same order."""
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "u":
        return values.astype(np.uint64)
    return values.astype(np.int64).view(np.uint64) ^ _SIGN


def _low_words(array: pa.Array) -> np.ndarray:
    """The lower 64 bits of decimals."""
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), np.int64)
    return np.frombuffer(data, "<i8")[2 * array.offset : 2 * (array.offset + len(array)) : 2].copy()
