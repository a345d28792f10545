"""Sort: rows in the order of keys, stable; and TopK, the first rows of that order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import TypeMismatchError, column_not_found
from ..lineage.graph import Dependency
from .kernel import MORSEL_ROWS, Broadcast, Context, Kernel, Stream
from .limit import LimitKernel
from .merge import merge_runs, sorted_slices
from .morsels import drained, slices
from .node import Node
from .ordering import SortKey, segments, sort_indices
from .spill import SpillFile, new_spill

#: how much of its memory a sort fills before it puts rows aside; the rest is for a column that is joined, the rows'
#: numbers and the slice that goes out
_HELD_SHARE = 0.75


def check_sort_keys(keys: Sequence[SortKey], schema: pa.Schema) -> None:
    """Raise ColumnNotFoundError or TypeMismatchError for keys that the schema can't be sorted by."""
    for key in keys:
        if key.column not in schema.names:
            raise column_not_found(key.column, schema.names, "sort")
        type = schema.field(key.column).type
        if pa.types.is_nested(type) or pa.types.is_interval(type):
            raise TypeMismatchError(
                f"sort: {key.column!r} is {type}, which has no order. Sort by one of its fields."
            )


@dataclass(frozen=True, eq=False, repr=False)
class Sort(Node):
    """Order all rows: partition i holds rows that come before those of partition i + 1."""

    input: Node
    keys: tuple[SortKey, ...]

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Sort:
        return Sort(inputs[0], self.keys)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    def derive_schema(self) -> pa.Schema:
        check_sort_keys(self.keys, self.input.schema)
        return self.input.schema

    def parameters(self) -> Any:
        return tuple((k.column, k.descending, k.nulls_first) for k in self.keys)

    def describe(self) -> str:
        return f"by [{', '.join(str(key) for key in self.keys)}]"


@dataclass(frozen=True, eq=False, repr=False)
class TopK(Node):
    """The first ``count`` rows of the sorted order; what a Limit over a Sort becomes."""

    input: Node
    keys: tuple[SortKey, ...]
    count: int

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> TopK:
        return TopK(inputs[0], self.keys, self.count)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    def derive_schema(self) -> pa.Schema:
        check_sort_keys(self.keys, self.input.schema)
        return self.input.schema

    def parameters(self) -> Any:
        return (tuple((k.column, k.descending, k.nulls_first) for k in self.keys), self.count)

    def describe(self) -> str:
        return f"{self.count} by [{', '.join(str(key) for key in self.keys)}]"


@dataclass(frozen=True)
class SortKernel(Kernel):
    """Sorts a partition, stable; beyond memory it merges sorted runs from disk.

    Attributes:
        keys: most significant first.
    """

    keys: tuple[SortKey, ...]

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        held: list[pa.Table] = []
        size = 0
        stream = chain.from_iterable(map(slices, inputs[0]))
        for table in stream:
            held.append(table)
            size += table.nbytes
            if size > context.memory_bytes * _HELD_SHARE:
                yield from self._spill(held, stream, context)
                return
        if held:
            yield from sorted_slices(_joined(held), self.keys)

    def _spill(self, held: list[pa.Table], stream: Stream, context: Context) -> Stream:
        with context.spill_folder() as folder:
            runs: list[SpillFile] = []
            limit = context.memory_bytes * _HELD_SHARE
            size = limit + 1
            end: list[pa.Table | None] = [None]
            for table in chain(end, stream, end):
                if table is not None:
                    held.append(table)
                    size += table.nbytes
                if held and (table is None or size > limit):
                    runs.append(new_spill(Path(folder), held[0].schema, context))
                    for piece in sorted_slices(_joined(held), self.keys):
                        runs[-1].append(piece)
                    runs[-1].finish()
                    size = 0
            yield from merge_runs(runs, self.keys, context)


def _joined(held: list[pa.Table]) -> pa.Table:
    """Empty a list of tables into one of a chunk a column, column by column, so that little is held twice."""
    schema = held[0].schema
    columns: list[list[pa.Array]] = [[] for _ in schema]
    while held:
        for chunks, column in zip(columns, held.pop(0).columns):
            chunks += column.chunks
    arrays = []
    for chunks in columns:
        arrays.append(chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks))
        chunks.clear()
    return pa.Table.from_arrays(arrays, schema=schema)


@dataclass(frozen=True)
class TopKKernel(Kernel):
    """The first rows of the sorted order, as a stable sort and a limit would give them.

    Attributes:
        keys: most significant first.
        count: how many rows.
    """

    keys: tuple[SortKey, ...]
    count: int

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        held: list[pa.Table] = []
        worst: pa.Table | None = None
        stream = iter(inputs[0])
        for table in stream if self.count else ():
            held.append(table if worst is None else self._better(table, worst))
            rows = sum(piece.num_rows for piece in held)
            if rows >= self.count + MORSEL_ROWS:
                best = self._best(held)
                held, worst = [best], best.slice(self.count - 1)
            if sum(piece.nbytes for piece in held) > context.memory_bytes // 2:
                ordered = SortKernel(self.keys).run([chain(drained(held), stream)], context)
                yield from LimitKernel(self.count).run([ordered], context)
                return
        if held:
            yield from slices(self._best(held))

    def _best(self, held: list[pa.Table]) -> pa.Table:
        table = pa.concat_tables(held).combine_chunks()
        return table.take(sort_indices(table, self.keys).slice(0, self.count))

    def _better(self, table: pa.Table, worst: pa.Table) -> pa.Table:
        """The rows that come before the worst of the best; later equal rows lose, as the sort is stable."""
        return table.filter(pa.array(segments(table, worst, self.keys) == 0))
