"""DeviceBlocks: what one task leaves on the worker's device beside its blocks, and finds there of tasks before it.

A block always lies on the node's disk; what stays on a device only spares the way there for whoever reads that block
next, in this process or in another one of the machine. It has the same rows in the same order, and what is read is cut
at fixed row numbers; so nothing else depends on whether it is found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from ...ops.backend import array_namespace
from ...ops.device.cache import BlockKey, Bounds, DeviceCache, Draft
from ...ops.device.modules import on_device
from ...ops.device.streams import rechunk
from ...ops.device.table import DeviceTable
from ...ops.device.transfer import UNIT_ROWS
from ..task import Segment, Task
from .device_borrowing import DeviceBorrowing

#: values of a dictionary that every reader of a segment may be burdened with; more only if the segment has more rows
_FREE_VALUES = 1024

#: brings rows of segments from the host, in their order
FromHost = Callable[[Sequence[Segment]], Iterator[DeviceTable]]


class DeviceBlocks:
    """Blocks of one task, on the device.

    Args:
        cache: the worker's.
        task: whose partitions are computed, one after the other.
        node: id of the worker's.
        borrowing: copies what other workers of the node have on their devices; None if nobody is to be asked.
        cancelled: ends waiting for them.

    Attributes:
        own_bytes: that were read here where they lay on this process's device.
        borrowed_bytes: that were copied from another's.
    """

    def __init__(
        self,
        cache: DeviceCache,
        task: Task,
        node: str = "",
        borrowing: DeviceBorrowing | None = None,
        cancelled: threading.Event | None = None,
    ):
        self._cache, self._task, self._node = cache, task, node
        self._borrowing, self._cancelled = borrowing, cancelled or threading.Event()
        self._draft: Draft | None = None
        self.own_bytes = self.borrowed_bytes = 0

    # -- what the task makes ------------------------------------------------------------------------

    def passing(self, stream: Iterator[DeviceTable]) -> Iterator[DeviceTable]:
        """Remember a partition's tables on their way to the host, as far as there is room; they are one segment."""
        self.begin()
        for table in stream:
            self.add(table, (0, table.rows))
            yield table

    def begin(self) -> None:
        """Begin to remember a partition's rows."""
        self._draft = self._cache.draft()

    def add(self, table: DeviceTable, bounds: Bounds) -> None:
        """Remember rows that lie in the order of their segments, and where these begin."""
        assert self._draft is not None
        if _heavy(table, len(bounds) - 1):
            self._draft.give_up()
        self._draft.add(table, bounds)

    def keep(self, partition: int, offsets: np.ndarray) -> None:
        """Leave what has passed on the device, now that the partition's block is there.

        Args:
            partition: which one.
            offsets: of the block's segments, see `Block`.
        """
        draft, self._draft = self._draft, None
        parts = None if draft is None else draft.parts  # which another task may give up meanwhile
        if not parts or len(parts[0][1]) != len(offsets):
            return  # or the host has cut them into segments
        xp = array_namespace()
        if on_device(xp):
            xp.cuda.get_current_stream().synchronize()  # others read it, in whatever order
        key = BlockKey(self._task.run, self._task.stage, partition, self._task.attempt)
        self._cache.put_parts(key, parts, offsets.tolist())

    # -- what the task reads ------------------------------------------------------------------------

    def read(
        self,
        segments: Sequence[Segment],
        schema: pa.Schema,
        host: FromHost,
        seen: Callable[[DeviceTable], object],
    ) -> Iterator[DeviceTable]:
        """Yield the rows of segments, from a device where they are on one, else from the host; cut as `ToDevice` does.

        Args:
            segments: in order.
            schema: of the rows.
            host: brings rows.
            seen: is shown each table that was found on a device.
        """
        return rechunk(self._pieces(segments, schema, host, seen), UNIT_ROWS, array_namespace())

    def _pieces(
        self,
        segments: Sequence[Segment],
        schema: pa.Schema,
        host: FromHost,
        seen: Callable[[DeviceTable], object],
    ) -> Iterator[DeviceTable]:
        waiting: list[Segment] = []
        for window in _windows(segments):
            found = self._found(window, schema)
            waiting += window  # with those before that are all on the host, which then come together
            if found:
                yield from _interleaved(waiting, found, host, seen)
                waiting = []
        if waiting:
            yield from host(waiting)

    def _found(self, segments: Sequence[Segment], schema: pa.Schema) -> dict[Segment, list[DeviceTable]]:
        """The segments that are on a device."""
        found: dict[Segment, list[DeviceTable]] = {}
        for segment in segments:
            key = BlockKey(self._task.run, segment.stage, segment.partition, segment.attempt)
            stop = segment.offset + segment.length
            tables = self._cache.find(key, segment.offset, stop, segment.rows)
            if tables is not None and _fits(tables, schema):
                found[segment] = [DeviceTable(table.columns, schema, table.rows) for table in tables]
        self.own_bytes += _bytes(found)
        lacking = [segment for segment in segments if segment not in found and segment.node == self._node]
        if self._borrowing is not None and lacking:
            siblings = self._task.nodes.get(self._node, ())
            borrowed = self._borrowing.borrow(self._task.run, lacking, schema, siblings, self._cancelled)
            self.borrowed_bytes += _bytes(borrowed)
            found |= borrowed
        return found


def _windows(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Group segments so that each group but the last has at least the rows of a unit."""
    window: list[Segment] = []
    rows = 0
    for segment in segments:
        window.append(segment)
        rows += segment.rows
        if rows >= UNIT_ROWS:
            yield window
            window, rows = [], 0
    if window:
        yield window


def _interleaved(
    segments: Sequence[Segment],
    found: dict[Segment, list[DeviceTable]],
    host: FromHost,
    seen: Callable[[DeviceTable], object],
) -> Iterator[DeviceTable]:
    """Yield rows in the order of their segments; those that aren't found come from the host in one stream."""
    others = [segment for segment in segments if segment not in found]
    rest = _Rows(host(others) if others else iter(()))
    for segment in segments:
        if segment not in found:
            yield from rest.take(segment.rows)
            continue
        for table in found.pop(segment):
            seen(table)
            yield table
    rest.end()


class _Rows:
    """A stream of which rows are taken by their number."""

    def __init__(self, stream: Iterator[DeviceTable]):
        self._stream = stream
        self._held: DeviceTable | None = None

    def take(self, rows: int) -> Iterator[DeviceTable]:
        while rows > 0:
            table = self._held or next(self._stream, None)
            if table is None:
                raise ValueError("segments have fewer rows on the host than they are said to have")
            part = table if table.rows <= rows else table.slice(0, rows)
            self._held = table.slice(rows, table.rows) if table.rows > rows else None
            rows -= part.rows
            yield part

    def end(self) -> None:
        """Let the stream come to its end, which must be here."""
        if self._held is not None or next(self._stream, None) is not None:
            raise ValueError("segments have more rows on the host than they are said to have")


def _fits(tables: Sequence[DeviceTable], schema: pa.Schema) -> bool:
    return all(t.schema.names == schema.names and t.schema.types == schema.types for t in tables)


def _bytes(found: dict[Segment, list[DeviceTable]]) -> int:
    return sum(table.nbytes for tables in found.values() for table in tables)


def _heavy(table: DeviceTable, segments: int) -> bool:
    """Whether each reader of a segment would have to look at many more strings than it has rows."""
    most = max(_FREE_VALUES, table.rows // max(1, segments))
    return any(c.dictionary is not None and len(c.dictionary) > most for c in table.columns)
