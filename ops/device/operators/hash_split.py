"""Hash split: a device stream cut by its keys into parts that wait on the host, so that each part fits the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
import pyarrow as pa

from ..arrays.row_hash import hash_rows
from ..column import DeviceColumn
from ..device_kernel import DeviceStream
from ..memory import retried, split_on_oom
from ..table import DeviceTable
from .host_runs import HostRun, HostRuns, to_host_form
from .partition import partition_by

#: a column that numbers rows, so that what was split can be put back in order; not the host's, which may split again
PLACE = "\x1fplace"
PLACE_FIELD = pa.field(PLACE, pa.int64())
#: parts that one split makes
FANOUT = 16
#: splits of splits that the hash has bits for; exchanges have used the upper half of these
MAX_DEPTH = 8
_DIGIT = 4


def hash_split(
    stream: Iterable[DeviceTable],
    keys: Sequence[str],
    depth: int,
    store: HostRuns,
    xp: ModuleType,
) -> list[HostRun]:
    """Split a stream by the hash of its keys; rows of a part keep their order.

    Traffic, in bytes a row: that of `hash_rows` and `partition_by`, 10 for the digit, and the way to the host.

    Args:
        stream: tables of one schema.
        keys: rows of equal keys come into one part, as in every stream that is split so.
        depth: how often these rows have been split, below `MAX_DEPTH`.
        store: where the parts go.
        xp: NumPy or CuPy.

    Returns:
        `FANOUT` finished runs.
    """
    shift = np.uint64(32 - _DIGIT * (depth + 1))

    def split(table: DeviceTable) -> tuple[DeviceTable, np.ndarray]:
        hashes = hash_rows([table.column(name) for name in keys], xp)
        digits = (hashes >> shift & np.uint64(FANOUT - 1)).astype(np.uint8)
        return partition_by(table, digits, FANOUT, xp)

    parts = [store.new() for _ in range(FANOUT)]
    for table in stream:
        for rows, bounds in split_on_oom(table, split):
            host = to_host_form(rows)
            for part, start, stop in zip(parts, bounds, bounds[1:]):
                part.append(host.slice(start, stop - start), rows.schema)
    return [part.finish() for part in parts]


def numbered(stream: Iterable[DeviceTable], xp: ModuleType) -> DeviceStream:
    """Append a column, `PLACE`, that numbers the rows of a stream from 0."""
    offset = 0
    for table in stream:
        numbers = retried(xp.arange, offset, offset + table.rows, dtype=np.int64)
        columns = (*table.columns, DeviceColumn(pa.int64(), numbers))
        yield replace(table, columns=columns, schema=table.schema.append(PLACE_FIELD))
        offset += table.rows


def deeper(depth: int, part: int, rows: int) -> int:
    """Return the depth at which a part is to be split again, if below `MAX_DEPTH`.

    Args:
        depth: at which it was split.
        part: its rows.
        rows: rows of all parts together. Where one part has them all, the next depth would hardly split it.
    """
    return depth + (4 if part == rows else 1)
