"""Exchange, map side: a partition's stream is cut into the segments of one block.

Sort-based, as Spark's: rows are gathered, ordered by segment with a stable radix sort, and, when
memory runs short, put aside as sorted runs that are merged at the end. Within a segment rows keep
the order of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...ops.morsels import gather
from ...ops.partitioner import Partitioner
from ..nodes.block_index import BlockLabel, encode
from ..nodes.blocks import BlockWriter, map_range, read_segment
from ..nodes.scratch_file import ScratchFile
from .recut import joined, recut, rows_only

#: least memory, in bytes, that is worth sorting at once
_LEAST_CHUNK = 1 << 20


@dataclass(frozen=True)
class BlockIndex:
    """What a block's writer found out.

    Attributes:
        offsets: byte offset of each segment and the end of the last, shape (R + 1,), int64.
        rows: rows of each segment, shape (R,), int64.
        spilled_bytes: bytes that went through spill files.
    """

    offsets: np.ndarray
    rows: np.ndarray
    spilled_bytes: int = 0


def write_block(
    file: ScratchFile,
    stream: Iterator[pa.Table],
    schema: pa.Schema,
    partitioner: Partitioner | None = None,
    partition: int = 0,
    memory_bytes: int = 64 << 20,
    spill: Callable[[], ScratchFile] | None = None,
    label: Callable[[], BlockLabel] | None = None,
) -> BlockIndex:
    """Write a partition's rows as one block, cut by a partitioner.

    Args:
        file: where to; the caller publishes it.
        stream: the rows.
        schema: of the rows.
        partitioner: gives each row its segment; None leaves one segment, the partition.
        partition: index of the map partition, for partitioners that ask.
        memory_bytes: how much to hold before rows are put aside.
        spill: begins a file for rows put aside; None holds all in memory.
        label: tells, once all rows have passed, what the block is to say of itself; None leaves it out.

    Returns:
        Where the segments lie.

    Raises:
        DiskFullError: the quota or the disk is full.
    """
    count = 1 if partitioner is None else partitioner.count
    writer = BlockWriter(file, schema, count)
    with ExitStack() as runs_on_disk:
        if partitioner is None or count == 1:
            segments, cutter = iter([(0, stream)]), None
        else:
            cutter = _Cutter(schema, partitioner, partition, memory_bytes, spill, runs_on_disk)
            segments = cutter.cut(stream)
        for segment, rows in segments:
            for table in recut(rows, schema):
                writer.write(segment, table)
        offsets, counts = writer.finish_segments()
        writer.close(encode(label(), offsets, counts) if label else None)
    return BlockIndex(offsets, counts, cutter.spilled_bytes if cutter else 0)


@dataclass(frozen=True)
class _HeldRun:
    """Rows sorted by segment, in memory; ``bounds`` has shape (R + 1,)."""

    table: pa.Table
    bounds: np.ndarray

    def segment(self, index: int) -> Iterator[pa.Table]:
        start, stop = int(self.bounds[index]), int(self.bounds[index + 1])
        if stop > start:
            yield self.table.slice(start, stop - start)


@dataclass(frozen=True)
class _SpilledRun:
    """Rows sorted by segment, as a block in the spill folder; ``whole`` is all its segments, mapped."""

    whole: pa.Buffer
    offsets: np.ndarray
    schema: pa.Schema

    def segment(self, index: int) -> Iterator[pa.Table]:
        start, stop = (int(offset - self.offsets[0]) for offset in self.offsets[index : index + 2])
        yield from read_segment(self.whole.slice(start, stop - start), self.schema)


class _Cutter:
    def __init__(
        self,
        schema: pa.Schema,
        partitioner: Partitioner,
        partition: int,
        memory_bytes: int,
        spill: Callable[[], ScratchFile] | None,
        files: ExitStack,
    ):
        self._schema, self._partitioner, self._partition = schema, partitioner, partition
        # a chunk is held three times while it is sorted (as it came, joined, sorted), beside the runs
        self._chunk_bytes = max(_LEAST_CHUNK, memory_bytes // 12)
        self._held_bytes = max(_LEAST_CHUNK, memory_bytes * 3 // 4)
        self._spill, self._files = spill, files
        self._runs: list[_HeldRun | _SpilledRun] = []
        self.spilled_bytes = 0

    def cut(self, stream: Iterator[pa.Table]) -> Iterator[tuple[int, Iterator[pa.Table]]]:
        """Take the whole stream in, then yield each segment and its rows."""
        tables: list[pa.Table] = []
        ids: list[np.ndarray] = []
        offset = pending = held = 0
        for table in stream:
            if held >= self._held_bytes and self._spill is not None:  # not before there is more to hold
                self._put_aside()
                held = 0
            tables.append(table)
            ids.append(self._partitioner.assign(table, self._partition, offset).astype(self._id_type))
            offset, pending = offset + table.num_rows, pending + table.nbytes
            if pending >= self._chunk_bytes:
                held += self._sort(tables, ids)
                tables, ids, pending = [], [], 0
        if tables:
            self._sort(tables, ids)
        for segment in range(self._partitioner.count):
            yield segment, self._merged(segment)

    @property
    def _id_type(self) -> type[np.unsignedinteger]:
        return np.uint16 if self._partitioner.count <= 1 << 16 else np.uint32  # NumPy radix-sorts 16 bits

    def _sort(self, tables: list[pa.Table], ids: list[np.ndarray]) -> int:
        segment_of = np.concatenate(ids)
        counts = np.bincount(segment_of, minlength=self._partitioner.count)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        if self._schema.names:
            order = np.argsort(segment_of, kind="stable").astype(np.uint32)
            table = gather(joined(tables, self._schema), order)
        else:
            table = rows_only(len(segment_of))
        self._runs.append(_HeldRun(table, bounds))
        return table.nbytes

    def _put_aside(self) -> None:
        """Merge the runs in memory into one on disk."""
        assert self._spill is not None
        first = next(i for i, run in enumerate(self._runs) if isinstance(run, _HeldRun))
        held, self._runs = self._runs[first:], self._runs[:first]
        file = self._files.enter_context(self._spill())
        writer = BlockWriter(file, self._schema, self._partitioner.count)
        for segment in range(self._partitioner.count):
            rows = (table for run in held for table in run.segment(segment))
            for table in recut(rows, self._schema):
                writer.write(segment, table)
        offsets, _ = writer.close()
        self.spilled_bytes += file.finish()
        start, stop = int(offsets[0]), int(offsets[-1])
        self._runs.append(_SpilledRun(map_range(file.draft, start, stop - start), offsets, self._schema))

    def _merged(self, segment: int) -> Iterator[pa.Table]:
        return (table for run in self._runs for table in run.segment(segment))
