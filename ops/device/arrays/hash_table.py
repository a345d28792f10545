"""Hash table on a device: the first row that has a key of 64 bits.

What a lookup returns depends on the rows alone, though threads race for the slots: a key's row is the least of those
that have it.

Source: Knuth, The Art of Computer Programming 3, 6.4 (linear probing); the hash is the finalizer of MurmurHash3,
Appleby 2011.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ...backend import Array
from ...key_table import key_table
from ..modules import kernel, launch, on_device

#: keys below so many times the rows are places in an array
_SPARSE = 4
_EMPTY = np.uint64((1 << 64) - 1)


class HashTable:
    """Keys, and for each the first row that has it.

    Traffic, in bytes a row: to build, 9 for the key and its mark, and 32 to 64 for its slot, which lies anywhere; for
    a lookup, as much and 8 for the result. The table takes 32 to 64 bytes a row, 8 for each possible key where
    these are few.

    Args:
        keys: shape (rows,), dtype uint64.
        known: shape (rows,), dtype bool; the other rows aren't put in.
        size: all known keys are below it.
        xp: NumPy or CuPy.

    Attributes:
        rows: how many rows were put in, known or not.

    Example:
        >>> table = HashTable(np.array([7, 5, 7], np.uint64), np.ones(3, bool), 8, np)
        >>> table.lookup(np.array([5, 6, 7], np.uint64), np.ones(3, bool)).tolist()
        [1, -1, 0]
    """

    def __init__(self, keys: Array, known: Array, size: int, xp: ModuleType):
        self.rows = rows = int(keys.shape[0])
        self._xp = xp
        self._direct = size <= max(_SPARSE * rows, 1024)
        if not on_device(xp):
            self._places = np.flatnonzero(known)
            self._table = key_table(keys[self._places].view(np.int64))
        elif self._direct:
            self._slots = xp.full(max(size, 1), _EMPTY, dtype=np.uint64)
            args = [keys, known, np.int64(rows), self._slots]
            launch(kernel(xp, "hash_table", "insert_places"), rows, args)
        else:
            capacity = 1 << (2 * rows - 1).bit_length()  # at most half full
            self._mask = np.uint64(capacity - 1)
            self._slots = xp.full(2 * (capacity + 1), _EMPTY, dtype=np.uint64)
            args = [keys, known, np.int64(rows), self._mask, self._slots]
            launch(kernel(xp, "hash_table", "insert_keys"), rows, args)

    def lookup(self, keys: Array, known: Array) -> Array:
        """Return the first row of each key, -1 for one that isn't here, or isn't known.

        Args:
            keys: shape (n,), dtype uint64, below the table's size where known.
            known: shape (n,), dtype bool.

        Returns:
            Shape (n,), dtype int64.
        """
        xp, rows = self._xp, int(keys.shape[0])
        if not on_device(xp):
            found = np.full(rows, -1, np.int64)
            codes = self._table.lookup(keys[known].view(np.int64))
            found[known] = np.where(
                codes < 0, -1, self._places[np.maximum(codes, 0)] if len(self._places) else -1
            )
            return found
        found = xp.empty(rows, dtype=np.int64)
        if self._direct:
            args = [keys, known, np.int64(rows), self._slots.view(np.int64), found]
            launch(kernel(xp, "hash_table", "find_places"), rows, args)
        else:
            args = [keys, known, np.int64(rows), self._mask, self._slots, found]
            launch(kernel(xp, "hash_table", "find_keys"), rows, args)
        return found
