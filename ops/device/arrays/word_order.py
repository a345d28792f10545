"""Order of rows, stable: by sort keys, which become unsigned words, in as few passes of a radix sort as these allow.

CuPy sorts by CUB's radix sort, which passes over all bits of a dtype, 8 at a time, whatever the values are: an order
of 64-bit words and their row numbers moves 32 bytes a row in each of 8 passes. So words become as narrow as their
values are, and what doesn't fit beside a row's number is sorted by its leading bits first.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from ...backend import Array, to_host
from ...key_words import order_of
from ...ordering import SortKey
from ..modules import kernel, launch, on_device
from ..table import DeviceTable
from .sort_keys import EACH, sort_words

#: row numbers of more bits leave too few for the leading bits beside them
_MOST_NUMBER_BITS = 32


def sort_order(words: Sequence[Array], rows: int, xp: ModuleType) -> Array:
    """Return the rows in the order of their words, equal ones as they stand.

    How, and the traffic in bytes a row for n rows of b = log2(n) bits, words that need w bits in all, and a sort of
    CUB that passes once over an item for each 8 bits of the keys, besides 8 to find w for each word:

    - w up to 8 or 16: an order of 1 or 2 bytes; 38 or 64.
    - w + b up to 32: numbered words of 4 bytes, sorted by value; 60.
    - w up to 32: an order of 4 bytes; 128.
    - w + b up to 64: numbered words of 8 bytes, sorted by value; 168.
    - more: the leading 64 - b bits so, and 17 to look for rows that are equal in these. Only if some of those stand
      wrongly, they are ordered by the rest, which takes about 290 for each word of 8 bytes, and 40 to put it in
      order. Where that is all of the rows, the sort of the leading bits was for nothing.

    Args:
        words: most significant first, each of shape (rows,), dtype uint64; none says that all rows are equal.
        rows: how many rows, below 2**63.
        xp: NumPy or CuPy.

    Returns:
        Shape (rows,), dtype int64.

    Source: Knuth, The Art of Computer Programming 3, 5.2.5 (radix sorting, from either end).

    Example:
        >>> sort_order([np.array([2, 1, 2, 0], np.uint64)], 4, np).tolist()
        [3, 1, 0, 2]
    """
    if not words or rows < 2:
        return xp.arange(rows, dtype=np.int64)
    if not on_device(xp):
        return order_of(words, rows).astype(np.int64, copy=False)
    most = to_host(xp.stack([word.max() for word in words]))
    sized = [(word, int(m).bit_length()) for word, m in zip(words, most) if m]
    width, bits = sum(size for _, size in sized), (rows - 1).bit_length()
    if not sized:
        return xp.arange(rows, dtype=np.int64)
    if len(sized) == 1 and bits < 32 and (width <= 16 or width <= 32 < width + bits):
        return _narrow_order(*sized[0], xp)
    if width + bits > 64 and bits > _MOST_NUMBER_BITS:
        return _order_by_each(sized, xp)
    return _by_leading_bits(sized, width, bits, rows, xp)


def row_order(table: DeviceTable, keys: Sequence[SortKey], xp: ModuleType) -> Array:
    """Return the rows of a table in the order of keys; shape (rows,), int64."""
    words = sort_words([table.column(key.column) for key in keys], keys, xp)
    return sort_order(words, table.rows, xp)


def _narrow_order(word: Array, width: int, xp: ModuleType) -> Array:
    """The order of a word that needs so many bits; CuPy's is stable."""
    dtype = np.min_scalar_type((1 << width) - 1)
    return xp.argsort(word.astype(dtype, copy=False)).astype(np.int64, copy=False)


def _order_by_each(sized: Sequence[tuple[Array, int]], xp: ModuleType) -> Array:
    """From the least significant word on, each orders what the words after it have ordered."""
    order = _narrow_order(*sized[-1], xp)
    for word, width in sized[-2::-1]:
        order = order[_narrow_order(word[order], width, xp)]
    return order


def _by_leading_bits(
    sized: Sequence[tuple[Array, int]], width: int, bits: int, rows: int, xp: ModuleType
) -> Array:
    """Sort the leading bits with the rows' numbers below them; then, if need be, rows that are equal in these."""
    room = min(width, 64 - bits)
    leading, shift, rest = _split(sized, room)
    numbers = xp.empty(rows, dtype=np.uint64)
    number = kernel(xp, "sort_keys", "number_rows", VALUE="int64")
    launch(number, rows, [leading, np.int64(rows), np.int32(shift), np.int32(bits), numbers], each=EACH)
    if room + bits <= 32:
        numbers = numbers.astype(np.uint32)
    numbers.sort()
    mask = numbers.dtype.type((1 << bits) - 1)
    if not rest:
        numbers &= mask
        return numbers.view(np.int64) if numbers.dtype.itemsize == 8 else numbers.astype(np.int64)
    prefixes = numbers >> np.uint64(bits)
    same = prefixes[1:] == prefixes[:-1]
    del prefixes
    numbers &= mask
    order = numbers.view(np.int64)
    if same.any():
        _order_ties(order, same, rest, xp)
    return order


def _split(sized: Sequence[tuple[Array, int]], room: int) -> tuple[Array, int, list[tuple[Array, int]]]:
    """The leading bits of a sequence of words, so many: an array, and how far right it must go; and what is left."""
    first, width = sized[0]
    if width >= room:
        left = width - room
        rest = [(first & np.uint64((1 << left) - 1), left)] if left else []
        return first, left, rest + list(sized[1:])
    leading, room = first, room - width
    for place, (word, width) in enumerate(sized[1:], 1):
        taken = min(width, room)
        left, room = width - taken, room - taken
        leading = leading << np.uint64(taken) | word >> np.uint64(left)
        if not room:
            rest = [(word & np.uint64((1 << left) - 1), left)] if left else []
            return leading, 0, rest + list(sized[place + 1 :])
    raise AssertionError("there are fewer bits than are asked for")


def _order_ties(order: Array, same: Array, rest: Sequence[tuple[Array, int]], xp: ModuleType) -> None:
    """Put rows that are equal so far in the order of the words that are left, in place.

    Args:
        order: rows, in order of their leading bits and numbers.
        same: whether each row from the second on is equal in its leading bits to the one before it.
        rest: words of all rows, and how many bits they need.
        xp: CuPy.
    """
    follows = xp.zeros(int(order.shape[0]), dtype=bool)
    follows[1:] = same
    tied = follows.copy()
    tied[:-1] |= same
    places = xp.flatnonzero(tied)
    del tied
    follows = follows[places]
    members = order[places]
    words = [(word[members], width) for word, width in rest]
    wrong = xp.zeros(int(places.shape[0]) - 1, dtype=bool)
    for word, _ in words[::-1]:
        wrong = (word[1:] < word[:-1]) | ((word[1:] == word[:-1]) & wrong)
    if not (wrong & follows[1:]).any():
        return
    groups = xp.cumsum(~follows, dtype=np.int64)
    width = int(groups[-1]).bit_length()
    order[places] = members[_order_by_each([(groups.view(np.uint64), width), *words], xp)]
