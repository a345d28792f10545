"""Chains: filters and projections, one after another, as a kernel for the mask and one for what is kept.

The first kernel computes the predicates of a tile of 1024 rows and leaves them as bits and a count; the counts are
summed up; the second kernel computes the columns that come out, for the kept rows alone, straight from the columns
that went in, and writes them without gaps. Columns between steps, and those that only a predicate reads, are never
moved. Predicated loads aren't worth it: a tile's kept rows are listed first, so only their sectors are read.

Traffic, in bytes a row, where a share s is kept: the columns that predicates read, and 0.13 for bits, once written
and once read for each `RESULTS` columns that come out; then of each column of width w that these read
w * (1 - (1 - s) ** (32 / w)), the sectors that hold a kept row; and s times the widths of what comes out. A mask of
nulls counts as a column of width 1. What both kernels read of a table of a million rows is in cache by then.

Launches for a table: 3 and 1 for every `RESULTS` columns, and one wait; another if what comes out may fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ....errors import HeadwaterError
from ...backend import Array
from ..arrays.compaction import TILE, starts_of
from ..column import DeviceColumn, physical_type
from ..fused.programs import Program, places
from ..fused.types import Refused
from ..fused.words import Tables
from ..modules import generated, launch
from ..table import DeviceTable
from .links import Layout, Link


class DoubtError(HeadwaterError):
    """A row may be one that the host raises for; steps that are taken one by one tell."""


@dataclass(frozen=True, eq=False)
class RowChain:
    """Filters and projections that run as one.

    Attributes:
        source: schema of the rows that go in.
        links: the steps, in order; constants folded.
        schema: of the rows that come out.
    """

    source: pa.Schema
    links: tuple[Link, ...]
    schema: pa.Schema

    def run(self, table: DeviceTable, xp: ModuleType, tables: Tables) -> DeviceTable | None:
        """Compute the rows that are kept.

        Args:
            table: of the schema ``source``.
            xp: CuPy.
            tables: of this chain and stream.

        Returns:
            The rows; None for none, if there is a filter. Columns that pass through a chain which keeps all rows
            aren't copied.

        Raises:
            HeadwaterError: it can't tell whether the host would raise.
        """
        tables.bind(table)
        if not self.layout.tests:
            return self._all(table, xp, tables)
        if not table.rows:
            return None
        words, starts, kept = self._mask(table, xp, tables)
        if kept == table.rows:
            return self._all(table, xp, tables)
        return self._kept(table, (words, starts, kept), xp, tables) if kept else None

    def _mask(self, table: DeviceTable, xp: ModuleType, tables: Tables) -> tuple[Array, Array, int]:
        program = self.layout.program("mask", (), self._nullable(table))
        args = program.given(table, tables, xp)
        tiles = (table.rows + TILE - 1) // TILE
        words, counts = xp.empty(tiles * 32, dtype=np.uint32), xp.empty(tiles, dtype=np.int32)
        failed = xp.zeros(1, dtype=np.int32) if program.fails else None
        args += [] if failed is None else [failed]
        args += [np.int64(table.rows), words, counts]
        launch(generated(xp, program.code, program.name), tiles * 32, args)
        starts, kept, told = starts_of(counts, failed, xp)
        if told:
            raise DoubtError("a filter's rows")
        return words, starts, kept

    def _all(self, table: DeviceTable, xp: ModuleType, tables: Tables) -> DeviceTable:
        """The rows, all of them."""
        found: dict[str, DeviceColumn] = {}
        for part in self.layout.parts:
            computed = tuple(name for name in part if name in self.layout.computed)
            if computed or self.layout.watches(part):
                program = self.layout.program(
                    "all", computed, self._nullable(table), self.layout.watches(part)
                )
                args = program.given(table, tables, xp)
                results = program.results(
                    [self.layout.computed[n].type for n in computed], table.rows, tables, xp
                )
                self._launch(program, table.rows, args, results, [np.int64(table.rows)], xp)
                found |= zip(computed, results)
        columns = tuple(found[name] if name in found else table.column(name) for name in self.layout.outputs)
        if len(columns) == len(table.columns) and all(a is b for a, b in zip(columns, table.columns)):
            return table if table.schema == self.schema else DeviceTable(columns, self.schema, table.rows)
        return DeviceTable(columns, self.schema, table.rows)

    def _kept(
        self, table: DeviceTable, mask: tuple[Array, Array, int], xp: ModuleType, tables: Tables
    ) -> DeviceTable:
        """The rows that a mask keeps."""
        words, starts, kept = mask
        found: dict[str, DeviceColumn] = {}
        for part in self.layout.parts:
            if not part and not self.layout.watches(part):
                continue
            program = self.layout.program("kept", part, self._nullable(table), self.layout.watches(part))
            args = program.given(table, tables, xp)
            types = [
                self.layout.computed[n].type if n in self.layout.computed else table.column(n).type
                for n in part
            ]
            results = program.results(types, kept, tables, xp)
            form = [words, starts, np.int64(table.rows)]
            self._launch(program, int(words.shape[0]), args, results, form, xp)
            for name, column in zip(part, results):
                if name not in self.layout.computed:
                    column = DeviceColumn(
                        column.type, column.values, column.valid, table.column(name).dictionary
                    )
                found[name] = column
        return DeviceTable(tuple(found[name] for name in self.layout.outputs), self.schema, kept)

    def _launch(
        self,
        program: Program,
        items: int,
        args: list,
        results: list[DeviceColumn],
        form: list,
        xp: ModuleType,
    ) -> None:
        failed = [xp.zeros(1, dtype=np.int32)] if program.fails else []
        args = [*args, *places(results), *failed, *form]
        launch(generated(xp, program.code, program.name), items, args, each=program.each)
        if failed and int(failed[0][0]):
            raise DoubtError("what is kept")

    def _nullable(self, table: DeviceTable) -> frozenset[str]:
        return frozenset(name for name in self.layout.read if table.column(name).valid is not None)

    @cached_property
    def layout(self) -> Layout:
        """What is computed, in order."""
        return Layout(self.source, self.links)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowChain, (self.source, self.links, self.schema)


def chain_of(source: pa.Schema, links: Sequence[Link], schema: pa.Schema) -> RowChain | str:
    """Plan a chain.

    Args:
        source: schema of the rows that go in.
        links: the steps.
        schema: of the rows that come out.

    Returns:
        The chain, or why its steps can't run as one.
    """
    for field in source:
        if physical_type(field.type) is None:
            return f"the column {field.name!r} of {field.type} has no form there"
    chain = RowChain(source, tuple(links), schema)
    try:
        chain.layout.parts  # noqa: B018  (refuses what can't be written)
        if chain.layout.tests:
            chain.layout.program("mask", (), frozenset(source.names))
    except (Refused, HeadwaterError) as error:
        return str(error)
    return chain
