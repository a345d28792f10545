"""Groups on a device: rows with equal keys get one number, in order of first appearance.

Equality is that of `ops.grouping`: null is a value, all NaN are one, -0.0 equals 0.0. Words below a small size are
slots themselves; others find theirs in a hash table of twice the rows. A slot keeps the first row of its key, which
integer atomics find whatever the order of threads; groups are numbered by these rows, so that the numbers don't
depend on where in the table a key lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ... import grouping as on_host
from ...backend import Array
from ..column import DeviceColumn
from ..modules import kernel, launch, on_device
from .key_words import KeyWords, key_words

#: words below so many are slots, however few the rows are
_SLOTS = 4096
#: and those below so many times the rows
_SPARSE = 2
#: slots are numbered by sorting them where there are so many times as many rows
_SORTED = 8
#: of a slot that no row took, and more than any row
FREE = np.int32((1 << 31) - 1)
#: rows of one block that counts
TILE = 4096
#: rows of a thread in kernels that look up, as in the source
_EACH = 4


@dataclass(frozen=True)
class DeviceGroups:
    """Which group each row is in.

    Attributes:
        codes: the group of each row; shape (rows,), int32, numbered by first appearance.
        count: how many groups. A group without rows is legal.
        first_rows: the first row of each group, ascending; shape (count,), int64.
        xp: the namespace of the arrays.
    """

    codes: Array
    count: int
    first_rows: Array
    xp: ModuleType

    def __len__(self) -> int:
        return int(self.codes.shape[0])

    @cached_property
    def sizes(self) -> Array:
        """How many rows each group has; shape (count,), int64."""
        return self.count_valid(None)

    @cached_property
    def order(self) -> Array:
        """Rows by group, those of one as they stand; shape (rows,), int64."""
        codes, xp = self.codes, self.xp
        for dtype in (np.uint8, np.uint16):  # narrow keys are sorted in fewer passes
            if self.count <= np.iinfo(dtype).max:
                codes = codes.astype(dtype)
                break
        return xp.argsort(codes, kind="stable").astype(np.int64, copy=False)

    @cached_property
    def starts(self) -> Array:
        """Where the rows of each group begin in `order`; shape (count,), int64."""
        return self.xp.cumsum(self.sizes) - self.sizes

    def count_valid(self, valid: Array | None) -> Array:
        """Count each group's rows that aren't null.

        Moves 5 bytes a row, 4 without a mask.

        Args:
            valid: shape (rows,), bool; None is all rows.

        Returns:
            Shape (count,), int64.
        """
        xp = self.xp
        if not on_device(xp):
            codes = self.codes if valid is None else self.codes[valid]
            return np.bincount(codes, minlength=self.count)
        counts = xp.zeros(self.count, dtype=np.uint64)
        flags = self.codes if valid is None else valid
        args = (self.codes, flags, np.int32(valid is not None), np.int32(len(self)), np.int32(self.count))
        launch(kernel(xp, "grouping", "count_rows", WORD="u32"), len(self), (*args, counts), each=TILE // 256)
        return counts.view(np.int64)


def group(columns: Sequence[DeviceColumn], rows: int, xp: ModuleType) -> DeviceGroups:
    """Number the groups of equal rows.

    After `key_words` it moves, a row, 12 bytes where words are few (each word of 4 bytes twice, the code, and slots in
    cache), else about 40 and three accesses at random places; 8 more where words have 8 bytes.

    Args:
        columns: the keys, each of ``rows`` values; none puts all rows in one group.
        rows: how many rows, below 2**31 - 1.
        xp: NumPy or CuPy.

    Raises:
        ValueError: too many rows.

    Example:
        >>> from headwater.ops.device.column import to_device
        >>> groups = group([to_device(pa.array(["b", "a", "b", None]), np)], 4, np)
        >>> groups.codes.tolist(), groups.first_rows.tolist()
        ([0, 1, 0, 2], [0, 1, 3])
    """
    if rows >= int(FREE):
        raise ValueError(f"group: {rows} rows at once; give fewer than {int(FREE)}")
    keys = key_words(columns, rows, xp) if rows else None
    if keys is None or not keys.words.shape[0]:
        return _one_group(rows, xp)
    if not on_device(xp):
        found = on_host.group([pa.array(word) for word in keys.words], rows)
        return DeviceGroups(found.codes.astype(np.int32), found.count, found.first_rows, np)
    if keys.words.shape[0] == 1 and keys.size <= max(_SLOTS, _SPARSE * rows):
        return _direct(keys, rows, xp)
    return _hashed(keys, rows, xp)


def _one_group(rows: int, xp: ModuleType) -> DeviceGroups:
    count = min(rows, 1)
    return DeviceGroups(xp.zeros(rows, dtype=np.int32), count, xp.zeros(count, dtype=np.int64), xp)


def _direct(keys: KeyWords, rows: int, xp: ModuleType) -> DeviceGroups:
    word = keys.words[0]
    owners = xp.full(keys.size, FREE, dtype=np.int32)
    launch(_kernel("claim_direct", word, xp), rows, (word, np.int32(rows), owners), each=_EACH)
    if _SORTED * keys.size > max(rows, _SORTED * _SLOTS):
        return _numbered(owners, None, word, rows, xp)
    order = xp.argsort(owners)
    count = int(xp.count_nonzero(owners != FREE))
    numbers = xp.empty(keys.size, dtype=np.int32)
    numbers[order] = xp.arange(keys.size, dtype=np.int32)
    codes = xp.empty(rows, dtype=np.int32)
    launch(_kernel("look_up", word, xp), rows, (word, numbers, np.int32(rows), codes), each=_EACH)
    return DeviceGroups(codes, count, owners[order[:count]].astype(np.int64), xp)


def _hashed(keys: KeyWords, rows: int, xp: ModuleType) -> DeviceGroups:
    capacity = 1 << max(5, (2 * rows - 1).bit_length())
    owners = xp.full(capacity, FREE, dtype=np.int32)
    slots = xp.empty(rows, dtype=np.uint32)
    args = (keys.words, np.int32(keys.words.shape[0]), np.int32(rows), owners, np.uint64(capacity - 1), slots)
    launch(_kernel("claim_hashed", keys.words, xp), rows, args)
    return _numbered(owners, slots, keys.words, rows, xp)


def _numbered(owners: Array, slots: Array | None, words: Array, rows: int, xp: ModuleType) -> DeviceGroups:
    """Number groups by their first rows, given the slot of each row, or its word if that is the slot."""
    codes, marks = xp.empty(rows, dtype=np.int32), xp.empty(rows, dtype=np.int32)
    places = owners if slots is None else slots  # which the kernel doesn't read then
    args = (owners, places, words, np.int32(slots is None), np.int32(rows), codes, marks)
    launch(_kernel("find_firsts", words, xp), rows, args, each=_EACH)
    running = xp.cumsum(marks, dtype=np.int32)
    count = int(running[-1])
    first_rows = xp.empty(count, dtype=np.int64)
    launch(_kernel("number_rows", words, xp), rows, (running, np.int32(rows), codes, first_rows), each=_EACH)
    return DeviceGroups(codes, count, first_rows, xp)


def _kernel(name: str, words: Array, xp: ModuleType) -> Any:
    """A kernel for words of their width."""
    return kernel(xp, "grouping", name, WORD="u32" if words.dtype == np.uint32 else "u64")
