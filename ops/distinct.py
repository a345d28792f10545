"""Distinct: the first row of each set of equal keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import column_not_found
from ..lineage.graph import Dependency
from .grouping import group
from .kernel import Broadcast, Context, Kernel, Stream
from .key_words import first_rows_of, key_words, sortable
from .merge import merge_runs
from .morsels import contiguous, numbered, slices
from .node import Node
from .ordering import SortKey
from .spill import ROW, hash_parts, new_spill

#: one part in so many of a task's memory holds rows that wait to be compared
_WAITING_SHARE = 6


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
        seen = _Seen(self.keys, context.memory_bytes // _WAITING_SHARE)
        while (table := next(stream, None)) is not None:
            yield from seen.add(table)
            if seen.bytes > context.memory_bytes // 2:
                yield from seen.flush()
                yield from self.after(seen.rows, stream, context)
                return
        yield from seen.flush(last=True)

    def after(self, seen: pa.Table, stream: Stream, context: Context) -> Stream:
        """Pass on rows whose keys are new, given the distinct keys of rows before them, by way of disk."""
        names = seen.schema.names
        with context.spill_folder() as folder:
            runs = []
            streams = [numbered(stream, ROW), [seen]]
            for rest, known in hash_parts(
                streams, [names, names], context.memory_bytes // 2, 0, Path(folder), context
            ):
                if rest is None or known is None or not rest.rows:
                    continue
                part = _Seen(tuple(names), context.memory_bytes // _WAITING_SHARE, known.table())
                runs.append(new_spill(Path(folder), rest.schema, context))
                for table in chain(chain.from_iterable(map(part.add, rest.read())), part.flush(last=True)):
                    runs[-1].append(table)
                runs[-1].finish()
            for table in merge_runs(runs, [SortKey(ROW)], context):
                yield table.drop_columns([ROW])


class _Seen:
    """The distinct keys so far, and rows waiting to be compared with them.

    Rows wait until there are many, so that all comparisons together cost a few passes.

    Args:
        keys: the columns that must differ; None is all of them.
        most_bytes: how many bytes of rows wait.
        rows: keys that were seen before.
    """

    def __init__(self, keys: tuple[str, ...] | None, most_bytes: int, rows: pa.Table | None = None):
        self._keys, self._most_bytes = keys, most_bytes
        self.rows = rows
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self._waiting_bytes + (0 if self.rows is None else self.rows.nbytes)

    def add(self, table: pa.Table) -> Stream:
        """Take rows in; return rows that are known to be new."""
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        return self.flush() if self._waiting_bytes >= self._most_bytes else iter(())

    def flush(self, last: bool = False) -> Stream:
        """Return the waiting rows that are new; after the last ones, keys are no longer remembered."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not waiting:
            return
        keys = [table if self._keys is None else table.select(self._keys) for table in waiting]
        known = 0 if self.rows is None else self.rows.num_rows
        both = pa.concat_tables(keys if self.rows is None else [self.rows, *keys])
        firsts = first_rows(both)
        if not last:
            self.rows = both.take(pa.array(firsts)).combine_chunks()
        new = np.zeros(both.num_rows - known, bool)
        new[firsts[firsts >= known] - known] = True
        start = 0
        for table in waiting:
            mask = new[start : start + table.num_rows]
            start += table.num_rows
            if mask.any():
                yield from slices(table.filter(pa.array(mask)))


def first_rows(table: pa.Table) -> np.ndarray:
    """Return the first of each set of equal rows, ascending; shape (distinct rows,), int64."""
    words = key_words([(sortable(contiguous(column)), False, False) for column in table.columns])
    if words is not None and len(words) == 1:
        return first_rows_of(words[0])
    return group(table.columns, table.num_rows).first_rows
