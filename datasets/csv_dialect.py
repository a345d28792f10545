"""Dialect: how a CSV file is written; its header found and its lines parsed accordingly."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv

from ..errors import BadRecordError, ParameterError, SchemaMismatchError
from .files import DataFile
from .lines import LineReader

#: unquoted texts that mean null; NaN isn't among them, as Headwater tells NaN from null
NULL_VALUES = ("", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NULL", "null", "None")

_HEAD_BYTES = 64 << 10


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written. See `csv_source`."""

    delimiter: str = ","
    quote: str | None = '"'
    header: bool | tuple[str, ...] = True
    skip_rows: int = 0
    null_values: tuple[str, ...] = NULL_VALUES
    quoted_nulls: bool = False
    newlines_in_values: bool = False

    def parse_options(self, invalid_row_handler: Any = None) -> pcsv.ParseOptions:
        return pcsv.ParseOptions(
            delimiter=self.delimiter,
            quote_char=self.quote or False,
            newlines_in_values=self.newlines_in_values,
            invalid_row_handler=invalid_row_handler,
        )

    def convert_options(
        self, types: Mapping[str, pa.DataType], include: Sequence[str]
    ) -> pcsv.ConvertOptions:
        return pcsv.ConvertOptions(
            column_types=dict(types),
            include_columns=list(include),
            null_values=list(self.null_values),
            strings_can_be_null=True,
            quoted_strings_can_be_null=self.quoted_nulls,
        )


def read_header(reader: LineReader, file: DataFile, dialect: Dialect) -> tuple[int, tuple[str, ...]]:
    """Return where a file's rows start and its column names; no names if it is empty."""
    size = _HEAD_BYTES
    while True:
        offset, head = reader.head(file, size=size)
        try:
            found = _split_header(head, dialect)
        except UnicodeDecodeError as error:
            raise BadRecordError(
                f"{file.path}: the header isn't UTF-8 ({error.reason}). Pass encoding=, as 'latin-1' or "
                "'utf-16', or leave the file out if it isn't CSV."
            ) from error
        except csv.Error as error:
            raise BadRecordError(f"{file.path}: the header can't be read: {_reason(error)}.") from error
        if found is not None or len(head) < size // 2:
            break
        size *= 4
    if found is None:
        return offset + len(head), ()
    length, values = found
    if isinstance(dialect.header, tuple):
        names = dialect.header
    elif dialect.header:
        names = tuple(value or f"column_{i}" for i, value in enumerate(values))
    else:
        names = tuple(f"column_{i}" for i in range(len(values)))
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise SchemaMismatchError(
            f"{file.path}: the header has {', '.join(map(repr, twice))} more than once. "
            "Pass header=[…] with distinct names and skip_rows=1."
        )
    return offset + length, names


def parse_csv(
    block: bytes,
    dialect: Dialect,
    names: Sequence[str],
    types: Mapping[str, pa.DataType],
    include: Sequence[str],
    invalid: list[pcsv.InvalidRow],
) -> pa.Table:
    """Parse whole lines without a header; rows of the wrong width are left out and put into ``invalid``."""

    def remember(row: pcsv.InvalidRow) -> str:
        invalid.append(row)
        return "skip"

    read = pcsv.ReadOptions(column_names=list(names), use_threads=False, block_size=len(block) + 1)
    convert = dialect.convert_options(types, include)
    return pcsv.read_csv(
        pa.py_buffer(block),
        read_options=read,
        parse_options=dialect.parse_options(remember),
        convert_options=convert,
    )


def cuts_values(block: bytes, rows: int, dialect: Dialect, names: Sequence[str]) -> bool:
    """Whether values in quotes hold line ends, though files are read as if none did.

    Args:
        block: whole lines.
        rows: how many rows they were parsed into, those of the wrong width too.
        dialect: how the file is written.
        names: of its columns.
    """
    if dialect.newlines_in_values or dialect.quote is None:
        return False
    if rows < block.count(b"\n") and rows < sum(1 for line in block.split(b"\n") if line.strip(b"\r")):
        return True
    last = block[block.rstrip(b"\r\n").rfind(b"\n") + 1 :].rstrip(b"\r\n") + b"\n"
    if last.count(dialect.quote.encode()) % 2 == 0:
        return False
    # A quote that isn't closed swallows the next line; one inside a value doesn't.
    invalid: list[pcsv.InvalidRow] = []
    first = names[0]
    table = parse_csv(last + last, dialect, names, {first: pa.binary()}, [first], invalid)
    return table.num_rows + len(invalid) < 2


def _split_header(head: bytes, dialect: Dialect) -> tuple[int, list[str]] | None:
    """Return the bytes before the first row and the first line's values; None if there is no line."""
    start = 0
    for _ in range(dialect.skip_rows):
        start = head.find(b"\n", start) + 1
        if not start:
            return None
    text = _lines(head[start:])
    quoting = csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE
    quote = dialect.quote or '"'
    rows = csv.reader(text, delimiter=dialect.delimiter, quotechar=quote, quoting=quoting)  # type: ignore[arg-type]
    values = next((row for row in rows if row), None)
    if values is None:
        return None
    if dialect.header is not True:
        return start, values
    for _ in range(rows.line_num):
        start = head.find(b"\n", start) + 1 or len(head)
    return start, values


def _lines(text: bytes) -> Iterator[str]:
    """Lines with their ends, decoded only when they are asked for."""
    return (line.decode() for line in io.BytesIO(text))


def _reason(error: csv.Error) -> str:
    if "new-line character" in str(error):
        return "lines end with \\r alone, as on old Macs; write the file again with \\n or \\r\\n"
    return str(error)


def check_dialect(dialect: Dialect) -> None:
    """Raise ParameterError for options that are out of range."""
    for name, value in (("delimiter", dialect.delimiter), ("quote", dialect.quote)):
        if value is not None and (not isinstance(value, str) or len(value) != 1 or not value.isascii()):
            raise ParameterError(f"csv_source: {name} must be one ASCII character, not {value!r}.")
    if not isinstance(dialect.skip_rows, int) or dialect.skip_rows < 0:
        raise ParameterError(f"csv_source: skip_rows must be 0 or more, not {dialect.skip_rows!r}.")
    if dialect.newlines_in_values and dialect.quote is None:
        raise ParameterError("csv_source: newlines_in_values needs a quote character. Write quote='\"'.")
