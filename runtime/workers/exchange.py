"""Exchange, map side: a partition's stream is cut into the segments of one block.

Sort-based, as Spark's: rows are gathered, ordered by segment with a stable radix sort, and, when
memory runs short, put aside as sorted runs that are merged at the end. Within a segment rows keep
the order of the stream. Rows that a device has put in that order already come as `PartitionedTable`, and are runs
as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from ...errors import PlanError
from ...ops.kernel import MORSEL_ROWS
from ...ops.morsels import gather
from ...ops.partitioned import PartitionedTable
from ...ops.partitioner import Partitioner
from ..nodes.block_index import BlockLabel, encode
from ..nodes.blocks import BlockWriter, map_range, read_segment
from ..nodes.scratch_file import ScratchFile
from .recut import MORSEL_BYTES, bytes_between, joined, recut, rows_only

#: least memory, in bytes, that is worth sorting at once
_LEAST_CHUNK = 1 << 20
#: rows of a block that are digested at once, if segments have fewer
_SHOWN_ROWS = 16_384


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
    stream: Iterator[pa.Table | PartitionedTable],
    schema: pa.Schema,
    partitioner: Partitioner | None = None,
    partition: int = 0,
    memory_bytes: int = 64 << 20,
    spill: Callable[[], ScratchFile] | None = None,
    label: Callable[[], BlockLabel] | None = None,
    passing: Callable[[pa.Table], object] | None = None,
) -> BlockIndex:
    """Write a partition's rows as one block, cut by a partitioner.

    Args:
        file: where to; the caller publishes it.
        stream: the rows; partitioned tables only if the same partitioner cut them.
        schema: of the rows.
        partitioner: gives each row its segment; None leaves one segment, the partition.
        partition: index of the map partition, for partitioners that ask.
        memory_bytes: how much to hold before rows are put aside.
        spill: begins a file for rows put aside; None holds all in memory.
        label: tells, once all rows have passed, what the block is to say of itself; None leaves it out.
        passing: is shown all rows, in the order in which they lie in the block; that order is the same wherever rows
            were partitioned.

    Returns:
        Where the segments lie.

    Raises:
        DiskFullError: the quota or the disk is full.
        PlanError: partitioned tables that the partitioner can't have cut.
    """
    count = 1 if partitioner is None else partitioner.count
    writer = BlockWriter(file, schema, count)
    with ExitStack() as runs_on_disk:
        pieces: Iterator[tuple[int, pa.Table]]
        if partitioner is None or count == 1:
            pieces, cutter = ((0, table) for table in recut(_in_order(stream, partitioner), schema)), None
            if passing is not None:
                pieces = _shown(pieces, schema, passing)
        else:
            cutter = _Cutter(schema, partitioner, partition, memory_bytes, spill, runs_on_disk)
            pieces = cutter.cut(stream, passing)
        for segment, table in pieces:
            writer.write(segment, table)
        offsets, counts = writer.finish_segments()
        writer.close(encode(label(), offsets, counts) if label else None)
    return BlockIndex(offsets, counts, cutter.spilled_bytes if cutter else 0)


@dataclass(frozen=True)
class _HeldRun:
    """Rows sorted by segment, in memory; ``bounds`` has shape (R + 1,)."""

    table: pa.Table
    bounds: np.ndarray

    @cached_property
    def batch(self) -> pa.RecordBatch:
        """The rows as a batch, of which slices cost less."""
        return self.table.to_batches()[0]

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

    def cut(
        self,
        stream: Iterator[pa.Table | PartitionedTable],
        passing: Callable[[pa.Table], object] | None = None,
    ) -> Iterator[tuple[int, pa.Table]]:
        """Take the whole stream in, then yield each segment's rows as morsels, with the segment's number."""
        tables: list[pa.Table] = []
        ids: list[np.ndarray] = []
        offset = pending = held = 0
        for table in stream:
            if held >= self._held_bytes and self._spill is not None:  # not before there is more to hold
                self._put_aside()
                held = 0
            if isinstance(table, PartitionedTable):
                held += self._sort(tables, ids) if tables else 0
                held += self._take(table)
                tables, ids, offset, pending = [], [], offset + table.num_rows, 0
                continue
            tables.append(table)
            ids.append(self._partitioner.assign(table, self._partition, offset).astype(self._id_type))
            offset, pending = offset + table.num_rows, pending + table.nbytes
            if pending >= self._chunk_bytes:
                held += self._sort(tables, ids)
                tables, ids, pending = [], [], 0
        if tables:
            self._sort(tables, ids)
        pieces = self._merged(self._runs)
        if passing is None:
            yield from pieces
        elif len(self._runs) == 1 and isinstance(self._runs[0], _HeldRun):
            passing(self._runs[0].table)
            yield from pieces
        else:
            yield from _shown(pieces, self._schema, passing)

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
        if table.num_rows:
            self._runs.append(_HeldRun(table, bounds))
        return table.nbytes

    def _take(self, rows: PartitionedTable) -> int:
        """Hold rows that are sorted already."""
        if len(rows.offsets) != self._partitioner.count + 1:
            raise PlanError(
                f"rows cut into {len(rows.offsets) - 1} segments came to {self._partitioner.describe()}"
            )
        table = joined([rows.table], self._schema) if self._schema.names else rows_only(rows.num_rows)
        if table.num_rows:
            self._runs.append(_HeldRun(table, rows.offsets))
        return table.nbytes

    def _put_aside(self) -> None:
        """Merge the runs in memory into one on disk."""
        assert self._spill is not None
        first = next(i for i, run in enumerate(self._runs) if isinstance(run, _HeldRun))
        held, self._runs = self._runs[first:], self._runs[:first]
        file = self._files.enter_context(self._spill())
        writer = BlockWriter(file, self._schema, self._partitioner.count)
        for segment, table in self._merged(held):
            writer.write(segment, table)
        offsets, _ = writer.close()
        self.spilled_bytes += file.finish()
        start, stop = int(offsets[0]), int(offsets[-1])
        self._runs.append(_SpilledRun(map_range(file.draft, start, stop - start), offsets, self._schema))

    def _merged(self, runs: Sequence[_HeldRun | _SpilledRun]) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows of each segment, those of earlier runs first, as morsels."""
        held = [run for run in runs if isinstance(run, _HeldRun) and self._schema.names]
        small = _one_morsel(held) if held and len(held) == len(runs) else None
        for segment in range(self._partitioner.count):
            if small is None or not small[segment]:
                rows = (table for run in runs for table in run.segment(segment))
                yield from ((segment, table) for table in recut(rows, self._schema))
                continue
            bounds = ((run.batch, int(run.bounds[segment]), int(run.bounds[segment + 1])) for run in held)
            pieces = [batch.slice(start, stop - start) for batch, start, stop in bounds if stop > start]
            if pieces:
                whole = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
                yield segment, pa.Table.from_batches([whole])


def _in_order(
    stream: Iterator[pa.Table | PartitionedTable], partitioner: Partitioner | None
) -> Iterator[pa.Table]:
    """Tables of one segment."""
    for table in stream:
        if not isinstance(table, PartitionedTable):
            yield table
        elif partitioner is None:
            raise PlanError("rows were partitioned that are to stay in order")
        else:
            yield table.table


def _shown(
    pieces: Iterator[tuple[int, pa.Table]], schema: pa.Schema, passing: Callable[[pa.Table], object]
) -> Iterator[tuple[int, pa.Table]]:
    """Show the rows of pieces, small ones many at a time."""
    held: list[pa.Table] = []
    rows = 0
    for segment, table in pieces:
        yield segment, table
        held.append(table)
        rows += table.num_rows
        if rows >= _SHOWN_ROWS:
            passing(joined(held, schema))
            held, rows = [], 0
    if held:
        passing(joined(held, schema))


def _one_morsel(runs: Sequence[_HeldRun]) -> np.ndarray | None:
    """Which segments `recut` would leave in one piece, told for all at once; None if it has to look itself."""
    rows = np.zeros(len(runs[0].bounds) - 1, dtype=np.int64)
    bytes = np.zeros_like(rows)
    for run in runs:
        if (size := bytes_between(run.batch, run.bounds)) is None:
            return None
        rows += np.diff(run.bounds)
        bytes += size
    return (rows <= MORSEL_ROWS) & (bytes < MORSEL_BYTES)
