"""Words: what the codes of strings stand for, and tables of values by code, which the host makes of dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...backend import Array, to_host
from ...expressions.analysis import may_raise
from ...expressions.expr import Expr, evaluate_column
from ..column import DeviceColumn, to_device
from ..table import DeviceTable


class Words:
    """A dictionary that is known once rows are there."""


@dataclass(frozen=True)
class ColumnWords(Words):
    """A column's own."""

    column: str


@dataclass(frozen=True)
class ConstantWords(Words):
    """Values that are known beforehand."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class JointWords(Words):
    """The distinct values of several; ascending, if their codes are to compare as they do."""

    sources: tuple[Words, ...]
    ascending: bool


@dataclass(frozen=True, eq=False)
class Lookup(Words):
    """A value for each code of a dictionary, the first for null; for strings, codes into what they became.

    Attributes:
        source: the dictionary.
        column: the name that its words have in the expression.
        expr: of that column alone.
        type: of the value.
    """

    source: Words
    column: str
    expr: Expr
    type: pa.DataType

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lookup) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Words, str]:
        return self.source, self.expr.token

    @property
    def may_raise(self) -> bool:
        """Whether some word may make it raise, which then must be one that a row has."""
        return may_raise(self.expr)


@dataclass(frozen=True)
class Ranks:
    """For each code of a dictionary its code in a joint one."""

    joint: JointWords
    source: Words


@dataclass(frozen=True, eq=False)
class Constants:
    """Values that are known beforehand."""

    members: pa.Array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constants) and self.members.equals(other.members)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((str(self.members.type), tuple(self.members.to_pylist())))


class Tables:
    """Makes the tables that a kernel reads, and keeps them while the dictionaries stay the same.

    Args:
        xp: the namespace they lie in.
    """

    def __init__(self, xp: ModuleType):
        self._xp = xp
        self._table: DeviceTable | None = None
        self._kept: dict[Any, tuple[tuple[pa.Array, ...], Any]] = {}

    def bind(self, table: DeviceTable) -> Tables:
        """Say which rows the tables are for."""
        self._table = table
        return self

    def array(self, recipe: Any, part: str) -> Array:
        """Return a table on the device."""
        return self._keep(
            (recipe, part), _columns(recipe), lambda: self._xp.asarray(self._host(recipe, part))
        )

    def words(self, source: Words) -> pa.Array:
        """Return a dictionary."""
        if isinstance(source, ColumnWords):
            return self._dictionary(source.column)
        if isinstance(source, ConstantWords):
            return pa.array(source.values, pa.string())
        return self._keep(source, _columns(source), lambda: self._made(source))

    def _made(self, source: Words) -> pa.Array:
        if isinstance(source, Lookup):
            return self._looked_up(source).dictionary
        assert isinstance(source, JointWords)
        every = pa.chunked_array([self.words(part) for part in source.sources], pa.string()).unique()
        return every.take(pc.sort_indices(every)) if source.ascending else every

    def _host(self, recipe: Any, part: str) -> np.ndarray:
        if isinstance(recipe, Constants):
            return to_device(recipe.members, np).values
        if isinstance(recipe, Ranks):
            places = pc.index_in(self.words(recipe.source), self.words(recipe.joint))
            ranks = places.to_numpy(zero_copy_only=False).astype(np.int32)
            return ranks if len(ranks) else np.zeros(1, np.int32)
        column = self._looked_up(recipe)
        if part == "values":
            return column.values
        return np.ones(len(column), bool) if column.valid is None else column.valid

    def _looked_up(self, lookup: Lookup) -> DeviceColumn:
        return self._keep((lookup, "column"), _columns(lookup), lambda: self._evaluated(lookup))

    def _evaluated(self, lookup: Lookup) -> DeviceColumn:
        """Every word's value; words that no row has must not raise, so they count as null if one may."""
        words = self.words(lookup.source)
        if not lookup.may_raise:
            return _values(lookup, pa.concat_arrays([pa.nulls(1, words.type), words]))
        assert self._table is not None
        column = self._table.column(lookup.column)
        codes = column.values if column.valid is None else column.values[column.valid]
        used = np.unique(to_host(codes))
        has_null = len(codes) < len(column)
        kept = np.concatenate([np.zeros(int(has_null), np.int64), used + 1]).astype(np.int64)
        chosen = pa.concat_arrays([pa.nulls(int(has_null), words.type), words.take(pa.array(used))])
        part = _values(lookup, chosen)
        values = np.zeros(len(words) + 1, part.values.dtype)
        valid = np.zeros(len(words) + 1, bool)
        values[kept] = part.values
        valid[kept] = True if part.valid is None else part.valid
        return DeviceColumn(part.type, values, valid, part.dictionary)

    def _dictionary(self, name: str) -> pa.Array:
        assert self._table is not None
        dictionary = self._table.column(name).dictionary
        assert dictionary is not None
        return dictionary

    def _keep(self, key: Any, columns: tuple[str, ...], make: Any) -> Any:
        dictionaries = tuple(self._dictionary(name) for name in columns)
        kept = self._kept.get(key)
        if kept and len(kept[0]) == len(dictionaries) and all(a is b for a, b in zip(kept[0], dictionaries)):
            return kept[1]
        made = make()
        if _lasting(key):
            self._kept[key] = (dictionaries, made)
        return made


def _values(lookup: Lookup, words: pa.Array) -> DeviceColumn:
    return to_device(evaluate_column(lookup.expr, pa.table({lookup.column: words}), lookup.type), np)


def _lasting(key: Any) -> bool:
    """Whether something is the same for all rows with the same dictionaries."""
    parts = key if isinstance(key, tuple) else (key,)
    return not any(lookup.may_raise for part in parts for lookup in _lookups(part))


def _lookups(source: Any) -> list[Lookup]:
    if isinstance(source, Lookup):
        return [source, *_lookups(source.source)]
    if isinstance(source, JointWords):
        return [lookup for part in source.sources for lookup in _lookups(part)]
    if isinstance(source, Ranks):
        return [*_lookups(source.joint), *_lookups(source.source)]
    return []


def _columns(source: Any) -> tuple[str, ...]:
    """The columns whose dictionaries something is made of."""
    if isinstance(source, ColumnWords):
        return (source.column,)
    if isinstance(source, Lookup):
        return _columns(source.source)
    if isinstance(source, JointWords):
        return tuple(dict.fromkeys(name for part in source.sources for name in _columns(part)))
    if isinstance(source, Ranks):
        return tuple(dict.fromkeys([*_columns(source.joint), *_columns(source.source)]))
    return ()
