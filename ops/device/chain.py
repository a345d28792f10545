"""Chains: filters and projections, one after another, as a kernel for the mask and one for what is kept.

The first kernel computes the predicates of a tile of 1024 rows and leaves them as bits and a count; the counts are
summed up; the second kernel computes the columns that come out, for the kept rows alone, straight from the columns
that went in, and writes them without gaps. Columns between steps, and those that only a predicate reads, are never
moved. Predicated loads aren't worth it: a tile's kept rows are listed first, so only their sectors are read.

Traffic, in bytes a row, where a share s is kept: the columns that predicates read, and 0.13 for bits, once written
and once read for each `_RESULTS` columns that come out; then of each column of width w that these read
w * (1 - (1 - s) ** (32 / w)), the sectors that hold a kept row; and s times the widths of what comes out. A mask of
nulls counts as a column of width 1. What both kernels read of a table of a million rows is in cache by then.

Launches for a table: 3 and 1 for every `_RESULTS` columns, and one wait; another if what comes out may fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import HeadwaterError
from ..backend import Array
from ..expressions.analysis import may_raise, substitute
from ..expressions.expr import Column, Expr
from . import fused  # noqa: F401  (its rules)
from .column import DeviceColumn, physical_type
from .compaction import TILE, starts_of
from .fused.emitter import Emitter
from .fused.lowering import output
from .fused.programs import Program, TooManyError, mask_of, over_kept, over_rows, places
from .fused.types import Refused
from .fused.words import Tables
from .modules import generated, launch
from .table import DeviceTable

#: columns that one kernel writes
_RESULTS = 16


class DoubtError(HeadwaterError):
    """A row may be one that the host raises for; steps that are taken one by one tell."""


@dataclass(frozen=True)
class Keep:
    """A filter: keeps rows for which a predicate, which is never null, is true."""

    predicate: Expr


@dataclass(frozen=True)
class Compute:
    """A projection: each column by its name; what isn't named is dropped. A column as it stands is a `Column`."""

    columns: tuple[tuple[str, Expr, pa.DataType], ...]


Link = Keep | Compute


@dataclass(frozen=True)
class _Item:
    """A predicate, or a value that has a name in what follows; over source columns and names before it.

    Attributes:
        name: empty for a predicate.
        risky: whether it may raise.
    """

    name: str
    expr: Expr
    type: pa.DataType
    risky: bool = False


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
        if not self._tests:
            return self._all(table, xp, tables)
        if not table.rows:
            return None
        words, starts, kept = self._mask(table, xp, tables)
        if kept == table.rows:
            return self._all(table, xp, tables)
        return self._kept(table, (words, starts, kept), xp, tables) if kept else None

    @property
    def unmoved(self) -> list[str]:
        """Columns that only predicates read."""
        moved: set[str] = set()
        for name in self._needed(self._outputs):
            moved |= self._columns_of(name)
        return [name for name in self.source.names if name in self._read and name not in moved]

    def check(self) -> None:
        """Write the programs once.

        Raises:
            Refused: something has no form in a kernel.
        """
        every = frozenset(self.source.names)
        self._parts  # noqa: B018
        if self._tests:
            _program(self._key, "mask", (), every)

    # -- how it runs -----------------------------------------------------------------------------------

    def _mask(self, table: DeviceTable, xp: ModuleType, tables: Tables) -> tuple[Array, Array, int]:
        program = _program(self._key, "mask", (), self._nullable(table))
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
        for part in self._parts:
            computed = tuple(name for name in part if name in self._items)
            if computed or self._risks(part):
                program = _program(self._key, "all", computed, self._nullable(table), self._risks(part))
                args = program.given(table, tables, xp)
                results = program.results([self._items[n].type for n in computed], table.rows, tables, xp)
                self._launch(program, table.rows, args, results, [np.int64(table.rows)], xp)
                found |= zip(computed, results)
        columns = tuple(found[name] if name in found else table.column(name) for name in self._outputs)
        if len(columns) == len(table.columns) and all(a is b for a, b in zip(columns, table.columns)):
            return table if table.schema == self.schema else DeviceTable(columns, self.schema, table.rows)
        return DeviceTable(columns, self.schema, table.rows)

    def _kept(
        self, table: DeviceTable, mask: tuple[Array, Array, int], xp: ModuleType, tables: Tables
    ) -> DeviceTable:
        """The rows that a mask keeps."""
        words, starts, kept = mask
        found: dict[str, DeviceColumn] = {}
        for part in self._parts:
            if not part and not self._risks(part):
                continue
            program = _program(self._key, "kept", part, self._nullable(table), self._risks(part))
            args = program.given(table, tables, xp)
            types = [self._items[n].type if n in self._items else table.column(n).type for n in part]
            results = program.results(types, kept, tables, xp)
            form = [words, starts, np.int64(table.rows)]
            self._launch(program, int(words.shape[0]), args, results, form, xp)
            for name, column in zip(part, results):
                if name not in self._items:
                    column = DeviceColumn(
                        column.type, column.values, column.valid, table.column(name).dictionary
                    )
                found[name] = column
        return DeviceTable(tuple(found[name] for name in self._outputs), self.schema, kept)

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
        return frozenset(name for name in self._read if table.column(name).valid is not None)

    # -- what it is ------------------------------------------------------------------------------------

    @cached_property
    def _layout(self) -> tuple[list[_Item], list[str]]:
        """The predicates and computed values in order, and the names of what comes out."""
        items: list[_Item] = []
        now = {name: name for name in self.source.names}
        for number, link in enumerate(self.links):
            if isinstance(link, Keep):
                items.append(_Item("", _renamed(link.predicate, now), pa.bool_()))
                continue
            new = {}
            for name, expr, type in link.columns:
                if isinstance(expr, Column):
                    new[name] = now[expr.name]
                    continue
                new[name] = f"{name}\0{number}"
                items.append(_Item(new[name], _renamed(expr, now), type))
            now = new
        return _with_risks(items, self.source), list(now.values())

    @property
    def _outputs(self) -> list[str]:
        return self._layout[1]

    @cached_property
    def _items(self) -> dict[str, _Item]:
        return {item.name: item for item in self._layout[0] if item.name}

    @cached_property
    def _tests(self) -> int:
        """How many of the items there are up to the last predicate; 0 without one."""
        return max((place + 1 for place, item in enumerate(self._layout[0]) if not item.name), default=0)

    @cached_property
    def _read(self) -> frozenset[str]:
        """Source columns that are read anywhere."""
        named = {name for item in self._layout[0] for name in item.expr.columns()} | set(self._outputs)
        return frozenset(name for name in named if name not in self._items)

    def _needed(self, names: Sequence[str]) -> set[str]:
        """Names, and those that these are computed from."""
        needed = set(names)
        for item in reversed(self._layout[0]):
            if item.name in needed:
                needed |= item.expr.columns()
        return needed

    def _columns_of(self, name: str) -> set[str]:
        return {n for n in self._needed([name]) if n not in self._items}

    def _risks(self, part: Sequence[str]) -> bool:
        """Whether a kernel for some results looks out for failures of all values behind the last filter."""
        first = not self._parts or part == self._parts[0]
        return first and any(item.risky for item in self._layout[0][self._tests :])

    @cached_property
    def _parts(self) -> list[tuple[str, ...]]:
        """Results that one kernel each computes; the first looks out for failures."""
        every = frozenset(self.source.names)
        waiting = [tuple(dict.fromkeys(self._outputs))]
        done: list[tuple[str, ...]] = []
        while waiting:
            part = waiting.pop(0)
            try:
                if len(part) > _RESULTS:
                    raise TooManyError("results")
                _program(self._key, "kept" if self._tests else "all", part, every, not done)
                done.append(part)
            except TooManyError:
                if len(part) < 2:
                    raise
                waiting = [part[: len(part) // 2], part[len(part) // 2 :], *waiting]
        return done

    @cached_property
    def _key(self) -> _Key:
        return _Key(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowChain, (self.source, self.links, self.schema)


def _renamed(expr: Expr, now: dict[str, str]) -> Expr:
    changed = {name: Column(now[name]) for name in expr.columns() if now[name] != name}
    return substitute(expr, changed) if changed else expr


def _with_risks(items: list[_Item], source: pa.Schema) -> list[_Item]:
    """Find out which items may raise, by lowering them: what is converted on the way may fail too."""
    emit = Emitter(source, frozenset(source.names))
    found = []
    for item in items:
        emit.fails = False
        term = output(emit, item.expr, item.type)
        if item.name:
            emit.bound[item.name] = term
        risky = emit.fails or may_raise(item.expr)
        found.append(_Item(item.name, item.expr, item.type, risky))
    return found


class _Key:
    """A chain that is equal to others of the same text."""

    def __init__(self, chain: RowChain):
        self.chain = chain
        items, outputs = chain._layout
        fields = tuple((field.name, str(field.type)) for field in chain.source)
        self._key = (
            fields,
            tuple((item.name, item.expr.token, str(item.type)) for item in items),
            tuple(outputs),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=256)
def _program(
    key: _Key, form: str, names: tuple[str, ...], nullable: frozenset[str], watched: bool = True
) -> Program:
    """Write a kernel.

    Args:
        key: the chain.
        form: "mask", "kept" or "all" rows.
        names: of the results.
        nullable: source columns that come with a validity.
        watched: whether it tells of failures of all values behind the last filter, not only of those it computes.
    """
    chain = key.chain
    items, tests = chain._layout[0], chain._tests
    emit = Emitter(chain.source, nullable)
    if form == "mask":
        needed = chain._needed(
            [name for item in items[:tests] if not item.name for name in item.expr.columns()]
        )
        kept = "true"
        for item in items[:tests]:
            emit.guard = kept
            if not item.name:
                term = output(emit, item.expr, item.type)
                kept = emit.every([kept, term.valid, term.value])
            elif item.name in needed or item.risky:
                emit.bound[item.name] = output(emit, item.expr, item.type)
        return mask_of(emit, kept)
    needed = chain._needed([*names, *(i.name for i in items[tests:] if i.risky and watched)])
    for place, item in enumerate(items):
        emit.guard = "true" if place >= tests else "false"
        if item.name in needed:
            emit.bound[item.name] = output(emit, item.expr, item.type)
    terms = tuple(emit.bound[name] if name in emit.bound else emit.passing(name) for name in names)
    return over_kept(emit, terms) if form == "kept" else over_rows(emit, terms)


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
        chain.check()
    except (Refused, HeadwaterError) as error:
        return str(error)
    return chain
