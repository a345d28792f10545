"""Top-k on a device: the first rows of the sorted order, found by radix select; only these are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from types import ModuleType

import numpy as np
import pyarrow as pa

from ...backend import Array, array_namespace, to_host
from ...kernel import Broadcast, Context
from ...morsels import drained
from ...ordering import SortKey
from ...sort import TopKKernel
from ..arrays.compaction import compact
from ..arrays.sort_keys import sort_words
from ..arrays.word_order import sort_order
from ..device_kernel import DeviceKernel, DeviceStream, Lowered, lowers
from ..memory import DeviceMemoryError, retried
from ..memory_bound import held_bytes
from ..modules import THREADS, kernel, launch, on_device
from ..table import DeviceTable, concat
from ..transfer import UNIT_ROWS
from .sort import DeviceSort, device_tables, unordered

#: bits that one pass of a radix select decides
_DIGIT = 11
#: words that a block counts at a time, and at most so many blocks
_TILE, _BLOCKS = 4096, 2048
#: from a share of the rows on, all are sorted
_FEW = 0.25


def smallest(words: Sequence[Array], rows: int, count: int, xp: ModuleType) -> Array:
    """Return the first rows of the order that `sort_order` gives.

    Traffic, in bytes a row, where few rows are wanted: 8 to count the words by their leading bits, 8 for the words
    that share those of the last row wanted (few, unless values crowd: then up to 16 for each 11 bits more), and 20
    for the rows up to that word; with several words, again for the rows equal to it.

    Args:
        words: most significant first, each of shape (rows,), dtype uint64.
        rows: how many rows.
        count: how many are wanted.
        xp: NumPy or CuPy.

    Returns:
        Shape (min(rows, count),), dtype int64.

    Example:
        >>> smallest([np.array([5, 1, 7, 1, 5], np.uint64)], 5, 3, np).tolist()
        [1, 3, 0]
    """
    if count <= 0:
        return xp.zeros(0, dtype=np.int64)
    if not words:
        return xp.arange(min(rows, count), dtype=np.int64)
    if count >= rows * _FEW:
        return sort_order(words, rows, xp)[:count]
    chosen = _chosen(words, rows, count, xp)
    return chosen[sort_order([word[chosen] for word in words], count, xp)]


def nth(word: Array, place: int, xp: ModuleType) -> int:
    """Return the word that stands at a place of the ascending order, counted from 0.

    Args:
        word: shape (rows,), dtype uint64.
        place: below the number of rows.
        xp: NumPy or CuPy.

    Example:
        >>> nth(np.array([5, 1, 7, 1], np.uint64), 2, np)
        5
    """
    if not on_device(xp):
        return int(np.partition(word, place)[place])
    width = max(1, int(word.max()).bit_length())
    prefix = 0
    for shift in range((width - 1) // _DIGIT * _DIGIT, -1, -_DIGIT):
        counts = to_host(digit_counts(word, shift, prefix, xp)).astype(np.int64)
        ends = np.cumsum(counts)
        digit = int(np.searchsorted(ends, place, side="right"))
        place -= int(ends[digit] - counts[digit])
        prefix = prefix << _DIGIT | digit
        if shift and counts[digit] < len(word):
            word = compact([word], word >> np.uint64(shift) == np.uint64(prefix), xp)[0]
    return prefix


def digit_counts(word: Array, shift: int, prefix: int, xp: ModuleType) -> Array:
    """Count words by 11 of their bits.

    Traffic: 8 bytes a row.

    Args:
        word: shape (rows,), dtype uint64.
        shift: how many bits stand below these.
        prefix: the bits above these that a word must have to be counted.
        xp: NumPy or CuPy.

    Returns:
        Shape (2048,), dtype uint64.
    """
    bins = 1 << _DIGIT
    if not on_device(xp):
        digits = word >> np.uint64(shift)
        among = digits[digits >> np.uint64(_DIGIT) == np.uint64(prefix)] & np.uint64(bins - 1)
        return np.bincount(among.astype(np.int64), minlength=bins).astype(np.uint64)
    counts = xp.zeros(bins, dtype=np.uint64)
    blocks = min(_BLOCKS, (len(word) + _TILE - 1) // _TILE)
    args = [word, np.int64(len(word)), np.int32(shift), np.uint64(prefix), counts]
    launch(kernel(xp, "top_k", "count_digits"), blocks * THREADS, args)
    return counts


def _chosen(words: Sequence[Array], rows: int, count: int, xp: ModuleType) -> Array:
    """Which rows are the first ones, in order of the rows."""
    last = np.uint64(nth(words[0], count - 1, xp))
    first, rest = words[0], words[1:]
    upto, numbers = compact([first, xp.arange(rows, dtype=np.int64)], first <= last, xp)
    if len(numbers) == count:
        return numbers
    tied = upto == last
    equal = xp.flatnonzero(tied)
    lacking = count - (len(numbers) - len(equal))
    if rest:
        later = [word[numbers[equal]] for word in rest]
        taken = equal[xp.sort(smallest(later, len(equal), lacking, xp))]
    else:
        taken = equal[:lacking]
    keep = ~tied
    keep[taken] = True
    return compact([numbers], keep, xp)[0]


@dataclass(frozen=True)
class DeviceTopK(DeviceKernel):
    """The first rows of the sorted order, as a stable sort and a limit would give them.

    Attributes:
        keys: most significant first.
        count: how many rows.
        held: bytes of rows that may be held on the device; None takes `held_bytes`. If the first rows are more
            than half of it, all rows are sorted, as `DeviceSort` does.
    """

    keys: tuple[SortKey, ...]
    count: int
    held: int | None = None

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        if not self.count:
            return
        xp = array_namespace()
        limit = held_bytes(context, xp) if self.held is None else self.held
        stream = device_tables(inputs[0], xp)
        held: list[DeviceTable] = []
        rows = 0
        for table in stream:
            held.append(table)
            rows += table.rows
            if rows < self.count + UNIT_ROWS and sum(piece.nbytes for piece in held) <= limit:
                continue
            full = not self._reduced(held, xp)
            rows = held[0].rows
            if full or held[0].nbytes > limit // 2:
                yield from self._of_all(chain(drained(held), stream), limit // 4 if full else limit, context)
                return
        if held and not self._reduced(held, xp):
            yield from self._of_all(drained(held), limit // 4, context)
            return
        for table in held:
            yield from (table.slice(start, start + UNIT_ROWS) for start in range(0, table.rows, UNIT_ROWS))

    def _of_all(self, stream: DeviceStream, limit: int, context: Context) -> DeviceStream:
        """The first rows after all were sorted."""
        left = self.count
        for table in DeviceSort(self.keys, limit).run([stream], context):
            yield table.slice(0, left)
            left -= table.rows
            if left <= 0:
                return

    def _reduced(self, held: list[DeviceTable], xp: ModuleType) -> bool:
        """Put the first rows of tables in their place; False if the device is full, and they are as they were."""
        try:
            held[:] = [retried(self._best, held, xp)]
        except DeviceMemoryError:
            return False
        return True

    def _best(self, held: Sequence[DeviceTable], xp: ModuleType) -> DeviceTable:
        table = concat(held, xp)
        words = sort_words([table.column(key.column) for key in self.keys], self.keys, xp)
        return table.take(smallest(words, table.rows, self.count, xp))


@lowers(TopKKernel)
def lower_top_k(kernel: TopKKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Find the first rows on the device if rows have a place there."""
    return unordered(kernel.keys, schemas[0]) or DeviceTopK(kernel.keys, kernel.count)
