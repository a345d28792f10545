"""CsvSource: delimited text, split by byte range, types inferred or declared, bad lines named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv

from ..errors import BadRecordError, SchemaMismatchError, TypeMismatchError
from ..ops.expressions.types import type_name
from ..ops.schema import canonical_table
from .bad_lines import Salvage, check_policy
from .csv_dialect import NULL_VALUES, Dialect, check_dialect, cuts_values, parse_csv, read_header
from .file_source import rows_only
from .files import DataFile, Paths, find_files
from .line_source import LineSource, Sample, SchemaArgument, declared_types
from .lines import PARTITION_BYTES, SAMPLE_BYTES, LineRange, LineReader
from .sizes import check_positive

_LINE_END = "a line end in quotes"
_CONVERSION = re.compile(
    r"CSV column #(\d+):.*?CSV conversion error to (.+?): (?:invalid value '(.*)'|(.*))", re.S
)


class CsvSource(LineSource):
    """CSV files. Made by `csv_source`."""

    kind = "csv"

    def __init__(
        self,
        reader: LineReader,
        dialect: Dialect,
        starts: Sequence[tuple[int, tuple[str, ...]]],
        types: Mapping[str, pa.DataType],
        sample: Sample,
        on_bad_line: str,
        partition_bytes: int,
    ):
        names = next(names for _, names in starts if names)
        options = {**dialect.__dict__, "on_bad_line": on_bad_line}
        super().__init__(reader, pa.schema([(n, types[n]) for n in names]), options, partition_bytes, sample)
        self.dialect = dialect
        self.names = names
        self.skip = on_bad_line == "skip"
        self._starts: Sequence[tuple[int, tuple[str, ...]]] | None = starts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_starts": None}

    def file_start(self, index: int, file: DataFile) -> tuple[int, tuple[str, ...] | None]:
        if self._starts is None:
            self._starts = self.files.map(
                lambda f: read_header(self.reader, f, self.dialect), self.files.files
            )
        start, names = self._starts[index]
        return start, None if names == self.names else names

    def read_tables(self, part: LineRange, columns: list[str]) -> Iterator[pa.Table]:
        names = part.names or self.names
        # Which lines are skipped must not depend on the columns a plan wants, so all are converted.
        include = self.file_schema.names if self.skip or not columns else columns
        types = {name: self.file_schema.field(name).type for name in include}
        if not columns and not self.skip:
            include, types = [names[0]], {names[0]: pa.binary()}

        def parse(offset: int, block: bytes) -> pa.Table:
            invalid: list[pcsv.InvalidRow] = []
            table = parse_csv(block, self.dialect, names, types, include, invalid)
            if cuts_values(block, table.num_rows + len(invalid), self.dialect, names):
                raise pa.ArrowInvalid(_LINE_END)
            after = 0
            for row in invalid:
                text = row.text.encode()
                after = max(after, block.find(text, after))
                salvage.bad_line(offset + after, text, _wrong_width(row, self.dialect))
            return table

        def explain(error: pa.ArrowInvalid, line: bytes) -> str:
            return _explain(error, names, self.file_schema)

        salvage = Salvage(self.reader, part, parse, self.skip, explain)
        for table in salvage.tables():
            yield table.select(columns) if columns else rows_only(table.num_rows)


def csv_source(
    path: Paths,
    *,
    delimiter: str = ",",
    quote: str | None = '"',
    header: bool | Sequence[str] = True,
    schema: SchemaArgument = None,
    null_values: Sequence[str] | str = NULL_VALUES,
    quoted_nulls: bool = False,
    on_bad_line: str = "error",
    newlines_in_values: bool | None = None,
    skip_rows: int = 0,
    encoding: str = "utf-8",
    sample_bytes: int = SAMPLE_BYTES,
    partition_bytes: int = PARTITION_BYTES,
    storage_options: Mapping[str, Any] | None = None,
    hive: bool = True,
) -> CsvSource:
    """Make a source of CSV files; reads their headers, and the start of the first for types.

    Args:
        path: a file, a folder, a glob or a list of them; local, or any fsspec URL. Files whose name
            says so (.gz, .bz2, .xz, .zst, .lz4, .br) are decompressed, and not cut.
        delimiter: one character.
        quote: one character that encloses values; doubled inside one, it stands for itself. None: none.
        header: True if the first line names the columns; False for ``column_0``, ``column_1`` … (or the
            columns of a `pa.Schema`); or the names, where no line has them.
        schema: types by column, for all or some: a mapping as ``{"fare": "float64"}``, or a `pa.Schema`.
        null_values: texts that mean null; what is given replaces the default. In quotes they are text.
        quoted_nulls: whether they mean null in quotes too.
        on_bad_line: "error", or "skip" to leave out lines with the wrong number of values, or with one
            that doesn't fit its column's type.
        newlines_in_values: whether values in quotes may hold line ends. Then files aren't cut. None looks at
            the start of the first file; such a value found later is a bad line.
        skip_rows: lines before the header, or before the data, to leave out.
        encoding: of the text. Only UTF-8 files are cut.
        sample_bytes: how much of the first file types are inferred from: int64, float64, bool, date32,
            timestamp[us], time32[s], else string.
        partition_bytes: a file is cut into ranges of at most this many bytes, at line ends. Small files
            are read together, up to a quarter of it.
        storage_options: for the fsspec file system.
        hive: whether ``key=value`` folders are columns.

    Returns:
        The source.

    Raises:
        SourceNotFoundError: nothing is there.
        SchemaMismatchError: two files have different columns, or no file has any.
        ColumnNotFoundError: ``schema`` names a column that isn't there.
        ParameterError: an option is out of range.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "rides.csv")
        >>> _ = path.write_text("id,fare\\n1,9.5\\n2,NA\\n")
        >>> source = csv_source(path, schema={"id": "int32"})
        >>> [t.to_pydict() for s in source.splits() for t in source.read(s, ["fare", "id"])]
        [{'fare': [9.5, None], 'id': [1, 2]}]
    """
    check_policy("csv_source", on_bad_line)
    check_positive("csv_source", sample_bytes=sample_bytes, partition_bytes=partition_bytes)
    nulls = (null_values,) if isinstance(null_values, str) else tuple(null_values)
    named = header if isinstance(header, bool) else tuple(header)
    if named is False and isinstance(schema, pa.Schema):
        named = tuple(schema.names)
    dialect = Dialect(delimiter, quote, named, skip_rows, nulls, quoted_nulls, bool(newlines_in_values))
    check_dialect(dialect)
    files = find_files(path, storage_options, hive)
    reader = LineReader(files, encoding, quote if newlines_in_values else None)
    starts = files.map(lambda file: read_header(reader, file, dialect), files.files)
    names = _same_names(files.files, starts)
    types = declared_types("csv_source", schema, names)
    sample, inferred, cut = _sample(reader, dialect, starts, types, sample_bytes)
    if cut and newlines_in_values is None:
        dialect, reader = replace(dialect, newlines_in_values=True), replace(reader, quote=quote)
        sample, inferred, _ = _sample(reader, dialect, starts, types, sample_bytes)
    return CsvSource(reader, dialect, starts, inferred, sample, on_bad_line, partition_bytes)


def _same_names(files: Sequence[DataFile], starts: Sequence[tuple[int, tuple[str, ...]]]) -> tuple[str, ...]:
    filled = [(file, names) for file, (_, names) in zip(files, starts) if names]
    if not filled:
        raise SchemaMismatchError(
            f"{files[0].path} is empty, and so has no columns. Pass files with a header."
        )
    first, expected = filled[0]
    for file, names in filled[1:]:
        if set(names) != set(expected) or len(names) != len(expected):
            raise SchemaMismatchError(
                f"{file.path} has the columns {', '.join(names)}, but {first.path} has "
                f"{', '.join(expected)}. They need the same columns; read them apart, and union."
            )
    return expected


def _sample(
    reader: LineReader,
    dialect: Dialect,
    starts: Sequence[tuple[int, tuple[str, ...]]],
    types: Mapping[str, pa.DataType],
    sample_bytes: int,
) -> tuple[Sample, dict[str, pa.DataType], bool]:
    """Parse the start of the first file with rows.

    Returns:
        The sample, the type of each column, and whether values hold line ends though they shouldn't.
    """
    cut = False
    names = next(names for _, names in starts if names)
    table, size = pa.table({name: pa.nulls(0) for name in names}), 1
    for file, (start, own) in zip(reader.files.files, starts):
        _, lines = reader.head(file, start, sample_bytes) if own else (0, b"")
        if not lines.strip():
            continue
        try:
            # Declared columns are read as text here: reading reports what doesn't fit, with its line.
            as_text = dict.fromkeys(types, pa.string())
            invalid: list[pcsv.InvalidRow] = []
            table = parse_csv(lines, dialect, own, as_text, own, invalid).select(names)
            cut = cuts_values(lines, table.num_rows + len(invalid), dialect, own)
        except pa.ArrowInvalid as error:
            raise BadRecordError(
                f"{file.path}: {error}. Check delimiter={dialect.delimiter!r} and quote=."
            ) from error
        if table.num_rows:
            size = len(lines)
            break
    _check_encoding(reader, table)
    found = {name: types.get(name) or _settled(table.column(name)) for name in names}
    _check_types(dialect, found)
    known = pa.schema(
        [(name, found[name] if name not in types else table.schema.field(name).type) for name in names]
    )
    return Sample(canonical_table(table, known), size), found, cut


def _settled(column: pa.ChunkedArray) -> pa.DataType:
    """The type a column gets by what its sample seems to be."""
    if pa.types.is_null(column.type):
        return pa.string()
    if pa.types.is_timestamp(column.type):
        # Microseconds, so that later values may have fractions; nanoseconds if the sample has such.
        try:
            column.cast(pa.timestamp("us", column.type.tz))
        except pa.ArrowInvalid:
            return column.type
        return pa.timestamp("us", column.type.tz)
    return column.type


def _check_encoding(reader: LineReader, table: pa.Table) -> None:
    for field in table.schema:
        if pa.types.is_binary(field.type):
            raise BadRecordError(
                f"{reader.files.files[0].path}: column {field.name!r} holds bytes that aren't UTF-8. "
                "Pass encoding=, as 'latin-1' or 'cp1252'."
            )


def _check_types(dialect: Dialect, types: Mapping[str, pa.DataType]) -> None:
    for name, type in types.items():
        try:
            parse_csv(
                b'""\n', replace(dialect, quoted_nulls=True, quote='"'), [name], {name: type}, [name], []
            )
        except pa.ArrowNotImplementedError:
            raise TypeMismatchError(
                f"csv_source(schema=): column {name!r} can't be read as {type} from text. "
                "Read it as string, and cast it or parse it afterwards."
            ) from None
        except pa.ArrowInvalid:
            pass


def _wrong_width(row: pcsv.InvalidRow, dialect: Dialect) -> str:
    hint = (
        ""
        if dialect.newlines_in_values
        else "If values in quotes hold line ends, pass newlines_in_values=True; "
    )
    return (
        f"{row.actual_columns} value{'s' * (row.actual_columns != 1)}, but {row.expected_columns} columns. "
        f"{hint}to leave out such lines, pass on_bad_line='skip'."
    )


def _explain(error: pa.ArrowInvalid, names: Sequence[str], schema: pa.Schema) -> str:
    if str(error) == _LINE_END:
        return (
            "a value in quotes holds a line end, or its quote isn't closed. If such values are meant, pass "
            "newlines_in_values=True; to leave out such lines, pass on_bad_line='skip'."
        )
    match = _CONVERSION.search(str(error))
    if match is None:
        return f"{error}. To leave out such lines, pass on_bad_line='skip'."
    name, value = names[int(match[1])], match[3]
    if value is None:
        return (
            f"column {name!r}: {match[4]}. Pass encoding=, as 'latin-1' or 'cp1252', if the file isn't UTF-8."
        )
    hint = f"pass null_values=[…, {value!r}] if it means null, "
    if value == "":
        hint = "pass quoted_nulls=True if an empty value in quotes means null, "
    return (
        f"column {name!r} is {type_name(schema.field(name).type)}, but here is {value!r}. If the type "
        f"inferred from the first file's start is wrong, pass schema={{{name!r}: 'string'}}; {hint}"
        "or on_bad_line='skip' to leave out such lines."
    )
