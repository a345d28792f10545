"""DeviceBlocks: what one task leaves on the worker's device beside its blocks, and finds there of tasks before it.

A block always lies on the node's disk; what stays on the device only spares the way there for whoever reads that block
next in this process. It has the same rows, so nothing else depends on whether it is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...ops.backend import array_namespace
from ...ops.device.cache import BlockKey, DeviceCache
from ...ops.device.streams import rechunk
from ...ops.device.table import DeviceTable
from ...ops.device.transfer import UNIT_ROWS
from ..task import Segment, Task


class DeviceBlocks:
    """Blocks of one task, on the device.

    Args:
        cache: the worker's.
        task: whose partitions are computed, one after the other.
    """

    def __init__(self, cache: DeviceCache, task: Task):
        self._cache, self._task = cache, task
        self._passed: list[DeviceTable] | None = None

    def passing(self, stream: Iterator[DeviceTable]) -> Iterator[DeviceTable]:
        """Remember the tables of a partition on their way to the host, as far as the cache has room for them."""
        self._passed, size = [], 0
        for table in stream:
            size += table.nbytes
            if self._passed is not None:
                self._passed.append(table)
                if size > self._cache.budget:
                    self._passed = None
            yield table

    def keep(self, partition: int) -> None:
        """Leave what has passed on the device, now that the partition's block is there."""
        passed, self._passed = self._passed, None
        if passed:
            key = BlockKey(self._task.run, self._task.stage, partition, self._task.attempt)
            self._cache.put(key, [passed])

    def find(self, segments: Sequence[Segment]) -> list[DeviceTable] | None:
        """Return the rows of blocks of one segment each, cut as `ToDevice` cuts them; None if one isn't here."""
        found: list[DeviceTable] = []
        for segment in segments:
            key = BlockKey(self._task.run, segment.stage, segment.partition, segment.attempt)
            tables = self._cache.get(key, 0)
            if tables is None:
                return None
            found += tables
        return list(rechunk(found, UNIT_ROWS, array_namespace()))
