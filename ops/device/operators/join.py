"""Join on a device: a table of the right rows' keys, probed by the left ones; pairs in the host's order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import ModuleType

import numpy as np
import pyarrow as pa

from ...backend import Array, array_namespace
from ...join import JoinKernel
from ...kernel import Broadcast, Context
from ...morsels import drained, rechunk
from ...ordering import SortKey
from .. import column as columns_of
from ..arrays.compaction import compact_table
from ..arrays.gather import take_columns, take_columns_or_null
from ..arrays.key_index import DeviceKeyIndex
from ..column import DeviceColumn
from ..device_kernel import DeviceKernel, DeviceStream, Lowered, lowers
from ..memory import DeviceMemoryError, retried, split_on_oom
from ..memory_bound import held_bytes
from ..modules import kernel, launch, on_device
from ..table import DeviceTable, concat, to_arrow, to_device
from ..transfer import UNIT_ROWS, crosses
from .distinct import DeviceDistinct
from .hash_split import MAX_DEPTH, PLACE, PLACE_FIELD, deeper, hash_split, numbered
from .host_runs import HostRun, HostRuns, host_runs
from .merge import merge_runs
from .sort import device_tables, hold, on_host


@dataclass(frozen=True)
class _Side:
    """The right rows: whether they fit, their index (None if there are no rows), and their payload."""

    fits: bool
    index: DeviceKeyIndex | None = None
    payload: DeviceTable | None = None


@dataclass(frozen=True)
class DeviceJoin(DeviceKernel):
    """Indexes the right input by its keys and streams the left one past it.

    A right input beyond the device's memory makes it a Grace hash join: both sides are split by key until the
    right parts fit, wait on the host, and are joined here part by part. Joined parts are in the order of the left
    rows, whose numbers they carry, so a merge by these puts all in the order that a join in memory has. A single
    key with more right rows than fit is left to the host, and so is a broadcast side that doesn't fit. Semi and anti
    joins need each right key only once.

    Source: Kitsuregawa, Tanaka, Moto-oka 1983, "Application of hash to data base machine and its architecture".

    Attributes:
        kernel: the host's.
        held: bytes of right rows that may be held on the device; None takes `held_bytes`.
    """

    kernel: JoinKernel
    held: int | None = None

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp, host = array_namespace(), self.kernel
        limit = held_bytes(context, xp) if self.held is None else self.held
        left, right = device_tables(inputs[0], xp), inputs[1]
        if isinstance(right, Broadcast):
            whole = right
            name = f"device join {xp.__name__} {limit} {host.right_on} {host.right_columns}"
            side = right.once(name, lambda: self._broadcast(whole, limit, xp))
            if not side.fits:
                yield from on_host(host, [left, right], context, xp)
                return
        else:
            stream: DeviceStream = (table.select(self._needed) for table in device_tables(right, xp))
            held, fits = hold(stream, limit)
            if not fits and host.how in ("semi", "anti"):  # what counts is only which keys there are
                rows = chain(drained(held), stream)
                stream = DeviceDistinct(host.right_on, limit // 2).run([rows], context)
                held, fits = hold(stream, limit)
            made = self._room_for(held, xp) if fits else None
            if made is None:
                limit = limit // 4 if fits else limit  # if the device had no room for what was to fit
                yield from self._by_parts(left, chain(drained(held), stream), limit, context, xp)
                return
            side = made
        yield from self._probe(left, side, xp)

    def _by_parts(
        self, left: DeviceStream, right: DeviceStream, limit: int, context: Context, xp: ModuleType
    ) -> DeviceStream:
        """Join by parts whose right rows fit."""
        kept = len(self.kernel.schema) - len(self.kernel.right_columns)
        schema = self.kernel.schema.insert(kept, PLACE_FIELD)
        wide = DeviceJoin(replace(self.kernel, schema=schema), limit)
        with host_runs(context, xp) as store:
            known = (retried(_with_keys, table, self.kernel.right_on, xp) for table in right)
            for table in wide._split(numbered(left, xp), known, 0, store, context, xp):
                yield table.select(self.kernel.schema.names)

    def _split(
        self,
        left: DeviceStream,
        right: DeviceStream,
        depth: int,
        store: HostRuns,
        context: Context,
        xp: ModuleType,
    ) -> DeviceStream:
        """Join left rows that carry their numbers, by parts; the rows come in order of these."""
        rights = hash_split(right, self.kernel.right_on, depth, store, xp)
        lefts = hash_split(left, self.kernel.left_on, depth, store, xp)
        rows = sum(part.rows for part in rights)
        limit = self.held or 0
        runs: list[HostRun] = []
        while lefts:
            these, matches = lefts.pop(0), rights.pop(0)
            if not these.rows:
                continue
            runs.append(store.new([SortKey(PLACE)]))
            for table in self._part(these, matches, deeper(depth, matches.rows, rows), store, context, xp):
                runs[-1].put(table)
            runs[-1].finish()
        yield from merge_runs(runs, [SortKey(PLACE)], limit, xp)

    def _part(
        self, left: HostRun, right: HostRun, depth: int, store: HostRuns, context: Context, xp: ModuleType
    ) -> DeviceStream:
        """Join a part, on the device or on the host; its right rows are split at a depth if they don't fit."""
        fits = right.bytes <= (self.held or 0)
        held = list(right.tables(xp)) if fits else []
        side = self._room_for(held, xp) if fits else None
        if side is not None:
            yield from self._probe(left.tables(xp), side, xp)
        elif depth < MAX_DEPTH:
            again = chain(drained(held), right.tables(xp))
            yield from self._split(left.tables(xp), again, depth, store, context, xp)
        else:
            context = replace(context, memory_bytes=context.memory_bytes // 2)  # runs have the other half
            rows = chain(map(to_arrow, drained(held)), right.read())
            for plain in rechunk(self.kernel.run([left.read(), rows], context), UNIT_ROWS):
                yield retried(to_device, plain, xp)

    @property
    def label(self) -> str:
        return self.kernel.label

    @property
    def _needed(self) -> list[str]:
        columns = self.kernel.right_columns
        return list(dict.fromkeys([*self.kernel.right_on, *(name for name, _ in columns)]))

    def _broadcast(self, right: Broadcast, limit: int, xp: ModuleType) -> _Side:
        there = (retried(to_device, table.select(self._needed), xp) for table in right)
        try:
            held, fits = hold(there, limit)
        except DeviceMemoryError:
            return _Side(False)
        made = self._room_for(held, xp) if fits else None
        return _Side(False) if made is None else made

    def _room_for(self, held: list[DeviceTable], xp: ModuleType) -> _Side | None:
        """Index right rows, unless the device is full; the list is emptied only if it isn't."""
        try:
            side = retried(self._side, held, xp)
        except DeviceMemoryError:
            return None
        held.clear()
        return side

    def _side(self, held: list[DeviceTable], xp: ModuleType) -> _Side:
        held = [table for table in held if table.rows]
        if not held:
            return _Side(True)
        right = concat(held, xp)
        index = DeviceKeyIndex([right.column(name) for name in self.kernel.right_on], xp)
        return _Side(True, index, right.select([name for name, _ in self.kernel.right_columns]))

    def _probe(self, left: Iterable[DeviceTable], side: _Side, xp: ModuleType) -> DeviceStream:
        how = self.kernel.how
        for table in left:
            if side.index is None or side.payload is None:
                if how in ("left", "anti"):
                    yield self._output(table, retried(self._nulls, table.rows, xp))
                continue
            if how in ("inner", "left") and not side.index.unique:
                yield from self._pairs(table, side.index, side.payload, xp)
                continue
            matched = partial(self._matched, index=side.index, payload=side.payload, xp=xp)
            yield from (output for output in split_on_oom(table, matched) if output.rows)

    def _matched(
        self, table: DeviceTable, index: DeviceKeyIndex, payload: DeviceTable, xp: ModuleType
    ) -> DeviceTable:
        """Put each left row beside its only match, or keep it for having one or none."""
        how = self.kernel.how
        codes = index.lookup([table.column(name) for name in self.kernel.left_on])
        if how in ("semi", "anti"):
            return self._output(compact_table(table, codes >= 0 if how == "semi" else codes < 0, xp), [])
        if how == "left":
            return self._output(table, take_columns_or_null(payload.columns, codes, xp))
        numbers = replace(table, columns=(*table.columns, DeviceColumn(pa.int64(), codes)))
        *kept, found = compact_table(numbers, codes >= 0, xp).columns
        rows = replace(table, columns=tuple(kept), rows=len(found))
        return self._output(rows, payload.take(found.values).columns)

    def _pairs(
        self, table: DeviceTable, index: DeviceKeyIndex, payload: DeviceTable, xp: ModuleType
    ) -> DeviceStream:
        """Put each left row beside all of its matches, `UNIT_ROWS` pairs at a time."""
        outer = self.kernel.how == "left"

        def found(part: DeviceTable) -> tuple[DeviceTable, Array, Array]:
            codes = index.lookup([part.column(name) for name in self.kernel.left_on])
            return part, codes, pair_ends(codes, index, outer, xp)

        def expanded(part: DeviceTable, codes: Array, ends: Array, start: int, stop: int) -> DeviceTable:
            rows, matches = pairs(codes, ends, index, start, stop, xp)
            taken = (take_columns_or_null if outer else take_columns)(payload.columns, matches, xp)
            return self._output(part.take(rows), taken)

        for part, codes, ends in split_on_oom(table, found):
            total = int(ends[-1])
            for start in range(0, total, UNIT_ROWS):
                yield retried(expanded, part, codes, ends, start, min(start + UNIT_ROWS, total))

    def _output(self, left: DeviceTable, right: Sequence[DeviceColumn]) -> DeviceTable:
        return DeviceTable((*left.columns, *right), self.kernel.schema, left.rows)

    def _nulls(self, rows: int, xp: ModuleType) -> list[DeviceColumn]:
        """The right columns where nothing matches."""
        kept = len(self.kernel.schema) - len(self.kernel.right_columns)
        missing = xp.full(rows, -1, dtype=np.int64)
        none = [
            columns_of.to_device(pa.array([], field.type), xp) for field in list(self.kernel.schema)[kept:]
        ]
        return take_columns_or_null(none, missing, xp)


def _with_keys(table: DeviceTable, keys: Sequence[str], xp: ModuleType) -> DeviceTable:
    """The rows that have no null among their keys."""
    masks = [column.valid for column in map(table.column, keys) if column.valid is not None]
    for mask in masks[1:]:
        masks[0] = masks[0] & mask
    return compact_table(table, masks[0], xp) if masks else table


def pair_ends(codes: Array, index: DeviceKeyIndex, outer: bool, xp: ModuleType) -> Array:
    """Return where the pairs of each left row end.

    Traffic, in bytes a row: 16, a span of 16 from anywhere, and 16 for the running sum.

    Args:
        codes: as the index looks them up, shape (rows,).
        index: of keys that aren't unique.
        outer: whether a row without a match makes a pair.
        xp: NumPy or CuPy.

    Returns:
        Shape (rows,), int64.
    """
    assert index.spans is not None
    rows = int(codes.shape[0])
    if on_device(xp):
        counts = xp.empty(rows, dtype=np.int64)
        args = [codes, np.int64(rows), index.spans, np.int32(outer), counts]
        launch(kernel(xp, "join", "count_pairs"), rows, args)
        return xp.cumsum(counts)
    places = 2 * np.maximum(codes, 0)
    counts = index.spans[places + 1] - index.spans[places]
    return np.cumsum(np.where(codes < 0, np.int64(outer), counts))


def pairs(
    codes: Array, ends: Array, index: DeviceKeyIndex, start: int, stop: int, xp: ModuleType
) -> tuple[Array, Array]:
    """Return some of the pairs, in the order of left rows, and of right rows for each.

    Traffic, in bytes a pair: 24; and for each left row 16, and a span of 16 from anywhere.

    Args:
        codes: as the index looks them up, shape (rows,).
        ends: of `pair_ends`, shape (rows,).
        index: of keys that aren't unique.
        start, stop: numbers of pairs.
        xp: NumPy or CuPy.

    Returns:
        The left row and the right row of each pair, -1 for none; shape (stop - start,), int64.
    """
    assert index.spans is not None
    assert index.rows is not None
    count = stop - start
    if on_device(xp):
        left, right = xp.empty(count, dtype=np.int64), xp.empty(count, dtype=np.int64)
        args = [codes, ends, np.int64(codes.shape[0]), index.spans, index.rows]
        args += [np.int64(start), np.int64(stop), left, right]
        launch(kernel(xp, "join", "expand_pairs"), count, args, each=4)
        return left, right
    places = np.arange(start, stop)
    left = np.searchsorted(ends, places, side="right")
    ranks = places - np.where(left > 0, ends[left - 1], 0)
    found = codes[left] >= 0
    right = np.full(count, -1, np.int64)
    right[found] = index.rows[index.spans[2 * codes[left[found]]] + ranks[found]]
    return left, right


@lowers(JoinKernel)
def lower_join(host: JoinKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Join on the device rows that have a place there."""
    left, right = schemas
    for name in host.left_on:
        if pa.types.is_dictionary(left.field(name).type):
            return f"{name!r} is {left.field(name).type}, which isn't matched"
    needed = dict.fromkeys([*host.right_on, *(name for name, _ in host.right_columns)])
    return crosses(left) or crosses(pa.schema([right.field(name) for name in needed])) or DeviceJoin(host)
