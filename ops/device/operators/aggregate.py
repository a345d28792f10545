"""Aggregate on a device: partial and final, whose states the host's kernels read and write as well.

Rows are cut anew every `UNIT_ROWS` of a partition, and a unit's float sums depend on its rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import ModuleType

import pyarrow as pa

from ...aggregate import Aggregation, FinalAggregateKernel, PartialAggregateKernel, shared_states
from ...aggregations import AGGREGATIONS
from ...backend import array_namespace
from ...kernel import Broadcast, Context
from ...morsels import drained
from ...ordering import SortKey
from ...quantiles import SKETCH
from ..arrays.grouping import DeviceGroups, group
from ..arrays.key_words import one_form
from ..arrays.sketches import settled
from ..device_kernel import DeviceKernel, DeviceStream, Lowered, lowers
from ..memory import retried
from ..memory_bound import held_bytes, row_bytes
from ..modules import on_device
from ..streams import rechunk
from ..table import DeviceTable, concat
from ..transfer import UNIT_ROWS, crosses
from .aggregations import (
    DEVICE_AGGREGATIONS,
    Reductions,
    State,
    TotalTooWide,
    of_nothing,
    typed,
    unsupported,
)
from .hash_split import MAX_DEPTH, PLACE, PLACE_FIELD, deeper, hash_split, numbered
from .host_runs import HostRun, HostRuns, host_runs
from .merge import merge_runs
from .sort import device_tables, hold

#: a partial aggregation hands its states on when they hold more than this; fixed, as it decides which float sums
#: are added first
_FLUSH_BYTES = 256 << 20
#: states that are held before they are merged for the first time
_FIRST_MERGE = 4 * UNIT_ROWS
#: merging states is given up when it leaves more than this fraction of them
_FUTILE = 0.9
#: states of more bytes are merged by parts; fixed, whatever the device, as floats are added in another order then
_MOST_STATES = 512 << 20


@dataclass(frozen=True)
class DevicePartialAggregate(DeviceKernel):
    """Reduces the rows of a partition to one state a group, or a few where there are too many groups.

    Attributes:
        keys: grouping columns.
        aggregations: what to compute.
        schema: of the states, as the host's.
    """

    keys: tuple[str, ...]
    aggregations: tuple[Aggregation, ...]
    schema: pa.Schema

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        return map(settled, self._states_of(inputs[0]))

    def _states_of(self, stream: DeviceStream | Broadcast) -> DeviceStream:
        xp = array_namespace()
        held: list[DeviceTable] = []
        rows, limit, futile = 0, _FIRST_MERGE, False
        width = row_bytes(self.schema)
        for table in rechunk(device_tables(stream, xp), UNIT_ROWS, xp):
            states = retried(self._reduce, table, xp)
            if futile:
                yield from states
                continue
            held += states
            rows += sum(state.rows for state in states)
            if rows < limit and rows * width + _sketch_bytes(held) < _FLUSH_BYTES:
                continue
            parts = retried(self._merge, held, xp)
            left = sum(part.rows for part in parts)
            futile = len(held) > 1 and left > _FUTILE * rows
            if futile or left * width + _sketch_bytes(parts) > _FLUSH_BYTES:
                yield from parts
                held, rows = [], 0
            else:
                held, rows = parts, left
            limit = 2 * rows + _FIRST_MERGE
        if held:
            yield from retried(self._merge, held, xp)

    def _reduce(self, table: DeviceTable, xp: ModuleType) -> list[DeviceTable]:
        """The states of a unit; of its halves where a sum of decimals has more than 64 bits."""
        groups = group([table.column(name) for name in self.keys], table.rows, xp)
        reductions = Reductions(groups)
        parts: list[State] = []
        try:
            for a in shared_states(self.aggregations)[0]:
                column = None if a.column is None else table.column(a.column)
                parts.append(DEVICE_AGGREGATIONS[a.function].partial(reductions, column, dict(a.options)))
        except TotalTooWide:
            half = table.rows // 2
            halves = table.slice(0, half), table.slice(half, table.rows)
            return [states for part in halves for states in self._reduce(part, xp)]
        return [_states(groups, table, self.keys, parts, self.schema)]

    def _merge(self, states: list[DeviceTable], xp: ModuleType) -> list[DeviceTable]:
        """One table for them all; the tables as they were where a sum of decimals has more than 64 bits."""
        if len(states) == 1:
            return states
        whole = concat(states, xp)
        try:
            groups, parts = _merge_states(whole, self.keys, self.aggregations, xp)
        except TotalTooWide:
            return states
        return [_states(groups, whole, self.keys, parts, self.schema)]


@dataclass(frozen=True)
class DeviceFinalAggregate(DeviceKernel):
    """Merges the states of each group in the order they come, and finishes them.

    Groups stand in order of first appearance. Without keys there is exactly one row. Many states are split by key; the
    parts wait on the host and are merged here one after another, and the groups put back in order.

    Attributes:
        keys: grouping columns.
        aggregations: what to compute.
        schema: of the output.
    """

    keys: tuple[str, ...]
    aggregations: tuple[Aggregation, ...]
    schema: pa.Schema

    def run(self, inputs: Sequence[DeviceStream | Broadcast], context: Context) -> DeviceStream:
        xp = array_namespace()
        stream = device_tables(inputs[0], xp)
        limit = _MOST_STATES if on_device(xp) else min(_MOST_STATES, context.memory_bytes // 2)
        held, whole = hold(stream, limit, _state_bytes)
        if self.keys and not whole:
            with host_runs(context, xp) as store:
                rows = numbered(chain(drained(held), stream), xp)
                for table in self._by_parts(rows, limit, 0, store, context, xp):
                    yield table.select(self.schema.names)
            return
        states = [*drained(held), *stream]
        if states:
            finished = retried(self._finish, states, xp)
            for start in range(0, finished.rows, UNIT_ROWS):
                yield finished.slice(start, start + UNIT_ROWS)
        elif not self.keys:
            yield retried(self._of_nothing, xp)

    def _by_parts(
        self,
        states: DeviceStream,
        limit: int,
        depth: int,
        store: HostRuns,
        context: Context,
        xp: ModuleType,
    ) -> DeviceStream:
        """Merge states that carry their numbers, in parts of so many bytes; groups carry those of their first ones."""
        parts = hash_split(states, self.keys, depth, store, xp)
        rows = sum(part.rows for part in parts)
        runs: list[HostRun] = []
        while parts:
            part = parts.pop(0)
            if not part.rows:
                continue
            runs.append(store.new([SortKey(PLACE)]))
            below = deeper(depth, part.rows, rows)
            if part.bytes <= limit or below >= MAX_DEPTH:
                runs[-1].put(retried(self._finish, [part.table(xp)], xp))
            else:
                for table in self._by_parts(part.tables(xp), limit, below, store, context, xp):
                    runs[-1].put(table)
            runs[-1].finish()
        yield from merge_runs(runs, [SortKey(PLACE)], held_bytes(context, xp), xp)

    def _finish(self, parts: list[DeviceTable], xp: ModuleType) -> DeviceTable:
        """The groups of states; with their first numbers, if states have numbers."""
        states = concat(parts, xp)
        groups, merged = _merge_states(states, self.keys, self.aggregations, xp)
        answers = [
            (DEVICE_AGGREGATIONS[a.function].finish(merged[place], dict(a.options), xp),)
            for a, place in zip(self.aggregations, shared_states(self.aggregations)[1])
        ]
        finished = _states(groups, states, self.keys, answers, self.schema)
        if PLACE not in states.schema.names:
            return finished
        columns = (*finished.columns, states.column(PLACE).take(groups.first_rows))
        return replace(finished, columns=columns, schema=finished.schema.append(PLACE_FIELD))

    def _of_nothing(self, xp: ModuleType) -> DeviceTable:
        answers = tuple(
            of_nothing(self.schema.field(a.name).type, AGGREGATIONS[a.function].nothing, xp)
            for a in self.aggregations
        )
        return DeviceTable(answers, self.schema, 1)


@lowers(PartialAggregateKernel)
def lower_partial(kernel: PartialAggregateKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Reduce rows on the device, if they and the aggregations have a place there."""
    schema = schemas[0]
    for a in kernel.aggregations:
        if why := unsupported(a.function, None if a.column is None else schema.field(a.column).type):
            return why
    return crosses(schema) or DevicePartialAggregate(kernel.keys, kernel.aggregations, kernel.schema)


@lowers(FinalAggregateKernel)
def lower_final(kernel: FinalAggregateKernel, schemas: Sequence[pa.Schema]) -> Lowered:
    """Merge states on the device, if they have a place there; sums of decimals have none."""
    for a in kernel.aggregations:
        if why := unsupported(a.function, None):
            return why
    for a in kernel.aggregations:
        if a.function in ("min", "max") and pa.types.is_dictionary(kernel.schema.field(a.name).type):
            return f"{a.function} of {kernel.schema.field(a.name).type} has no order there"
    why = crosses(schemas[0]) or crosses(kernel.schema)
    return why or DeviceFinalAggregate(kernel.keys, kernel.aggregations, kernel.schema)


def _merge_states(
    states: DeviceTable, keys: Sequence[str], aggregations: Sequence[Aggregation], xp: ModuleType
) -> tuple[DeviceGroups, list[State]]:
    """Group states by key and merge them: the groups, and the states that `shared_states` names."""
    groups = group([states.column(name) for name in keys], states.rows, xp)
    reductions, columns = Reductions(groups), states.columns[len(keys) :]
    merged = []
    for a in shared_states(aggregations)[0]:
        size = AGGREGATIONS[a.function].parts
        merged.append(DEVICE_AGGREGATIONS[a.function].merge(reductions, columns[:size]))
        columns = columns[size:]
    return groups, merged


def _states(
    groups: DeviceGroups, table: DeviceTable, keys: Sequence[str], parts: Sequence[State], schema: pa.Schema
) -> DeviceTable:
    """A row for each group: its key, -0.0 and NaN in one form, and the parts."""
    firsts = [table.column(name).take(groups.first_rows) for name in keys]
    columns = [replace(first, values=one_form(first.values, groups.xp)) for first in firsts]
    columns += [part for state in parts for part in state]
    return DeviceTable(typed(columns, schema), schema, groups.count)


def _state_bytes(states: DeviceTable) -> int:
    """Bytes of a table of states on the device, whatever columns lack marks of nulls."""
    return states.rows * row_bytes(states.schema) + _sketch_bytes([states])


def _sketch_bytes(states: Sequence[DeviceTable]) -> int:
    """Bytes of the sketches of quantiles in states."""
    return sum(column.nbytes for table in states for column in table.columns if column.type == SKETCH)
