"""LineSource: what CSV, JSON lines and text share: byte-range splits, and sizes measured on a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from ..errors import ParameterError, column_not_found
from ..ops.expressions.types import parse_type
from ..ops.morsels import slices
from .file_source import FileSource, Part
from .files import DataFile
from .lines import LineRange, LineReader, is_compressed
from .sizes import check_positive, type_bytes

#: what a schema argument may be: all columns, or the types of some
SchemaArgument: TypeAlias = pa.Schema | Mapping[str, Any] | None

#: how many times larger text is than its compressed form; a guess
_COMPRESSION = 4


@dataclass(frozen=True)
class Sample:
    """The first lines of the first file that has any, parsed.

    ``text_bytes`` is how long they are, in bytes.
    """

    table: pa.Table
    text_bytes: int

    @property
    def expansion(self) -> float:
        """Bytes in memory for each byte of text."""
        return max(0.1, self.table.nbytes / self.text_bytes) if self.table.num_rows else 1.0

    def widths(self, schema: pa.Schema) -> dict[str, float]:
        """Bytes in memory of a value of each column."""
        rows = self.table.num_rows
        measured = (
            {name: self.table.column(name).nbytes / rows for name in self.table.column_names} if rows else {}
        )
        return {field.name: measured.get(field.name, type_bytes(field.type)) for field in schema}


class LineSource(FileSource):
    """A source of files of lines. Subclasses give `read_tables`, and `file_start` if data starts late.

    Args:
        reader: the files and how their lines end.
        file_schema: canonical schema of what is in them.
        options: what else decides the content.
        partition_bytes: bytes of text that a partition holds.
        sample: what sizes are estimated from.
    """

    def __init__(
        self,
        reader: LineReader,
        file_schema: pa.Schema,
        options: Mapping[str, Any],
        partition_bytes: int,
        sample: Sample,
    ):
        check_positive(f"{self.kind}_source", partition_bytes=partition_bytes)
        super().__init__(reader.files, file_schema, {**options, "encoding": reader.encoding}, partition_bytes)
        self.reader = reader
        self.expansion = sample.expansion
        self.widths = sample.widths(self.schema)

    def file_start(self, index: int, file: DataFile) -> tuple[int, tuple[str, ...] | None]:
        """Where a file's rows start, in bytes, and its own column names if they aren't the dataset's."""
        return 0, None

    def parts(self) -> Iterator[Part]:
        for index, file in enumerate(self.files.files):
            start, names = self.file_start(index, file)
            factor = self.expansion * (_COMPRESSION if is_compressed(file) else 1)
            for first, stop in self.reader.ranges(file, start, self.partition_bytes):
                size = max(0, min(stop, file.size) - (0 if is_compressed(file) else first))
                where = LineRange(file, first, stop, names)
                weight = size * (_COMPRESSION if is_compressed(file) else 1)
                yield Part(file, where, None, int(size * factor), weight)

    def read_part(
        self, part: Part, columns: list[str], predicate: Any, limit: int | None
    ) -> Iterator[pa.Table]:
        for table in self.read_tables(part.where, columns):
            yield from slices(table)

    def read_tables(self, part: LineRange, columns: list[str]) -> Iterator[pa.Table]:
        """Read columns of the lines of a range, a table a block."""
        raise NotImplementedError

    def column_bytes(self, columns: Sequence[str]) -> float:
        total = sum(self.widths.values())
        return min(1.0, sum(self.widths[name] for name in set(columns)) / total) if total else 1.0


def declared_types(
    where: str, schema: SchemaArgument, names: Sequence[str] | None = None
) -> dict[str, pa.DataType]:
    """Return the canonical types a user declared, by column.

    Args:
        where: the function that asks, for errors.
        schema: an Arrow schema, or a mapping of column to type (`pa.DataType`, or text as "int64").
        names: the columns there are, or None if any will do.

    Raises:
        ColumnNotFoundError: a column that isn't there.
        ParameterError: not a schema, or no such type.
    """
    if schema is None:
        return {}
    if isinstance(schema, pa.Schema):
        schema = {field.name: field.type for field in schema}
    if not isinstance(schema, Mapping):
        raise ParameterError(
            f"{where}: schema is a mapping of column to type, as {{'fare': 'float64'}}, or a pyarrow.Schema, "
            f"not {schema!r}."
        )
    for name in schema:
        if names is not None and name not in names:
            raise column_not_found(name, names, f"{where}(schema=)")
    return {name: parse_type(type) for name, type in schema.items()}
