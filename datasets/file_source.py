"""FileSource: what sources of files share: the list of files, hive columns, identity, one schema for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import SchemaMismatchError
from ..ops.expressions.expr import Expr
from ..ops.expressions.statistics import ColumnStatistics, which_match
from ..ops.schema import canonical_table
from ..ops.source import Source, Split
from .files import DataFile, FileSet
from .sizes import pack

#: small parts of consecutive files are read as one partition, up to this share of ``partition_bytes``;
#: so files of some MB still make a partition each, to be read side by side
_SMALL = 1 / 4
#: what opening a file costs, in bytes that are read meanwhile
_OPEN_BYTES = 256 << 10


@dataclass(frozen=True)
class Part:
    """What a split reads of one file.

    Attributes:
        file: the file.
        where: what of it; only the source that made it reads it.
        rows: exact number of rows, or None where the format doesn't tell.
        bytes: size in memory, in bytes, of all columns: exact or estimated.
        weight: bytes that count when parts are packed into partitions.
    """

    file: DataFile
    where: Any
    rows: int | None
    bytes: int
    weight: int


class FileSource(Source):
    """A source whose splits are parts of files.

    Subclasses give `parts`, `read_part`, and `may_match` where the format has statistics.

    Args:
        files: the files.
        file_schema: canonical schema of the columns in the files; those that are hive columns too are
            left out, for the folder's value counts.
        options: what else decides the content, for `identity`.
        partition_bytes: what a partition weighs at most.
    """

    def __init__(
        self, files: FileSet, file_schema: pa.Schema, options: Mapping[str, Any], partition_bytes: int
    ):
        self.files = files
        self.partition_bytes = partition_bytes
        self.options = {**options, "partition_bytes": partition_bytes}
        self.hive_schema = files.hive_schema
        hive = set(self.hive_schema.names)
        self.file_schema = pa.schema([field for field in file_schema if field.name not in hive])

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*self.file_schema, *self.hive_schema])

    def identity(self) -> Any:
        return (self.kind, self.files.digest, tuple(sorted(self.options.items())), self.schema)

    def describe(self) -> str:
        count = len(self.files.files)
        size = sum(file.size for file in self.files.files)
        return f"{self.kind} {self.files.describe()} ({count} file{'s' * (count != 1)}, {human_bytes(size)})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_all_splits"}

    def parts(self) -> Iterable[Part]:
        """The parts of all files, in the order of the rows, none heavier than a partition should be."""
        raise NotImplementedError

    @cached_property
    def _all_splits(self) -> tuple[Split, ...]:
        parts = list(self.parts())
        weights = [part.weight + _OPEN_BYTES for part in parts]
        groups = pack(weights, int(self.partition_bytes * _SMALL))
        return tuple(_split(index, parts[start:stop]) for index, (start, stop) in enumerate(groups))

    def splits(self) -> Sequence[Split]:
        return self._all_splits

    def read(
        self, split: Split, columns: Sequence[str], predicate: Expr | None = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        left = limit
        for part in split.detail:
            constants = dict(zip(self.hive_schema.names, part.file.values))
            stored = [name for name in columns if name not in constants]
            for table in self.read_part(part, stored, predicate, left):
                table = self.typed(table)
                if left is not None:
                    table = table.slice(0, min(left, table.num_rows))  # without columns, slice doesn't clip
                    left -= table.num_rows
                yield self._with_constants(table, columns, constants) if constants else table
                if left == 0:
                    return

    def prune(self, splits: Sequence[Split], predicate: Expr) -> Sequence[Split]:
        parts = [part for split in splits for part in split.detail]
        kept = iter(self.may_match(parts, predicate))
        pruned = []
        for split in splits:
            left = [part for part in split.detail if next(kept)]
            if left:
                pruned.append(split if len(left) == len(split.detail) else _split(split.index, left))
        return pruned

    def may_match(self, parts: Sequence[Part], predicate: Expr) -> Sequence[bool] | np.ndarray:
        """Return for each part whether some row in it may satisfy a predicate."""
        if not self.hive_schema:
            return [True] * len(parts)
        return which_match(predicate, self.hive_statistics([part.file for part in parts]), len(parts))

    def hive_statistics(self, files: Sequence[DataFile]) -> dict[str, list[ColumnStatistics]]:
        """What is known of the hive columns in each file: the one value each has."""
        return {
            field.name: [
                ColumnStatistics(file.values[i], file.values[i], int(file.values[i] is None), 1, field.type)
                for file in files
            ]
            for i, field in enumerate(self.hive_schema)
        }

    def read_part(
        self, part: Part, columns: list[str], predicate: Expr | None, limit: int | None
    ) -> Iterator[pa.Table]:
        """Read columns of ``file_schema`` of a part; types still as the file has them."""
        raise NotImplementedError

    def typed(self, table: pa.Table) -> pa.Table:
        """Bring columns of ``file_schema`` to the types of ``schema``."""
        return canonical_table(table, pa.schema([self.file_schema.field(n) for n in table.column_names]))

    def _with_constants(
        self, table: pa.Table, columns: Sequence[str], constants: Mapping[str, Any]
    ) -> pa.Table:
        arrays = []
        for name in columns:
            if name in constants:
                scalar = pa.scalar(constants[name], self.hive_schema.field(name).type)
                arrays.append(pa.repeat(scalar, table.num_rows))
            else:
                arrays.append(table.column(name))
        if not arrays:
            return table
        return pa.Table.from_arrays(arrays, schema=pa.schema([self.schema.field(name) for name in columns]))


def _split(index: int, parts: Sequence[Part]) -> Split:
    known = [part.rows for part in parts if part.rows is not None]
    rows = sum(known) if len(known) == len(parts) else None
    return Split(index, rows, sum(part.bytes for part in parts), detail=tuple(parts))


def rows_only(rows: int) -> pa.Table:
    """A table of no columns and that many rows.

    Example:
        >>> rows_only(5).shape
        (5, 0)
    """
    return pa.table({"": pa.nulls(rows)}).select([])


def check_same_schema(first: DataFile, expected: pa.Schema, file: DataFile, schema: pa.Schema) -> None:
    """Raise SchemaMismatchError, naming file, column and types, unless two files fit; order may differ."""
    if schema.equals(expected):
        return
    missing = [name for name in expected.names if name not in schema.names]
    extra = [name for name in schema.names if name not in expected.names]
    if missing or extra:
        parts = [f"lacks {_listed(missing)}"] * bool(missing) + [f"also has {_listed(extra)}"] * bool(extra)
        raise SchemaMismatchError(
            f"{file.path} {' and '.join(parts)}, compared with {first.path}. Files of one dataset need the "
            "same columns; read them apart, make the columns equal with select or with_columns, and union."
        )
    for field in expected:
        got = schema.field(field.name).type
        if got != field.type:
            raise SchemaMismatchError(
                f"{file.path}: column {field.name!r} is {got}, but {field.type} in {first.path}. Files of "
                "one dataset need the same types; read them apart, cast the column, and union."
            )


def human_bytes(size: float) -> str:
    """Write a number of bytes for people.

    Example:
        >>> human_bytes(3 << 20)
        '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _listed(names: Sequence[str]) -> str:
    return f"the column{'s' * (len(names) > 1)} " + ", ".join(repr(name) for name in names[:10])
