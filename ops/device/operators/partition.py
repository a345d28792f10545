"""Partitioning on a device: rows are put in the order of the segments that an exchange sends them to.

Tiles of 4096 rows are counted by segment, running sums over the counts (one segment after another, the tiles of each
in order) tell where every tile's rows go, and one kernel then moves all columns: it orders a tile's items in shared
memory and writes them in runs. So rows of a segment stay in order, and nothing depends on which block comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np

from ....errors import PlanError
from ...backend import Array, array_namespace, to_host
from ...kernel import Context, Stream
from ...partitioned import PartitionedTable
from ...partitioner import (
    HashPartitioner,
    Partitioner,
    RangePartitioner,
    RoundRobinPartitioner,
    SinglePartitioner,
)
from ..arrays.range_segments import range_segments
from ..arrays.row_hash import hash_segments, segment_type
from ..device_kernel import DeviceKernel, DeviceStream
from ..memory import retried, split_on_oom
from ..modules import kernel, launch, on_device
from ..table import DeviceTable, concat, to_arrow
from ..transfer import UNIT_ROWS

#: rows that a block takes, and its threads
TILE, _THREADS = 4096, 512
#: arrays that share an allocation begin at multiples of so many bytes
_ALIGNED = 256
#: most segments that the kernels have room to count; rows of more are ordered by a sort
MOST = 1024


def hash_partition(
    table: DeviceTable, keys: Sequence[str], count: int, xp: ModuleType
) -> tuple[DeviceTable, np.ndarray]:
    """Put rows in the order of the segments that a `HashPartitioner` gives them.

    Traffic, in bytes a row: the widths of the keys and their validity masks; a segment's number, of 1 or 2 bytes,
    written once and read twice; and every column's width and validity mask, read once and written once.

    Args:
        table: the rows.
        keys: columns whose equal values go together.
        count: number of segments.
        xp: NumPy or CuPy.

    Returns:
        The rows, stable within a segment; and the first row of each segment and the end of the last, shape
        (count + 1,), int64, on the host.

    Example:
        >>> import pyarrow as pa
        >>> from headwater.ops.device.table import to_device
        >>> rows, offsets = hash_partition(to_device(pa.table({"x": [1, 2, 1, 2]}), np), ["x"], 4, np)
        >>> to_arrow(rows)["x"].to_pylist(), offsets.tolist()
        ([1, 1, 2, 2], [0, 0, 2, 4, 4])
    """
    return partition_by(table, hash_segments([table.column(key) for key in keys], count, xp), count, xp)


def partition_by(
    table: DeviceTable, segments: Array, count: int, xp: ModuleType
) -> tuple[DeviceTable, np.ndarray]:
    """Put rows in the order of their segments, stable.

    Traffic: as `hash_partition`, with the width of ``segments`` in place of its own numbers, and without the keys.
    Beyond `MOST` segments the numbers are sorted, and rows are gathered one by one.

    Args:
        table: the rows.
        segments: of each row, below ``count``; shape (rows,), uint8, uint16 or uint32.
        count: number of segments.
        xp: NumPy or CuPy.

    Returns:
        As `hash_partition`.
    """
    if count == 1 or not table.rows:
        return table, np.concatenate([[0], np.full(count, table.rows)])
    if not on_device(xp) or count > MOST or table.rows >= 1 << 32:
        order = xp.argsort(segments) if on_device(xp) else np.argsort(segments, kind="stable")
        sizes = to_host(xp.bincount(segments, minlength=count))
        return table.take(order), np.concatenate([[0], np.cumsum(sizes)])
    tiles = (table.rows + TILE - 1) // TILE
    segments = xp.ascontiguousarray(segments)
    bits = 8 * segments.dtype.itemsize
    shared = [segments, np.int64(table.rows), np.int32(count), np.int32((count - 1).bit_length())]
    counts = xp.empty(count * tiles, dtype=np.uint32)
    launch(
        kernel(xp, "partition", "count_segments", BITS=bits), tiles * _THREADS, [*shared, counts], _THREADS
    )
    ends = xp.cumsum(counts, dtype=np.uint32)  # rows are fewer than 2**32
    source = [xp.ascontiguousarray(array) for array in _arrays(table)]
    target = _room(source, xp)
    if source:
        places = [(one.data.ptr, other.data.ptr, one.dtype.itemsize) for one, other in zip(source, target)]
        columns = xp.asarray(np.array(places, np.uint64))
        args = [columns, np.int32(len(places)), *shared, ends]
        launch(kernel(xp, "partition", "move_rows", BITS=bits), tiles * _THREADS, args, _THREADS)
    offsets = np.concatenate([[0], to_host(ends[tiles - 1 :: tiles]).astype(np.int64)])
    return _with_arrays(table, target), offsets


def segments_of(
    partitioner: Partitioner, table: DeviceTable, partition: int, offset: int, xp: ModuleType
) -> Array:
    """Return the segment of each row: `Partitioner.assign` on a device.

    Args:
        partitioner: one that `refusal` has nothing against.
        table: rows of the partition's stream.
        partition: index of the map partition.
        offset: how many rows of that partition came before these.
        xp: NumPy or CuPy.

    Returns:
        Shape (rows,), the narrowest of uint8, uint16 and uint32.
    """
    count = partitioner.count
    if isinstance(partitioner, HashPartitioner):
        return hash_segments([table.column(name) for name in partitioner.keys], count, xp)
    if isinstance(partitioner, RoundRobinPartitioner):
        start = (partition + offset) % count
        return (xp.arange(start, start + table.rows) % count).astype(segment_type(count))
    if isinstance(partitioner, RangePartitioner):
        if partitioner.boundaries is None:
            raise PlanError(f"{partitioner.describe()} has no boundaries yet.")
        return range_segments(table, partitioner.boundaries, partitioner.keys, count, xp)
    assert isinstance(partitioner, SinglePartitioner)
    return xp.zeros(table.rows, dtype=np.uint8)


def refusal(partitioner: Partitioner) -> str | None:
    """Return why a device can't partition so; None if it can.

    Example:
        >>> refusal(HashPartitioner(("x",), 8)) is None
        True
    """
    if isinstance(
        partitioner, HashPartitioner | RangePartitioner | RoundRobinPartitioner | SinglePartitioner
    ):
        return None
    return f"{partitioner.describe()} is cut on the host"


@dataclass(frozen=True)
class DevicePartition(DeviceKernel):
    """Partitions a stream of device tables and brings it to the host: what stands in for `ToHost` before an exchange.

    Its output is a stream of `PartitionedTable`, each of as many whole tables of the input as `UNIT_ROWS` has room
    for, or of one. Blocks written from it are those that the host would write from the same rows.

    Attributes:
        partitioner: the exchange's; one that `refusal` has nothing against. A task puts the one of its stage in its
            place, which has the boundaries of ranges.
        passing: is shown what goes to the host, while it is still here: rows in the order of their segments, and where
            these begin.
    """

    partitioner: Partitioner
    passing: Callable[[DeviceTable, np.ndarray], object] | None = field(default=None, compare=False)

    def run(self, inputs: Sequence[DeviceStream], context: Context) -> Stream:  # type: ignore[override]
        xp = array_namespace()
        offset = 0

        def partitioned(table: DeviceTable) -> tuple[DeviceTable, np.ndarray]:
            segments = segments_of(self.partitioner, table, context.partition, offset, xp)
            return partition_by(table, segments, self.partitioner.count, xp)

        for table in _gathered(inputs[0], xp):
            for rows, bounds in split_on_oom(table, partitioned):
                offset += rows.rows
                if self.passing is not None:
                    self.passing(rows, bounds)
                yield PartitionedTable(to_arrow(rows), bounds)  # type: ignore[misc]

    @property
    def label(self) -> str:
        return "partition, to host"


def _gathered(stream: DeviceStream, xp: ModuleType) -> DeviceStream:
    """Join small tables."""
    held: list[DeviceTable] = []
    rows = 0
    for table in stream:
        if held and rows + table.rows > UNIT_ROWS:
            yield retried(concat, held, xp)
            held, rows = [], 0
        if table.rows:
            held.append(table)
            rows += table.rows
    if held:
        yield retried(concat, held, xp)


def _arrays(table: DeviceTable) -> list[Array]:
    """The values of all columns, then the validity masks there are."""
    values = [column.values for column in table.columns]
    return values + [column.valid for column in table.columns if column.valid is not None]


def _room(arrays: Sequence[Array], xp: ModuleType) -> list[Array]:
    """Room for as much, in one allocation, which another process maps at once; see `ipc`."""
    starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays)]).tolist()
    whole = xp.empty(starts[-1], dtype=np.uint8)
    return [whole[start : start + array.nbytes].view(array.dtype) for start, array in zip(starts, arrays)]


def _with_arrays(table: DeviceTable, arrays: Sequence[Array]) -> DeviceTable:
    """A table with other values and masks, in the order of `_arrays`."""
    valid = iter(arrays[len(table.columns) :])
    columns = tuple(
        replace(column, values=values, valid=None if column.valid is None else next(valid))
        for column, values in zip(table.columns, arrays)
    )
    return DeviceTable(columns, table.schema, table.rows)
