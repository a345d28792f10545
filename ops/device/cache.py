"""DeviceCache: blocks that stay on the device for the next stage, within a budget of bytes."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakSet

import numpy as np

from .table import DeviceTable


class BlockKey(NamedTuple):
    """Names a block: the result of one attempt at a partition."""

    run: str
    stage: int
    partition: int
    attempt: int


#: rows in the order of their segments; and the first row of each segment, and the end of the last
Bounds = Sequence[int] | np.ndarray
Part = tuple[DeviceTable, Bounds]


@dataclass(frozen=True)
class _Cached:
    """A block's parts, their bytes, and where its segments lie in the block on the host.

    A part holds rows of all segments, so that thousands of segments cost nothing; a segment is cut when it is read.
    """

    parts: tuple[Part, ...]
    bytes: int
    offsets: tuple[int, ...]

    def between(self, first: int, last: int) -> list[DeviceTable]:
        """The rows of segments ``first`` up to ``last``, one segment after the other."""
        return [
            table.slice(int(bounds[segment]), int(bounds[segment + 1]))
            for segment in range(first, last)
            for table, bounds in self.parts
            if bounds[segment] < bounds[segment + 1]
        ]


class Draft:
    """Rows of a block that is still being made; see `DeviceCache.draft`.

    Attributes:
        bytes: of its tables.
        parts: what there is so far, in order; None once there is no room for it.
    """

    def __init__(self, cache: DeviceCache):
        self._cache, self.bytes = cache, 0
        self.parts: list[Part] | None = []

    def add(self, table: DeviceTable, bounds: Bounds) -> None:
        """Add rows that lie in the order of their segments, and where these begin."""
        with self._cache._lock:
            if self.parts is not None and self._cache._has_room(table.nbytes):
                self.parts.append((table, bounds))
                self.bytes += table.nbytes
            else:
                self.give_up()

    def give_up(self) -> int:
        """Let go of the rows, and of those to come; returns the bytes."""
        freed, self.parts, self.bytes = self.bytes, None, 0
        return freed


class DeviceCache:
    """Results of a worker's tasks that lie on its device beside the blocks on the host, the last used ones.

    What is dropped is read from the host. All tasks of a worker share one; any thread may use it.

    Args:
        budget: most bytes of the device's memory.

    Attributes:
        hits, misses: how often a block was there, and wasn't.
        dropped_bytes: what had to go for lack of room.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from headwater.ops.device.table import to_device
        >>> cache, rows = DeviceCache(100), to_device(pa.table({"x": [1, 2, 3]}), np)
        >>> cache.put(BlockKey("r", 0, 0, 0), [[rows]])
        True
        >>> len(cache.get(BlockKey("r", 0, 0, 0), 0)), cache.bytes, cache.get(BlockKey("r", 0, 1, 0), 0)
        (1, 24, None)
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.bytes = self.hits = self.misses = self.dropped_bytes = 0
        self._blocks: OrderedDict[BlockKey, _Cached] = OrderedDict()
        self._drafts: WeakSet[Draft] = WeakSet()
        self._lock = threading.RLock()

    def put(
        self,
        key: BlockKey,
        segments: Sequence[Sequence[DeviceTable]],
        offsets: Sequence[int] = (),
    ) -> bool:
        """Keep a block.

        Args:
            key: of the block.
            segments: its rows; one sequence of tables for each partition of its exchange.
            offsets: byte offset of each segment in the block on the host, and the end of the last, for `find`.

        Returns:
            Whether it is kept; one that is larger than the budget isn't.
        """
        parts: list[Part] = [
            (table, [0] * (number + 1) + [table.rows] * (len(segments) - number))
            for number, tables in enumerate(segments)
            for table in tables
        ]
        return self.put_parts(key, parts, offsets)

    def put_parts(self, key: BlockKey, parts: Sequence[Part], offsets: Sequence[int]) -> bool:
        """As `put`, of rows that lie together, in the order of their segments."""
        size = sum(table.nbytes for table, _ in parts)
        with self._lock:
            self._remove(key)
            if size > self.budget:
                return False
            self._make_room(self.budget - size)
            self._blocks[key] = _Cached(tuple(parts), size, tuple(map(int, offsets)))
            self.bytes += size
            return True

    def get(self, key: BlockKey, segment: int) -> tuple[DeviceTable, ...] | None:
        """Return the tables of one segment of a block; None if the block isn't here."""
        with self._lock:
            block = self._used(key)
        return None if block is None else tuple(block.between(segment, segment + 1))

    def find(self, key: BlockKey, start: int, stop: int, rows: int) -> list[DeviceTable] | None:
        """Return the tables of a byte range of the block on the host, which is some of its segments.

        Args:
            key: of the block.
            start, stop: the range.
            rows: that it has.

        Returns:
            Its tables in order; None if the block isn't here, or isn't cut so.
        """
        with self._lock:
            block = self._used(key)
        if block is None:
            return None
        first, last = bisect_left(block.offsets, start), bisect_left(block.offsets, stop)
        if block.offsets[first : first + 1] != (start,) or block.offsets[last : last + 1] != (stop,):
            return None
        found = block.between(first, last)
        return found if sum(table.rows for table in found) == rows else None

    def size(self, key: BlockKey) -> int:
        """Bytes of a block; 0 if it isn't here."""
        with self._lock:
            return self._blocks[key].bytes if key in self._blocks else 0

    def holds(self, run: str, stage: int) -> bool:
        """Whether there is any block of a stage."""
        with self._lock:
            return any((key.run, key.stage) == (run, stage) for key in self._blocks)

    def draft(self) -> Draft:
        """Begin a block; it is given up if the rows of all drafts exceed the budget, or the device is full.

        It counts only while somebody holds it. Once all its rows are there, `put_parts` keeps them.
        """
        draft = Draft(self)
        with self._lock:
            self._drafts.add(draft)
        return draft

    def drop(self, keys: Sequence[BlockKey]) -> None:
        """Let go of blocks that nobody reads any more."""
        with self._lock:
            for key in keys:
                self._remove(key)

    def forget(self, run: str) -> None:
        """Let go of all blocks of a run."""
        with self._lock:
            for key in [key for key in self._blocks if key.run == run]:
                self._remove(key)

    def clear(self) -> int:
        """Let go of everything, as the device is full; returns the bytes. For `memory.on_low_memory`."""
        with self._lock:
            return sum(draft.give_up() for draft in list(self._drafts)) + self._make_room(0)

    def _has_room(self, size: int) -> bool:
        return sum(draft.bytes for draft in list(self._drafts)) + size <= self.budget

    def _used(self, key: BlockKey) -> _Cached | None:
        block = self._blocks.get(key)
        if block is None:
            self.misses += 1
            return None
        self.hits += 1
        self._blocks.move_to_end(key)
        return block

    def _make_room(self, most: int) -> int:
        """Drop what wasn't used for longest until the rest takes at most so many bytes; returns the bytes dropped."""
        before = self.bytes
        while self.bytes > most:
            self._remove(next(iter(self._blocks)))
        self.dropped_bytes += before - self.bytes
        return before - self.bytes

    def _remove(self, key: BlockKey) -> None:
        if key in self._blocks:
            self.bytes -= self._blocks.pop(key).bytes
