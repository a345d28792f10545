"""FileSource: what sources of files share: the list of files, hive columns, identity, one schema for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ..errors import SchemaMismatchError
from ..ops.expressions.expr import Expr
from ..ops.expressions.statistics import ColumnStatistics, can_match
from ..ops.schema import canonical_table
from ..ops.source import Source, Split
from .files import DataFile, FileSet


class FileSource(Source):
    """A source whose splits are parts of files.

    Subclasses give `splits`, whose details have the attribute ``file``, and `read_file`.

    Args:
        files: the files.
        file_schema: canonical schema of the columns in the files; those that are hive columns too are
            left out, for the folder's value counts.
        options: what else decides the content, for `identity`.
    """

    def __init__(self, files: FileSet, file_schema: pa.Schema, options: Mapping[str, Any]):
        self.files = files
        self.options = dict(options)
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

    def read(
        self, split: Split, columns: Sequence[str], predicate: Expr | None = None, limit: int | None = None
    ) -> Iterator[pa.Table]:
        file: DataFile = split.detail.file
        constants = dict(zip(self.hive_schema.names, file.values))
        stored = [name for name in columns if name not in constants]
        target = pa.schema([self.file_schema.field(name) for name in stored])
        left = limit
        for table in self.read_file(split, stored, predicate, limit):
            table = canonical_table(table, target)
            if left is not None:
                table = table.slice(0, min(left, table.num_rows))  # without columns, slice doesn't clip
                left -= table.num_rows
            yield self._with_constants(table, columns, constants) if constants else table
            if left == 0:
                return

    def prune(self, splits: Sequence[Split], predicate: Expr) -> Sequence[Split]:
        if not self.hive_schema:
            return splits
        return [split for split in splits if can_match(predicate, self.hive_statistics(split.detail.file))]

    def hive_statistics(self, file: DataFile) -> dict[str, ColumnStatistics]:
        """What is known of the hive columns in a file: the one value each has."""
        return {
            field.name: ColumnStatistics(value, value, int(value is None), 1, field.type)
            for field, value in zip(self.hive_schema, file.values)
        }

    def read_file(
        self, split: Split, columns: list[str], predicate: Expr | None, limit: int | None
    ) -> Iterator[pa.Table]:
        """Read columns of ``file_schema`` of a split; types still as the file has them."""
        raise NotImplementedError

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
