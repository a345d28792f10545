"""Join: rows of two inputs matched on equal keys (null matches nothing, as in SQL)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..errors import ParameterError, TypeMismatchError, column_not_found, did_you_mean
from ..lineage.graph import Dependency
from .kernel import MORSEL_ROWS, Broadcast, Context, Kernel, Stream
from .key_index import KeyIndex
from .merge import merge_runs
from .morsels import drained, numbered, rechunk
from .node import Node
from .ordering import SortKey
from .spill import ROW, SpillFile, hash_parts, new_spill

HOW = ("inner", "left", "semi", "anti")
STRATEGIES = ("auto", "broadcast", "shuffle")


@dataclass(frozen=True, eq=False, repr=False)
class Join(Node):
    """Match two inputs on equal keys.

    The output has the left columns, then (inner, left) the right ones without its keys; a right
    column whose name the left has takes ``suffix``. Within a partition, rows stand in left order,
    and matches of one left row in right order.

    Attributes:
        left, right: the inputs.
        left_on, right_on: key columns, pairwise; of one common type.
        how: inner, left, semi (left rows with a match) or anti (left rows without).
        suffix: for right columns whose name is taken.
        strategy: "auto", or "broadcast" or "shuffle" to overrule the planner.
    """

    left: Node
    right: Node
    left_on: tuple[str, ...]
    right_on: tuple[str, ...]
    how: Literal["inner", "left", "semi", "anti"] = "inner"
    suffix: str = "_right"
    strategy: Literal["auto", "broadcast", "shuffle"] = "auto"

    def __post_init__(self) -> None:
        _check_choice("how", self.how, HOW)
        _check_choice("strategy", self.strategy, STRATEGIES)
        if len(self.left_on) != len(self.right_on) or not self.left_on:
            raise ParameterError(
                f"join: {len(self.left_on)} left keys {list(self.left_on)} against {len(self.right_on)} "
                f"right keys {list(self.right_on)}. Give the same number, at least one, of each."
            )
        self.check()

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.left, self.right)

    def with_inputs(self, inputs: Sequence[Node]) -> Join:
        return Join(inputs[0], inputs[1], self.left_on, self.right_on, self.how, self.suffix, self.strategy)

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        return (Dependency.WIDE, Dependency.WIDE)

    @property
    def right_columns(self) -> tuple[tuple[str, str], ...]:
        """(right column, output name) for each right column the output has."""
        if self.how in ("semi", "anti"):
            return ()
        taken = set(self.left.schema.names)
        return tuple(
            (name, name + self.suffix if name in taken else name)
            for name in self.right.schema.names
            if name not in self.right_on
        )

    def derive_schema(self) -> pa.Schema:
        left, right = self.left.schema, self.right.schema
        for a, b in zip(self.left_on, self.right_on):
            if a not in left.names:
                raise column_not_found(a, left.names, "join, left side")
            if b not in right.names:
                raise column_not_found(b, right.names, "join, right side")
            if pa.types.is_nested(left.field(a).type):
                raise TypeMismatchError(
                    f"join: the key {a!r} is {left.field(a).type}, which can't be matched. Join on its parts."
                )
            if left.field(a).type != right.field(b).type:
                raise TypeMismatchError(
                    f"join: the key {a!r} is {left.field(a).type} on the left and {b!r} is "
                    f"{right.field(b).type} on the right. Cast one, as "
                    f"with_columns({b}=col({b!r}).cast({str(left.field(a).type)!r}))."
                )
        fields = list(left) + [pa.field(out, right.field(name).type) for name, out in self.right_columns]
        names = [field.name for field in fields]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ParameterError(
                f"join: the output would have {duplicates[0]!r} twice, also with the suffix "
                f"{self.suffix!r}. Give another suffix, or rename or drop the column first."
            )
        return pa.schema([pa.field(f.name, f.type) for f in fields])

    def parameters(self) -> Any:
        return (self.left_on, self.right_on, self.how, self.suffix, self.strategy)

    def describe(self) -> str:
        on = ", ".join(a if a == b else f"{a}={b}" for a, b in zip(self.left_on, self.right_on))
        return f"{self.how} on [{on}]" + ("" if self.strategy == "auto" else f" strategy={self.strategy}")


@dataclass(frozen=True)
class JoinKernel(Kernel):
    """Indexes the right input by its keys and streams the left one past it.

    A right input beyond memory makes it a Grace hash join: both sides are split to disk by key until
    the right parts fit, and the joined parts are merged back into left order, so that the output is
    the same. Only a single key whose right rows exceed memory is held nevertheless.

    Source: Kitsuregawa, Tanaka, Moto-oka 1983, "Application of hash to data base machine and its
    architecture".

    Attributes:
        left_on, right_on: key columns, pairwise.
        how: as in `Join`.
        right_columns: (right column, output name).
        schema: of the output.
    """

    left_on: tuple[str, ...]
    right_on: tuple[str, ...]
    how: Literal["inner", "left", "semi", "anti"]
    right_columns: tuple[tuple[str, str], ...]
    schema: pa.Schema

    def run(self, inputs: Sequence[Stream | Broadcast], context: Context) -> Stream:
        left, right = inputs
        if isinstance(right, Broadcast):
            side = right.once(f"join {self.right_on} {self.right_columns}", lambda: self._side(right.table()))
            yield from self._probe(left, side)
            return
        held: list[pa.Table] = []
        size = 0
        stream = (table.select(self._needed) for table in right)
        for table in stream:
            held.append(table)
            size += table.nbytes
            if size > context.memory_bytes // 2:
                yield from self._grace(left, chain(drained(held), stream), context)
                return
        yield from self._probe(left, self._side(pa.concat_tables(held) if held else None))

    @property
    def _needed(self) -> list[str]:
        names = dict.fromkeys([*self.right_on, *(name for name, _ in self.right_columns)])
        return list(names)

    def _side(self, right: pa.Table | None) -> tuple[KeyIndex, pa.Table] | None:
        """The index of the right rows and their payload; None for no rows."""
        if right is None or not right.num_rows:
            return None
        payload = right.select([name for name, _ in self.right_columns]).combine_chunks()
        return KeyIndex([right.column(name) for name in self.right_on]), payload

    def _probe(self, left: Iterable[pa.Table], side: tuple[KeyIndex, pa.Table] | None) -> Stream:
        """Join left tables, which may have columns beyond the output's, that stand last then."""
        if side is None:
            if self.how in ("left", "anti"):
                yield from (self._output(table, None, None) for table in left)
            return
        index, payload = side
        for table in rechunk(left, index.probe_rows):
            codes = index.lookup([table.column(name) for name in self.left_on])
            if self.how in ("semi", "anti"):
                found = codes >= 0
                yield self._output(_rows_where(table, ~found if self.how == "anti" else found), None, None)
            elif index.unique:
                yield self._pairs(table, codes, index, payload)
            else:
                yield from self._matches(table, codes, index, payload)

    def _pairs(self, table: pa.Table, codes: np.ndarray, index: KeyIndex, payload: pa.Table) -> pa.Table:
        """Put each left row beside its only match."""
        found = codes >= 0
        if self.how == "inner":
            return self._output(_rows_where(table, found), payload, index.rows(codes[found]))
        rows = np.full(len(codes), -1, dtype=np.int64)
        rows[found] = index.rows(codes[found])
        return self._output(table, payload, rows)

    def _matches(self, table: pa.Table, codes: np.ndarray, index: KeyIndex, payload: pa.Table) -> Stream:
        """Expand each left row by its matches, a slice of the output at a time."""
        counts = index.counts(codes)
        copies = np.maximum(counts, 1) if self.how == "left" else counts
        ends = np.cumsum(copies)
        table = table.combine_chunks()
        for start in range(0, int(ends[-1]) if len(ends) else 0, MORSEL_ROWS):
            places = np.arange(start, min(start + MORSEL_ROWS, int(ends[-1])))
            rows = np.searchsorted(ends, places, side="right")
            ranks = places - (ends[rows] - copies[rows])
            yield self._output(table.take(pa.array(rows)), payload, _rows(index, codes[rows], ranks))

    def _output(self, left: pa.Table, payload: pa.Table | None, rows: np.ndarray | None) -> pa.Table:
        """Put left rows and the right rows of these numbers (-1 is none) side by side."""
        kept = len(self.schema) - len(self.right_columns)
        columns = left.columns[:kept]
        if payload is None or rows is None:
            for field in list(self.schema)[kept:]:
                columns.append(pa.nulls(left.num_rows, field.type))
        elif self.right_columns:
            missing = rows < 0
            taken = payload.take(pa.array(rows, mask=missing if missing.any() else None))
            columns += taken.columns
        extra = [left.schema.field(i) for i in range(kept, left.num_columns)]
        schema = pa.schema([*self.schema, *extra])
        return pa.Table.from_arrays([*columns, *left.columns[kept:]], schema=schema)

    def _grace(self, left: Iterable[pa.Table], right: Iterable[pa.Table], context: Context) -> Stream:
        with context.spill_folder() as name:
            folder = Path(name)
            runs: list[SpillFile] = []
            parts = hash_parts(
                [numbered(left, ROW), right],
                [self.left_on, self.right_on],
                context.memory_bytes // 2,
                1,
                folder,
                context,
            )
            for rows, matches in parts:
                if rows is None or not rows.rows or matches is None:
                    continue
                joined = self._probe(rows.read(), self._side(matches.table()))
                if (first := next(joined, None)) is None:
                    continue
                runs.append(new_spill(folder, first.schema, context))
                for table in chain([first], joined):
                    runs[-1].append(table)
                runs[-1].finish()
            for table in merge_runs(runs, [SortKey(ROW)], context):
                yield table.drop_columns([ROW])


def _check_choice(argument: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ParameterError(f"join({argument}={value!r}): {did_you_mean(str(value), valid)}")


def _rows(index: KeyIndex, codes: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The right row of each match, -1 where there is none."""
    found = codes >= 0
    if found.all():
        return index.rows(codes, ranks)
    rows = np.full(len(codes), -1, dtype=np.int64)
    rows[found] = index.rows(codes[found], ranks[found])
    return rows


def _rows_where(table: pa.Table, mask: np.ndarray) -> pa.Table:
    """The rows of a mask; no copy if these are all."""
    kept = np.count_nonzero(mask)
    if kept == len(mask):
        return table
    return (
        table.take(pa.array(np.flatnonzero(mask))) if 4 * kept < len(mask) else table.filter(pa.array(mask))
    )
