"""Aggregate: one row for each group, in two steps joined by mergeable states.

The map side reduces rows to one state a group, the reduce side merges the states and finishes them.
The aggregations themselves are records in `ops/aggregations.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import ParameterError, column_not_found
from ..lineage.graph import Dependency
from .aggregations import AGGREGATIONS, aggregation_type
from .grouping import Groups, comparable, group
from .kernel import MORSEL_ROWS, Broadcast, Context, Kernel, Stream
from .merge import merge_runs
from .morsels import contiguous, drained, numbered, rechunk, slices
from .node import Node, listed
from .ordering import SortKey
from .quantiles import SKETCH
from .spill import ROW, hash_parts, new_spill


@dataclass(frozen=True)
class Aggregation:
    """One output column of an Aggregate.

    Attributes:
        name: output column.
        function: name of a record in AGGREGATIONS, as sum or n_unique.
        column: input column; None for ``count`` of rows.
        options: as (("ddof", 1),).
    """

    name: str
    function: str
    column: str | None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        q = dict(self.options).get("q")
        return f"{self.name}={self.function}({self.column or ''}{'' if q is None else f', q={q}'})"


@dataclass(frozen=True, eq=False, repr=False)
class Aggregate(Node):
    """Aggregate over groups of equal keys (null is a key like any other), or over all rows.

    Without keys the output is exactly one row, also for no rows.

    Attributes:
        input: the rows.
        keys: grouping columns; empty for a global aggregation.
        aggregations: output columns, after the keys.
    """

    input: Node
    keys: tuple[str, ...]
    aggregations: tuple[Aggregation, ...]

    def __post_init__(self) -> None:
        names = [*self.keys, *(aggregation.name for aggregation in self.aggregations)]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ParameterError(
                f"agg(...) would give the column {duplicates[0]!r} more than once. Name it by "
                "keyword, as agg(total=col('x').sum()), or with .alias(name)."
            )
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Aggregate:
        return Aggregate(inputs[0], self.keys, self.aggregations)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    def derive_schema(self) -> pa.Schema:
        source = self.input.schema
        fields = []
        for name in self.keys:
            if name not in source.names:
                raise column_not_found(name, source.names, "group_by")
            fields.append(pa.field(name, source.field(name).type))
        for a in self.aggregations:
            if a.column is not None and a.column not in source.names:
                raise column_not_found(a.column, source.names, f"agg({a})")
            type = None if a.column is None else source.field(a.column).type
            fields.append(pa.field(a.name, aggregation_type(a.function, type, dict(a.options))))
        return pa.schema(fields)

    def parameters(self) -> Any:
        return (self.keys, tuple((a.name, a.function, a.column, a.options) for a in self.aggregations))

    def describe(self) -> str:
        by = f"by [{', '.join(self.keys)}] " if self.keys else ""
        return f"{by}{listed([str(a) for a in self.aggregations])}"


def shared_states(aggregations: Sequence[Aggregation]) -> tuple[list[Aggregation], list[int]]:
    """Return the aggregations that have a state of their own, and the place of each one's state among these.

    Quantiles of one column, and deviations with another ``ddof``, read the same state.

    Example:
        >>> both = [Aggregation(f"q{n}", "approx_quantile", "x", (("q", n / 4),)) for n in (1, 3)]
        >>> [a.name for a in shared_states(both)[0]], shared_states(both)[1]
        (['q1'], [0, 0])
    """
    found: dict[Any, int] = {}
    own: list[Aggregation] = []
    places = []
    for a in aggregations:
        read = AGGREGATIONS[a.function].state_options
        key = a.function, a.column, tuple(option for option in a.options if option[0] in read)
        if key not in found:
            found[key] = len(own)
            own.append(a)
        places.append(found[key])
    return own, places


def state_schema(
    input_schema: pa.Schema, keys: Sequence[str], aggregations: Sequence[Aggregation]
) -> pa.Schema:
    """Return the schema of the states that a partial aggregation leaves: the keys, then each state's parts.

    A state that several aggregations share is there once, under the first one's name.

    Example:
        >>> schema = pa.schema([("k", pa.string()), ("x", pa.float64())])
        >>> state_schema(schema, ["k"], [Aggregation("m", "mean", "x")]).names
        ['k', 'm#sum', 'm#count']
    """
    fields = [pa.field(name, input_schema.field(name).type) for name in keys]
    for a in shared_states(aggregations)[0]:
        type = pa.null() if a.column is None else input_schema.field(a.column).type
        fields += [pa.field(f"{a.name}#{part}", kind) for part, kind in AGGREGATIONS[a.function].state(type)]
    return pa.schema(fields)


#: a partial aggregation hands its states on when they hold more than this; fixed, as it decides which
#: float sums are added first
_FLUSH_BYTES = 64 << 20
#: states that are held before they are merged for the first time: of fewer rows, often all keys differ
_FIRST_MERGE = 4 * MORSEL_ROWS
#: merging states is given up when it leaves more than this fraction of them
_FUTILE = 0.9
#: rows that leave more states, or buckets in them, than this fraction of them are reduced many at once: of so many,
#: more are alike, and states that aren't made needn't be merged
_SCATTERED = 0.5
#: so many, and no more bytes than this
_MANY_ROWS, _MANY_BYTES = 16 * MORSEL_ROWS, 64 << 20


@dataclass(frozen=True)
class PartialAggregateKernel(Kernel):
    """Reduces the rows of a partition to one state a group, or a few where there are too many groups.

    Attributes:
        keys: grouping columns.
        aggregations: what to compute.
        schema: of the states, see `state_schema`.
    """

    keys: tuple[str, ...]
    aggregations: tuple[Aggregation, ...]
    schema: pa.Schema

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        held: list[pa.Table] = []
        rows, limit, futile = 0, _FIRST_MERGE, False
        for read, states in self._reduced(rechunk(inputs[0])):
            futile = futile or (read > MORSEL_ROWS and states.num_rows > _FUTILE * read)
            if futile:
                yield from held
                yield states
                held = []
                continue
            held.append(states)
            rows += states.num_rows
            if rows < limit and sum(state.nbytes for state in held) < _FLUSH_BYTES:
                continue
            merged = self._merge(held)
            futile = len(held) > 1 and merged.num_rows > _FUTILE * rows
            if futile or merged.nbytes > _FLUSH_BYTES:
                yield merged
                held, rows = [], 0
            else:
                held, rows = [merged], merged.num_rows
            limit = 2 * rows + _FIRST_MERGE
        if held:
            yield self._merge(held)

    def _reduced(self, morsels: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
        """Reduce morsels, or many together where that leaves fewer states; how many rows they were, and states."""
        together = 1
        for number, morsel in enumerate(morsels):
            table = pa.concat_tables([morsel, *islice(morsels, together - 1)])
            states = self._reduce(table)
            if number == 0 and max(states.num_rows, _buckets(states)) > _SCATTERED * table.num_rows:
                together = _morsels_together(table.schema)
                if more := list(islice(morsels, together - 1)):
                    table = pa.concat_tables([table, *more])
                    states = self._reduce(table)
            if states.num_rows > _FUTILE * table.num_rows:
                together = 1
            yield table.num_rows, states

    def _reduce(self, table: pa.Table) -> pa.Table:
        groups = group([table.column(name) for name in self.keys], table.num_rows)
        columns = _group_keys(groups, table, self.keys)
        read = {
            name: contiguous(table.column(name)) for a in self.aggregations if (name := a.column) is not None
        }
        for a in shared_states(self.aggregations)[0]:
            column = None if a.column is None else read[a.column]
            columns += AGGREGATIONS[a.function].partial(groups, column, dict(a.options))
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _merge(self, states: list[pa.Table]) -> pa.Table:
        if len(states) == 1:
            return states[0]
        _, columns, parts = _merge_states(pa.concat_tables(states), self.keys, self.aggregations)
        return pa.Table.from_arrays(
            [*columns, *(part for state in parts for part in state)], schema=self.schema
        )


@dataclass(frozen=True)
class FinalAggregateKernel(Kernel):
    """Merges the states of each group in the order they come, and finishes them.

    Groups stand in order of first appearance. Without keys there is exactly one row.

    Attributes:
        keys: grouping columns.
        aggregations: what to compute.
        schema: of the output.
    """

    keys: tuple[str, ...]
    aggregations: tuple[Aggregation, ...]
    schema: pa.Schema

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        held: list[pa.Table] = []
        size = 0
        stream = iter(inputs[0])
        for table in stream:
            held.append(table)
            size += table.nbytes
            if self.keys and size > context.memory_bytes // 2:
                yield from self._spill(chain(drained(held), stream), context)
                return
        if sum(table.num_rows for table in held):
            yield from slices(self._finish(pa.concat_tables(held), self.schema))
        elif not self.keys:
            yield self._of_nothing()

    def _spill(self, stream: Iterable[pa.Table], context: Context) -> Stream:
        schema = self.schema.append(pa.field(ROW, pa.int64()))
        with context.spill_folder() as name:
            folder = Path(name)
            runs = []
            parts = hash_parts(
                [numbered(stream, ROW)], [self.keys], context.memory_bytes // 2, 0, folder, context
            )
            for (states,) in parts:
                if states is not None and states.rows:
                    runs.append(new_spill(folder, schema, context))
                    runs[-1].append(self._finish(states.table(), schema))
                    runs[-1].finish()
            for table in merge_runs(runs, [SortKey(ROW)], context):
                yield table.drop_columns([ROW])

    def _finish(self, states: pa.Table, schema: pa.Schema) -> pa.Table:
        groups, columns, parts = _merge_states(states, self.keys, self.aggregations)
        for a, place in zip(self.aggregations, shared_states(self.aggregations)[1]):
            answer = AGGREGATIONS[a.function].finish(parts[place], dict(a.options))
            columns.append(answer.cast(self.schema.field(a.name).type))
        if len(schema) > len(self.schema):
            columns.append(contiguous(states.column(ROW)).take(pa.array(groups.first_rows)))
        return pa.Table.from_arrays(columns, schema=schema)

    def _of_nothing(self) -> pa.Table:
        answers = [
            pa.array([AGGREGATIONS[a.function].nothing], self.schema.field(a.name).type)
            for a in self.aggregations
        ]
        return pa.Table.from_arrays(answers, schema=self.schema)


def _buckets(states: pa.Table) -> int:
    """How many buckets of quantiles the longest column of states has."""
    sketches = [column for column in states.columns if column.type == SKETCH]
    return max((sum(len(chunk.flatten()) for chunk in column.chunks) for column in sketches), default=0)


def _morsels_together(schema: pa.Schema) -> int:
    """How many morsels may be reduced at once, by their types alone; where sizes of values aren't known, one."""
    try:
        width = sum(type.bit_width for type in schema.types) // 8
    except ValueError:  # of varying width
        return 1
    return max(min(_MANY_ROWS, _MANY_BYTES // max(width, 1)) // MORSEL_ROWS, 1)


def _merge_states(
    states: pa.Table, keys: Sequence[str], aggregations: Sequence[Aggregation]
) -> tuple[Groups, list[pa.Array], list[tuple[pa.Array, ...]]]:
    """Group states by key and merge them: the groups, their keys, and the states that `shared_states` names."""
    groups = group([states.column(name) for name in keys], states.num_rows)
    columns = [contiguous(column) for column in states.columns[len(keys) :]]
    merged = []
    for a in shared_states(aggregations)[0]:
        size = AGGREGATIONS[a.function].parts
        merged.append(AGGREGATIONS[a.function].merge(groups, tuple(columns[:size])))
        columns = columns[size:]
    return groups, _group_keys(groups, states, keys), merged


def _group_keys(groups: Groups, table: pa.Table, keys: Sequence[str]) -> list[pa.Array]:
    """The key of each group, -0.0 and NaN in one form, dictionaries decoded."""
    rows = pa.array(groups.first_rows)
    firsts = [contiguous(table.column(name)).take(rows) for name in keys]
    return [_decoded(comparable(first).cast(first.type)) for first in firsts]


def _decoded(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
