"""JsonSource: JSON lines, split by byte range, types inferred or declared, bad lines named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress

import pyarrow as pa
import pyarrow.json as pjson

from ..errors import BadRecordError, SchemaMismatchError, TypeMismatchError
from ..ops.schema import canonical_table
from .bad_lines import Salvage, check_policy
from .file_source import rows_only
from .files import Paths, find_files
from .line_source import LineSource, Sample, SchemaArgument, declared_types
from .lines import PARTITION_BYTES, SAMPLE_BYTES, LineRange, LineReader
from .sizes import check_positive

#: lines of the sample that tell the order of columns
_ORDERED_LINES = 100


class JsonSource(LineSource):
    """JSON lines. Made by `json_source`."""

    kind = "json"

    def __init__(
        self,
        reader: LineReader,
        schema: pa.Schema,
        complete: bool,
        sample: Sample,
        on_bad_line: str,
        partition_bytes: int,
    ):
        options = {"complete": complete, "on_bad_line": on_bad_line}
        super().__init__(reader, schema, options, partition_bytes, sample)
        self.complete = complete
        self.skip = on_bad_line == "skip"

    def read_tables(self, part: LineRange, columns: list[str]) -> Iterator[pa.Table]:
        # Which lines are skipped must not depend on the columns a plan wants, so all are converted.
        every = self.skip or columns == self.file_schema.names
        schema = self.file_schema if every else pa.schema([self.file_schema.field(name) for name in columns])
        unexpected = "error" if every and not self.complete else "ignore"

        def parse(offset: int, block: bytes) -> pa.Table:
            return parse_json(block, schema, unexpected)

        salvage = Salvage(self.reader, part, parse, self.skip, _explain)
        for table in salvage.tables():
            yield table.select(columns) if columns else rows_only(table.num_rows)


def json_source(
    path: Paths,
    *,
    schema: SchemaArgument = None,
    on_bad_line: str = "error",
    encoding: str = "utf-8",
    sample_bytes: int = SAMPLE_BYTES,
    partition_bytes: int = PARTITION_BYTES,
    storage_options: Mapping[str, str] | None = None,
    hive: bool = True,
) -> JsonSource:
    """Make a source of JSON lines: one object a line; reads the start of the first file for types.

    Args:
        path: a file, a folder, a glob or a list of them; local, or any fsspec URL. Files whose name
            says so (.gz, .bz2, .xz, .zst, .lz4, .br) are decompressed, and not cut.
        schema: types by column. A mapping adds to what is inferred, or overrides it. A `pa.Schema` is
            all there is: nothing is inferred, and other fields are left out. Decimals are read from strings.
        on_bad_line: "error", or "skip" to leave out lines that aren't an object, don't fit the types,
            or have a field that the schema lacks.
        encoding: of the text. Only UTF-8 files are cut.
        sample_bytes: how much of the first file types are inferred from.
        partition_bytes: a file is cut into ranges of at most this many bytes, at line ends. Small files
            are read together, up to a quarter of it.
        storage_options: for the fsspec file system.
        hive: whether ``key=value`` folders are columns.

    Returns:
        The source. A field that a line lacks is null.

    Raises:
        SourceNotFoundError: nothing is there.
        SchemaMismatchError: no line to infer columns from.
        BadRecordError: the start of the first file isn't JSON lines.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "rides.jsonl")
        >>> _ = path.write_text('{"id": 1, "stops": ["a", "b"]}\\n{"id": 2}\\n')
        >>> source = json_source(path)
        >>> [t.to_pydict() for s in source.splits() for t in source.read(s, ["id", "stops"])]
        [{'id': [1, 2], 'stops': [['a', 'b'], None]}]
    """
    check_policy("json_source", on_bad_line)
    check_positive("json_source", sample_bytes=sample_bytes, partition_bytes=partition_bytes)
    complete = isinstance(schema, pa.Schema)
    types = declared_types("json_source", schema)
    _check_types(types)
    files = find_files(path, storage_options, hive)
    reader = LineReader(files, encoding)
    if complete:
        sample, found = Sample(pa.table({}), 1), pa.schema(list(types.items()))
    else:
        sample, found = _sample(reader, types, sample_bytes, on_bad_line == "skip")
    return JsonSource(reader, found, complete, sample, on_bad_line, partition_bytes)


def parse_json(block: bytes, schema: pa.Schema, unexpected: str) -> pa.Table:
    """Parse whole lines; columns in the order of the schema, others after them."""
    written = pa.schema([pa.field(field.name, _written(field.type)) for field in schema])
    table = pjson.read_json(
        pa.py_buffer(block),
        read_options=pjson.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=pjson.ParseOptions(explicit_schema=written, unexpected_field_behavior=unexpected),
    )
    return (
        table if written == schema else table.cast(pa.schema([*schema, *list(table.schema)[len(schema) :]]))
    )


def _written(type: pa.DataType) -> pa.DataType:
    """What a type is parsed as and then cast from: Arrow reads no dates and times of day from JSON."""
    if pa.types.is_date(type) or pa.types.is_time(type):
        return pa.string()
    if pa.types.is_list(type):
        return pa.list_(_written(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([pa.field(field.name, _written(field.type)) for field in type])
    return type


def _sample(
    reader: LineReader, types: Mapping[str, pa.DataType], sample_bytes: int, skip: bool
) -> tuple[Sample, pa.Schema]:
    """Parse the start of the first file with lines; return it and the schema."""
    declared = pa.schema(list(types.items()))
    for file in reader.files.files:
        offset, lines = reader.head(file, size=sample_bytes)
        if not lines.strip():
            continue
        part = LineRange(file, offset, offset + len(lines))
        salvage = Salvage(reader, part, lambda _, block: parse_json(block, declared, "infer"), skip, _explain)
        tables = [table for table in salvage.tables() if table.num_rows]
        if tables:
            try:
                table = pa.concat_tables(tables, promote_options="permissive")
            except pa.ArrowException as error:
                raise BadRecordError(
                    f"{file.path}: lines differ in type: {error}. Pass schema={{column: type}}, and "
                    "on_bad_line='skip' to leave out lines that don't fit it."
                ) from error
            inferred = {name: _settled(table.schema.field(name).type) for name in _in_order(lines, table)}
            found = pa.schema(list({**inferred, **types}.items()))
            return Sample(_cast(table, found), len(lines)), found
    if not types:
        raise SchemaMismatchError(
            f"{reader.files.files[0].path} has no lines to infer columns from. Pass schema=."
        )
    return Sample(pa.table({}), 1), declared


def _in_order(lines: bytes, table: pa.Table) -> list[str]:
    """Columns as the first lines have them; Arrow puts the declared ones first."""
    seen: dict[str, None] = {}
    for line in lines.splitlines()[:_ORDERED_LINES]:
        with suppress(ValueError):
            row = json.loads(line)
            seen.update(dict.fromkeys(row) if isinstance(row, dict) else {})
    return [name for name in {**seen, **dict.fromkeys(table.column_names)} if name in table.column_names]


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    try:
        return canonical_table(table.select(schema.names), schema)
    except pa.ArrowException:  # only sizes are measured on it
        return table


def _settled(type: pa.DataType) -> pa.DataType:
    """The type a field gets by what its sample seems to be: null is string, times are microseconds."""
    if pa.types.is_null(type):
        return pa.string()
    if pa.types.is_timestamp(type):
        return pa.timestamp("us", type.tz)
    if pa.types.is_list(type):
        return pa.list_(_settled(type.value_type))
    if pa.types.is_struct(type):
        return pa.struct([pa.field(field.name, _settled(field.type)) for field in type])
    return type


def _check_types(types: Mapping[str, pa.DataType]) -> None:
    for name, type in types.items():
        try:
            parse_json(b"{}\n", pa.schema([(name, type)]), "ignore")
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            raise TypeMismatchError(
                f"json_source(schema=): column {name!r} can't be read as {type} from JSON. "
                "Read it as string, and cast it or parse it afterwards."
            ) from None


def _explain(error: pa.ArrowInvalid, line: bytes) -> str:
    problem = str(error).removeprefix("JSON parse error: ").removesuffix(" in row 0")
    if "unexpected field" in problem:
        problem = "a field that the start of the first file doesn't have"
    return (
        f"{problem}. If the types inferred from the start of the first file are wrong or incomplete, pass "
        "schema={column: type}; on_bad_line='skip' leaves out such lines."
    )
