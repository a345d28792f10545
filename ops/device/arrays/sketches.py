"""Sketches on a device: counts of rows by group and bucket, as `ops.quantiles` has them.

A column of sketches has codes, as one of strings has. What they stand for are lists of Arrow's on the host, so that all
that moves columns moves sketches too; within an aggregation they are `Sketches`, whose arrays lie on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pyarrow as pa

from ... import quantiles
from ...backend import Array
from ...quantiles import SKETCH, sketch_array, sketch_parts
from .. import column as columns_of
from ..column import DeviceColumn
from ..crossing import fetched, staged
from ..modules import kernel, launch, on_device
from ..table import DeviceTable
from .key_words import C_NAMES

#: the bucket of a row that is null
NONE = int(np.iinfo(np.int32).min)
_NOTHING = int(np.iinfo(np.int32).max)
#: rows that a thread takes
_EACH = 8
#: pairs of group and bucket that aren't many more than the rows are counted in a table of all pairs
_DENSE, _FEW = 4, 4096


@dataclass(frozen=True)
class Sketches:
    """Buckets of many groups, and how many rows each has.

    Attributes:
        starts: where each group begins, and the end; shape (groups + 1,), int64.
        buckets: ascending within a group; shape (n,), int32.
        rows: shape (n,), int64.
        xp: the namespace of the arrays.
    """

    starts: Array
    buckets: Array
    rows: Array
    xp: ModuleType

    def __len__(self) -> int:
        return int(self.starts.shape[0]) - 1

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return int(self.starts.nbytes + self.buckets.nbytes + self.rows.nbytes)

    def owners(self) -> Array:
        """Return the group of each bucket; shape (n,), int64."""
        xp = self.xp
        places = xp.arange(int(self.buckets.shape[0]), dtype=np.int64)
        return xp.searchsorted(self.starts[1:], places, side="right")

    def take(self, rows: Array) -> Sketches:
        """Return those of an index, shape (n,), any integer dtype."""
        xp = self.xp
        starts = xp.zeros(len(rows) + 1, dtype=np.int64)
        starts[1:] = xp.cumsum(self.starts[1:][rows] - self.starts[:-1][rows])
        there = Sketches(starts, xp.empty(int(starts[-1]), dtype=np.int32), self.rows, xp)
        owners = there.owners()
        places = xp.arange(len(owners), dtype=np.int64) + (self.starts[:-1][rows] - starts[:-1])[owners]
        return Sketches(starts, self.buckets[places], self.rows[places], xp)

    def to_arrow(self) -> pa.Array:
        """Bring them to the host, a `SKETCH` each."""
        return sketch_array(*(np.asarray(fetched(part)) for part in (self.starts, self.buckets, self.rows)))


def column_of(sketches: Sketches) -> DeviceColumn:
    """Return a column of sketches, in their order."""
    codes = sketches.xp.arange(len(sketches), dtype=np.int32)
    return DeviceColumn(SKETCH, codes, None, sketches)


def sketches_of(column: DeviceColumn, xp: ModuleType) -> Sketches:
    """Return the sketch of each row of a column, on the device."""
    if isinstance(column.dictionary, Sketches):
        return column.dictionary.take(column.values)
    starts, buckets, rows = (staged(xp, part) for part in sketch_parts(columns_of.to_arrow(column)))
    return Sketches(starts, buckets, rows, xp)


def joined(columns: Sequence[DeviceColumn], xp: ModuleType) -> DeviceColumn:
    """Put columns of sketches behind each other; on the host if they all are there."""
    if not any(isinstance(column.dictionary, Sketches) for column in columns):
        whole = pa.concat_arrays([columns_of.to_arrow(column) for column in columns])
        return columns_of.to_device(whole, xp)
    parts = [sketches_of(column, xp) for column in columns]
    buckets, rows = (xp.concatenate([getattr(p, name) for p in parts]) for name in ("buckets", "rows"))
    starts, before = [xp.zeros(1, dtype=np.int64)], 0
    for part in parts:
        starts.append(part.starts[1:] + before)
        before += int(part.buckets.shape[0])
    return column_of(Sketches(xp.concatenate(starts), buckets, rows, xp))


def settled(table: DeviceTable) -> DeviceTable:
    """Bring the sketches of a table to the host, where columns elsewhere have them."""
    columns = tuple(
        replace(column, dictionary=column.dictionary.to_arrow())
        if isinstance(column.dictionary, Sketches)
        else column
        for column in table.columns
    )
    return replace(table, columns=columns)


def number_buckets(values: Array, valid: Array | None, bits: int, xp: ModuleType) -> tuple[Array, int, int]:
    """Return the bucket of each value, see `quantiles.bucket_numbers`.

    Traffic, in bytes a row: the value's width, 4, and one more where there is a validity.

    Args:
        values: shape (rows,), integers or floats.
        valid: shape (rows,), bool; None if no row is null.
        bits: of the mantissa.
        xp: NumPy or CuPy.

    Returns:
        Shape (rows,), int32, `NONE` of nulls; and the least and the greatest of the others.

    Example:
        >>> number_buckets(np.array([2.0, 0.0, -1.0]), np.array([True, False, True]), 2, np)[0].tolist()
        [4096, -2147483648, -4092]
    """
    rows = int(values.shape[0])
    if not on_device(xp):
        with np.errstate(invalid="ignore"):
            buckets = quantiles.bucket_numbers(values, bits)
        known = buckets if valid is None else buckets[valid]
        if valid is not None:
            buckets[~valid] = NONE
        return (buckets, int(known.min()), int(known.max())) if len(known) else (buckets, _NOTHING, NONE)
    buckets = xp.empty(rows, dtype=np.int32)
    found = xp.asarray(np.array([_NOTHING, NONE], np.int32))
    values = xp.ascontiguousarray(values)
    flags = values if valid is None else xp.ascontiguousarray(valid)
    args = (values, flags, np.int32(valid is not None), np.int64(rows), np.int32(bits), buckets, found)
    launch(kernel(xp, "sketch", "number_buckets", T=C_NAMES[values.dtype]), rows, args, each=_EACH)
    low, high = found.get().tolist()
    return buckets, low, high


def ends_of(buckets: Array, xp: ModuleType) -> tuple[int, int]:
    """Return the least and the greatest of some buckets; the least is above the greatest if there are none."""
    return (int(xp.min(buckets)), int(xp.max(buckets))) if int(buckets.shape[0]) else (_NOTHING, NONE)


def tally(
    codes: Array, numbered: tuple[Array, int, int], weights: Array | None, count: int, xp: ModuleType
) -> Sketches:
    """Count the rows of each group and bucket, see `quantiles.tally`.

    Traffic, in bytes a row: 8 and an addition in the cache, where all pairs of groups and buckets that there are fit a
    table of 32 bytes a row; 4 before where buckets are far apart. Else 12 or 16, and a sort of 4 or 8.

    Args:
        codes: the group of each row; shape (rows,), int32.
        numbered: as `number_buckets` gives it.
        weights: how many rows each one stands for, int64; None is one.
        count: how many groups.
        xp: NumPy or CuPy.
    """
    buckets, low, high = numbered
    rows = int(buckets.shape[0])
    if low > high:
        nothing = xp.zeros(0, dtype=np.int32)
        return Sketches(xp.zeros(count + 1, dtype=np.int64), nothing, nothing.astype(np.int64), xp)
    if not on_device(xp):
        known = buckets != NONE
        parts = (codes[known], buckets[known], None if weights is None else weights[known])
        return Sketches(*quantiles.tally(*parts, count), xp)
    span, most = high - low + 1, _DENSE * rows + _FEW
    codes, buckets = xp.ascontiguousarray(codes), xp.ascontiguousarray(buckets)
    present, ranks = None, buckets
    if count * span > most and span <= most:  # then the buckets that are there are fewer
        marks = xp.zeros(span, dtype=np.uint8)
        marking = kernel(xp, "sketch", "mark_buckets", KEY="u32", WEIGHTED=0)
        launch(marking, rows, (buckets, np.int64(rows), np.int32(low), marks), each=_EACH)
        present = xp.flatnonzero(marks)
        ranks = xp.cumsum(marks, dtype=np.int32) - np.int32(1)
        span = int(present.shape[0])
    ranked = np.int32(low), ranks, np.int32(present is not None), np.uint64(span)
    counted = _in_table if count * span <= most else _in_order
    found, totals = counted(codes, buckets, weights, ranked, count * span, xp)
    starts = xp.searchsorted(found, xp.arange(count + 1, dtype=np.int64) * span)
    found = found % span
    found = found if present is None else present[found]
    return Sketches(starts.astype(np.int64, copy=False), (found + low).astype(np.int32), totals, xp)


def _in_table(
    codes: Array, buckets: Array, weights: Array | None, ranked: tuple, size: int, xp: ModuleType
) -> tuple[Array, Array]:
    """The places that have rows, ascending, int64, and how many: counted in a table of all places."""
    counts = xp.zeros(size, dtype=np.uint64)
    rows = int(buckets.shape[0])
    counting = kernel(xp, "sketch", "count_pairs", KEY="u32", WEIGHTED=int(weights is not None))
    given = counts.view(np.int64) if weights is None else xp.ascontiguousarray(weights)
    launch(counting, rows, (codes, buckets, given, np.int64(rows), *ranked, counts), each=_EACH)
    found = xp.flatnonzero(counts)
    return found, counts[found].view(np.int64)


def _in_order(
    codes: Array, buckets: Array, weights: Array | None, ranked: tuple, size: int, xp: ModuleType
) -> tuple[Array, Array]:
    """The same, counted in rows that are sorted by place."""
    rows = int(buckets.shape[0])
    narrow = size < 1 << 32
    keys = xp.empty(rows, dtype=np.uint32 if narrow else np.uint64)
    making = kernel(xp, "sketch", "pair_keys", KEY="u32" if narrow else "u64", WEIGHTED=0)
    none = size if size < 1 << 32 else (1 << 64) - 1
    launch(making, rows, (codes, buckets, np.int64(rows), *ranked, np.uint64(none), keys), each=_EACH)
    order = None
    if weights is None:
        keys.sort()
    else:
        order = xp.argsort(keys)
        keys = keys[order]
    known = int(xp.searchsorted(keys, xp.asarray(np.array([none], keys.dtype)))[0])
    keys = keys[:known]
    begins = xp.ones(known, dtype=bool)
    begins[1:] = keys[1:] != keys[:-1]
    firsts = xp.flatnonzero(begins)
    ends = xp.concatenate([firsts[1:], xp.full(1, known, dtype=firsts.dtype)])
    if order is None or weights is None:
        totals = ends - firsts
    else:
        running = xp.zeros(known + 1, dtype=np.int64)
        running[1:] = xp.cumsum(weights[order[:known]])
        totals = running[ends] - running[firsts]
    return keys[firsts].astype(np.int64), totals
