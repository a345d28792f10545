"""Merge on a device: sorted runs that wait on the host become one sorted stream, a range of keys at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
import pyarrow as pa

from ...backend import Array
from ...merge import sorted_slices
from ...morsels import drained
from ...morsels import rechunk as rechunk_on_host
from ...ordering import SortKey, quantiles
from ..arrays.range_segments import range_segments
from ..arrays.word_order import row_order
from ..device_kernel import DeviceStream
from ..memory import DeviceMemoryError, retried
from ..streams import rechunk
from ..table import DeviceTable, concat, to_arrow, to_device
from ..transfer import UNIT_ROWS
from .host_runs import HostRun

_MOST_PARTS = 65_536
#: rows that are brought to the device at a time, at least
_LEAST_ROWS = 256


def merge_runs(runs: Sequence[HostRun], keys: Sequence[SortKey], limit: int, xp: ModuleType) -> DeviceStream:
    """Merge sorted runs, stable in the order of the runs.

    Ranges of keys are chosen from the runs' samples so that the rows of one, from all runs, take half of the
    limit; each is sorted on the device. Runs are read once, from their first row to their last. Rows equal to a
    range's lower bound need no sorting, and pass run by run: so a key with more rows than the device has room for,
    which becomes a bound, is never held.

    Args:
        runs: finished, each sorted by the keys, with samples of them.
        keys: most significant first.
        limit: bytes of rows that may be held on the device.
        xp: NumPy or CuPy.

    Returns:
        The rows of all runs, sorted, cut at every `UNIT_ROWS`.

    Source: DeWitt, Naughton, Schneider 1991, "Parallel sorting on a shared-nothing architecture using probabilistic
    splitting"; its ranges follow one another here.
    """
    return rechunk(_merged([run for run in runs if run.rows], keys, limit, xp), UNIT_ROWS, xp)


def sorted_tables(held: list[DeviceTable], keys: Sequence[SortKey], xp: ModuleType) -> DeviceStream:
    """Yield the rows of tables, at least one, in order, `UNIT_ROWS` at a time; the list is emptied.

    Where the device has no room to sort them, the host does.
    """
    try:
        table, order = retried(ordered, held, keys, xp)
    except DeviceMemoryError:
        host = pa.concat_tables([to_arrow(table) for table in drained(held)]).combine_chunks()
        for piece in rechunk_on_host(sorted_slices(host, keys), UNIT_ROWS):
            yield retried(to_device, piece, xp)
        return
    held.clear()
    yield from in_order(table, order)


def ordered(
    held: Sequence[DeviceTable], keys: Sequence[SortKey], xp: ModuleType
) -> tuple[DeviceTable, Array]:
    """Return the rows of tables as one, and their order by keys, shape (rows,), int64."""
    table = concat(held, xp)
    return table, row_order(table, keys, xp)


def in_order(table: DeviceTable, order: Array) -> DeviceStream:
    """Yield the rows of an order, `UNIT_ROWS` at a time."""
    for start in range(0, len(order), UNIT_ROWS):
        yield retried(table.take, order[start : start + UNIT_ROWS])


def _merged(runs: Sequence[HostRun], keys: Sequence[SortKey], limit: int, xp: ModuleType) -> DeviceStream:
    if len(runs) < 2:
        for run in runs:
            yield from run.tables(xp)
        return
    size, rows = sum(run.bytes for run in runs), sum(run.rows for run in runs)
    samples = pa.concat_tables([table for run in runs for table in run.samples])
    weights = np.concatenate([array for run in runs for array in run.weights])
    parts = min(1 + 2 * size // max(limit, 1), rows, _MOST_PARTS)
    bounds = quantiles(samples, weights, keys, parts)
    at_once = limit // 4 // len(runs) * rows // max(size, 1)  # what was read too far of all runs is a quarter
    cursors = [_Cursor(run, keys, min(max(at_once, _LEAST_ROWS), UNIT_ROWS), xp) for run in runs]
    for part in range(bounds.num_rows + 1):
        if part:
            for cursor in cursors:
                yield from cursor.upto(bounds.slice(part - 1, 1))
        upper = bounds.slice(part, 1) if part < bounds.num_rows else None
        rest: list[DeviceTable] = []
        for cursor in cursors:
            rest += cursor.before(upper)
        if rest:
            yield from sorted_tables(rest, keys, xp)


class _Cursor:
    """Reads a sorted run from its first row to its last, up to one bound after another."""

    def __init__(self, run: HostRun, keys: Sequence[SortKey], rows: int, xp: ModuleType):
        self._keys, self._xp = keys, xp
        self._backwards = [
            replace(key, descending=not key.descending, nulls_first=not key.nulls_first) for key in keys
        ]
        self._stream = run.tables(xp, rows)
        self._ahead = next(self._stream, None)

    def upto(self, bound: pa.Table) -> DeviceStream:
        """Yield the next rows that don't come after a bound."""
        while self._ahead is not None:
            yield from self._cut(retried(_rows_beyond, self._ahead, bound, self._backwards, self._xp))
            if self._ahead is not None:
                return
            self._ahead = next(self._stream, None)

    def before(self, bound: pa.Table | None) -> DeviceStream:
        """Yield the next rows that come before a bound; all there are for None."""
        while self._ahead is not None:
            rows = self._ahead.rows
            if bound is not None:
                rows -= retried(_rows_beyond, self._ahead, bound, self._keys, self._xp)
            yield from self._cut(rows)
            if self._ahead is not None:
                return
            self._ahead = next(self._stream, None)

    def _cut(self, rows: int) -> DeviceStream:
        """The first rows of what was read, which then begins after them."""
        assert self._ahead is not None
        table, left = self._ahead, self._ahead.rows - rows
        self._ahead = table.slice(rows, table.rows) if left else None
        if rows:
            yield table.slice(0, rows) if left else table


def _rows_beyond(table: DeviceTable, bound: pa.Table, keys: Sequence[SortKey], xp: ModuleType) -> int:
    """How many rows don't come before a bound."""
    return int(xp.count_nonzero(range_segments(table, bound, keys, 2, xp)))
