"""Distinct: the first row of each set of equal keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import column_not_found
from ..lineage.graph import Dependency
from .grouping import group
from .kernel import MORSEL_ROWS, Broadcast, Context, Kernel, Stream
from .merge import merge_runs
from .morsels import numbered, slices
from .node import Node
from .ordering import SortKey
from .spill import ROW, hash_parts, new_spill


@dataclass(frozen=True, eq=False, repr=False)
class Distinct(Node):
    """Keep the first row, in partition order, for each combination of key values.

    Attributes:
        input: the rows.
        keys: the columns that must differ; None is all of them.
    """

    input: Node
    keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.check()

    def with_inputs(self, inputs: Sequence[Node]) -> Distinct:
        return Distinct(inputs[0], self.keys)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE,)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that must differ."""
        return tuple(self.input.schema.names) if self.keys is None else self.keys

    def derive_schema(self) -> pa.Schema:
        for name in self.keys or ():
            if name not in self.input.schema.names:
                raise column_not_found(name, self.input.schema.names, "distinct")
        return self.input.schema

    def parameters(self) -> Any:
        return self.keys

    def describe(self) -> str:
        return "" if self.keys is None else f"by [{', '.join(self.keys)}]"


@dataclass(frozen=True)
class DistinctKernel(Kernel):
    """Passes the first row of each key on, streaming; keys seen beyond memory are split to disk.

    Rows come in the order of the input, spilled or not.

    Attributes:
        keys: the columns that must differ; None is all of them.
    """

    keys: tuple[str, ...] | None

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        stream = iter(inputs[0])
        seen = _Seen(self.keys)
        while (table := next(stream, None)) is not None:
            yield from seen.add(table)
            if seen.bytes > context.memory_bytes // 2:
                yield from seen.flush()
                yield from self._spill(seen.rows, stream, context)
                return
        yield from seen.flush()

    def _spill(self, seen: pa.Table, stream: Stream, context: Context) -> Stream:
        names = seen.schema.names
        with context.spill_folder() as folder:
            runs = []
            streams = [numbered(stream, ROW), [seen]]
            for rest, known in hash_parts(
                streams, [names, names], context.memory_bytes // 2, 0, Path(folder), context
            ):
                if rest is None or known is None or not rest.rows:
                    continue
                part = _Seen(tuple(names), known.table())
                runs.append(new_spill(Path(folder), rest.schema, context))
                for table in chain(chain.from_iterable(map(part.add, rest.read())), part.flush()):
                    runs[-1].append(table)
                runs[-1].finish()
            for table in merge_runs(runs, [SortKey(ROW)], context):
                yield table.drop_columns([ROW])


class _Seen:
    """The distinct keys so far, and new rows waiting to be compared with them.

    Rows wait until there are as many as keys, so that all comparisons together cost a few passes.
    """

    def __init__(self, keys: tuple[str, ...] | None, rows: pa.Table | None = None):
        self._keys = keys
        self.rows = rows
        self._waiting: list[pa.Table] = []

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(table.nbytes for table in self._waiting) + (0 if self.rows is None else self.rows.nbytes)

    def add(self, table: pa.Table) -> Stream:
        """Take rows in; return rows that are known to be new."""
        names = table.schema.names if self._keys is None else self._keys
        groups = group([table.column(name) for name in names], table.num_rows)
        self._waiting.append(table.take(pa.array(groups.first_rows)))
        known = 0 if self.rows is None else self.rows.num_rows
        if sum(t.num_rows for t in self._waiting) >= max(MORSEL_ROWS, known):
            return self.flush()
        return iter(())

    def flush(self) -> Stream:
        """Return the waiting rows that are new."""
        if self._waiting:
            rows = pa.concat_tables(self._waiting).combine_chunks()
            self._waiting = []
            yield from slices(self._unseen(rows))

    def _unseen(self, rows: pa.Table) -> pa.Table:
        keys = rows if self._keys is None else rows.select(self._keys)
        known = 0 if self.rows is None else self.rows.num_rows
        both = keys if self.rows is None else pa.concat_tables([self.rows, keys])
        firsts = group(both.columns, both.num_rows).first_rows
        self.rows = both.take(pa.array(firsts))
        return rows.take(pa.array(firsts[firsts >= known] - known))
