"""DeviceCache: blocks that stay on the device for the next stage, within a budget of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from .table import DeviceTable


class BlockKey(NamedTuple):
    """Names a block: the result of one attempt at a partition."""

    run: str
    stage: int
    partition: int
    attempt: int


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
        self._blocks: OrderedDict[BlockKey, tuple[tuple[tuple[DeviceTable, ...], ...], int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: BlockKey, segments: Sequence[Sequence[DeviceTable]]) -> bool:
        """Keep a block.

        Args:
            key: of the block.
            segments: its rows; one sequence of tables for each partition of its exchange.

        Returns:
            Whether it is kept; one that is larger than the budget isn't.
        """
        kept = tuple(tuple(tables) for tables in segments)
        size = sum(table.nbytes for tables in kept for table in tables)
        with self._lock:
            self._remove(key)
            if size > self.budget:
                return False
            self._make_room(self.budget - size)
            self._blocks[key] = kept, size
            self.bytes += size
            return True

    def get(self, key: BlockKey, segment: int) -> tuple[DeviceTable, ...] | None:
        """Return the tables of one segment of a block; None if the block isn't here."""
        with self._lock:
            if key not in self._blocks:
                self.misses += 1
                return None
            self.hits += 1
            self._blocks.move_to_end(key)
            return self._blocks[key][0][segment]

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
            return self._make_room(0)

    def _make_room(self, most: int) -> int:
        """Drop what wasn't used for longest until the rest takes at most so many bytes; returns the bytes dropped."""
        before = self.bytes
        while self.bytes > most:
            self._remove(next(iter(self._blocks)))
        self.dropped_bytes += before - self.bytes
        return before - self.bytes

    def _remove(self, key: BlockKey) -> None:
        if key in self._blocks:
            self.bytes -= self._blocks.pop(key)[1]
