"""Key tables: the first row that has an integer key, looked up by whole columns.

A narrow range of keys indexes an array directly; others stand in a hash table with open addressing, whose
probes are array operations over all keys that are still looking.

Sources: Knuth, The Art of Computer Programming 3, 6.4 (Fibonacci hashing, linear probing); Polychroniou,
Raghavan and Ross 2015, "Rethinking SIMD vectorization for in-memory databases", section 5.1 (probes of many
keys at once).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

#: a direct table may have this many slots for each key, whatever their number
_SPARSE = 8
#: and this many while it has no more than ``_MOST_SLOTS``
_VERY_SPARSE = 64
_MOST_SLOTS = 1 << 24
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class KeyTable(Protocol):
    """Integer keys, and for each the first row that has it.

    Attributes:
        firsts: for each row that was put in, the first row with the same key; shape (rows,), integers.
    """

    firsts: np.ndarray

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """Return the first row of each key, -1 for one that isn't here; shape of ``keys``."""

    def renumber(self, numbers: np.ndarray) -> None:
        """Let lookups return ``numbers[row]`` in place of a first row."""


def key_table(keys: np.ndarray) -> KeyTable:
    """Build a table of keys.

    Args:
        keys: shape (rows,), int64.

    Returns:
        A direct table if the keys' range is narrow, or a hash table.

    Example:
        >>> table = key_table(np.array([7, 5, 7]))
        >>> table.firsts.tolist(), table.lookup(np.array([5, 6, 7])).tolist()
        ([0, 1, 0], [1, -1, 0])
    """
    if not len(keys):
        return DirectTable(keys, 0, 1)
    low, high = int(keys.min()), int(keys.max())
    return DirectTable(keys, low, high - low + 1) if high - low < most_slots(len(keys)) else HashTable(keys)


def most_slots(rows: int) -> int:
    """Return up to what range so many rows are better told apart by a direct table than by hashing."""
    return max(_SPARSE * rows, min(_VERY_SPARSE * rows, _MOST_SLOTS)) + 1024


class DirectTable:
    """A slot for each integer of a range; see `KeyTable`.

    Args:
        keys: shape (rows,), int64, all in the range.
        low: the smallest integer of the range.
        size: how many integers the range has.
    """

    def __init__(self, keys: np.ndarray, low: int, size: int):
        self._low, self._size = np.int64(low), np.uint64(size)
        self._slots = np.full(size + 1, -1, dtype=_row_type(len(keys)))  # the last stands for all others
        places = keys - self._low
        # of equal keys, the first is written last
        self._slots[places[::-1]] = np.arange(len(keys) - 1, -1, -1)
        self.firsts = self._slots[places]

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        places = (keys - self._low).view(np.uint64)  # what lies below the range wraps around to far above it
        return self._slots[np.minimum(places, self._size).view(np.int64)]

    def renumber(self, numbers: np.ndarray) -> None:
        _renumber(self._slots, numbers)


class HashTable:
    """Open addressing, at most half full; see `KeyTable`.

    Args:
        keys: shape (rows,), int64.
    """

    def __init__(self, keys: np.ndarray):
        bits = max(4, int(2 * len(keys) - 1).bit_length())
        self._shift, self._mask = np.uint64(64 - bits), np.int64((1 << bits) - 1)
        self._slots = np.full(1 << bits, -1, dtype=_row_type(len(keys)))
        self._keys = np.zeros(1 << bits, dtype=np.int64)
        self.firsts = np.empty(len(keys), dtype=self._slots.dtype)
        waiting, places = np.arange(len(keys)), self._hashed(keys)
        while len(waiting):
            free = self._slots[places] < 0
            late, spots = waiting[free][::-1], places[free][::-1]
            self._slots[spots] = late  # of those that want one slot, the first row is written last
            self._keys[spots] = keys[self._slots[spots]]
            wanted = keys[waiting]
            settled = self._keys[places] == wanted
            self.firsts[waiting[settled]] = self._slots[places[settled]]
            waiting, places = waiting[~settled], (places[~settled] + 1) & self._mask

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        places = self._hashed(keys)
        found = self._slots[places]
        looking = np.flatnonzero((self._keys[places] != keys) & (found >= 0))
        found[looking] = -1
        places = places[looking]
        while len(looking):
            places = (places + 1) & self._mask
            rows = self._slots[places]
            hits = (self._keys[places] == keys[looking]) & (rows >= 0)
            found[looking[hits]] = rows[hits]
            on = (rows >= 0) & ~hits
            looking, places = looking[on], places[on]
        return found

    def renumber(self, numbers: np.ndarray) -> None:
        _renumber(self._slots, numbers)

    def _hashed(self, keys: np.ndarray) -> np.ndarray:
        return ((keys.view(np.uint64) * _GOLDEN) >> self._shift).view(np.int64)


def _row_type(rows: int) -> type[np.signedinteger]:
    return np.int32 if rows < 1 << 31 else np.int64


def _renumber(slots: np.ndarray, numbers: np.ndarray) -> None:
    full = np.flatnonzero(slots >= 0)
    slots[full] = numbers[slots[full]]
