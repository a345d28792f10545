"""The sinks of each file format: Parquet, CSV, JSON lines and Arrow IPC."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from ..errors import ParameterError
from ..ops.kernel import MORSEL_ROWS
from .csv_dialect import Dialect, check_dialect
from .csv_text import csv_header, csv_lines
from .file_sink import CODEC_SUFFIXES, FileSink, TableWriter
from .json_text import is_json_type, json_lines
from .parquet_writer import ParquetWriter
from .sizes import check_positive

_PARQUET_CODECS = ("zstd", "snappy", "gzip", "lz4", "brotli", None)


class ParquetSink(FileSink):
    """Parquet files: one a partition, or one in all if the path ends with ".parquet".

    Args:
        path: a file or a folder; local, or any fsspec URL.
        partition_by: columns that become ``key=value`` folders.
        compression: "zstd", "snappy", "gzip", "lz4", "brotli", or None.
        row_group_rows: rows of a row group.
        options: ``if_exists`` ("error" or "overwrite"), ``storage_options``, ``single_file``.

    Raises:
        ParameterError: an option is out of range.

    Example:
        >>> import tempfile
        >>> sink = ParquetSink(tempfile.mkdtemp() + "/out")
        >>> table = pa.table({"x": [1, 2, 3]})
        >>> sink.commit("run", sink.stage("run", 0, 0, iter([table]), table.schema))
        >>> pq.read_table(sink.destination.path).num_rows
        3
    """

    kind = "parquet"
    suffix = ".parquet"
    suffixes = (".parquet", ".pq")

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        compression: str | None = "zstd",
        row_group_rows: int = 2 * MORSEL_ROWS,
        **options: Any,
    ):
        super().__init__(path, **options)
        if compression not in _PARQUET_CODECS:
            raise ParameterError(
                f"write_parquet: compression is one of {_PARQUET_CODECS}, not {compression!r}."
            )
        check_positive("write_parquet", row_group_rows=row_group_rows)
        self.compression = compression
        self.chunk_rows = row_group_rows

    def options(self) -> tuple[Any, ...]:
        return (self.compression, self.chunk_rows)

    def check_type(self, type: pa.DataType) -> bool:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([("x", type)])).close()
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            return False
        return True

    def open_writer(self, file: BinaryIO, schema: pa.Schema) -> TableWriter:
        return ParquetWriter(file, schema, self.compression)


class _TextSink(FileSink):
    """A sink of text, compressed or not."""

    base_suffixes: tuple[str, ...]

    def __init__(self, path: str | os.PathLike[str], *, compression: str | None = "infer", **options: Any):
        endings = ("", *CODEC_SUFFIXES.values())
        self.suffixes = tuple(base + end for base in self.base_suffixes for end in endings)
        super().__init__(path, **options)
        if compression == "infer":
            ending = os.path.splitext(os.fspath(path))[1].lower()
            compression = next((codec for codec, suffix in CODEC_SUFFIXES.items() if suffix == ending), None)
        if compression is not None and compression not in CODEC_SUFFIXES:
            choices = ", ".join(map(repr, CODEC_SUFFIXES))
            raise ParameterError(
                f"write_{self.kind}: compression is {choices}, 'infer' or None, not {compression!r}."
            )
        self.compression = compression

    @property
    def suffix(self) -> str:
        return self.base_suffixes[0] + CODEC_SUFFIXES.get(self.compression or "", "")

    def options(self) -> tuple[Any, ...]:
        return (self.compression,)

    def open_writer(self, file: BinaryIO, schema: pa.Schema) -> TableWriter:
        if self.compression is None:
            return self.open_text(file, schema)
        stream = pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), self.compression)
        return _Compressed(self.open_text(stream, schema), stream)

    def open_text(self, file: Any, schema: pa.Schema) -> TableWriter:
        """Start writing text to an open file or stream."""
        raise NotImplementedError


class CsvSink(_TextSink):
    """CSV files: one a partition, or one in all if the path ends with ".csv" (or ".csv.gz" …).

    Strings are in quotes and numbers aren't; floats have a fraction; null is an empty field without
    quotes, so that it can be told from an empty string, or ``NA`` where there is only one column.

    Args:
        path: a file or a folder; local, or any fsspec URL.
        delimiter: one character.
        header: whether the first line of each file has the names.
        compression: "gzip", "bz2", "zstd", "lz4", "brotli", None, or "infer" from the path.
        options: ``partition_by``, ``if_exists``, ``storage_options``, ``single_file``, as for Parquet.

    Raises:
        ParameterError: an option is out of range.
    """

    kind = "csv"
    base_suffixes = (".csv",)

    def __init__(
        self, path: str | os.PathLike[str], *, delimiter: str = ",", header: bool = True, **options: Any
    ):
        super().__init__(path, **options)
        check_dialect(Dialect(delimiter))
        self.delimiter = delimiter
        self.header = header

    def options(self) -> tuple[Any, ...]:
        return (*super().options(), self.delimiter, self.header)

    def check_type(self, type: pa.DataType) -> bool:
        return not (
            pa.types.is_nested(type)
            or pa.types.is_binary(type)
            or pa.types.is_fixed_size_binary(type)
            or pa.types.is_duration(type)
            or pa.types.is_interval(type)
        )

    def open_text(self, file: Any, schema: pa.Schema) -> TableWriter:
        if self.header:
            file.write(csv_header(schema.names, self.delimiter))
        return _TextWriter(file, lambda table: csv_lines(table, self.delimiter))


class JsonSink(_TextSink):
    """JSON lines: one file a partition, or one in all if the path ends with ".jsonl" (".json", ".ndjson").

    NaN and infinities, which JSON lacks, become null; times are ISO 8601.

    Args:
        path: a file or a folder; local, or any fsspec URL.
        compression: "gzip", "bz2", "zstd", "lz4", "brotli", None, or "infer" from the path.
        options: ``partition_by``, ``if_exists``, ``storage_options``, ``single_file``, as for Parquet.

    Raises:
        ParameterError: an option is out of range.
    """

    kind = "json"
    base_suffixes = (".jsonl", ".json", ".ndjson")

    def check_type(self, type: pa.DataType) -> bool:
        return is_json_type(type)

    def open_text(self, file: Any, schema: pa.Schema) -> TableWriter:
        return _TextWriter(file, json_lines)


class ArrowSink(FileSink):
    """Arrow IPC files: one a partition, or one in all if the path ends with ".arrow" (".feather", ".ipc").

    Args:
        path: a file or a folder; local, or any fsspec URL.
        compression: "lz4", "zstd", or None, which can be memory-mapped.
        options: ``partition_by``, ``if_exists``, ``storage_options``, ``single_file``, as for Parquet.

    Raises:
        ParameterError: an option is out of range.
    """

    kind = "arrow"
    suffix = ".arrow"
    suffixes = (".arrow", ".feather", ".ipc")

    def __init__(self, path: str | os.PathLike[str], *, compression: str | None = None, **options: Any):
        super().__init__(path, **options)
        if compression not in ("lz4", "zstd", None):
            raise ParameterError(f"write_arrow: compression is 'lz4', 'zstd' or None, not {compression!r}.")
        self.compression = compression

    def options(self) -> tuple[Any, ...]:
        return (self.compression,)

    def open_writer(self, file: BinaryIO, schema: pa.Schema) -> TableWriter:
        options = ipc.IpcWriteOptions(compression=self.compression, use_threads=False)
        return _IpcWriter(ipc.new_file(file, schema, options=options))


class _IpcWriter:
    def __init__(self, writer: ipc.RecordBatchFileWriter):
        self._writer = writer

    def write_table(self, table: pa.Table) -> None:
        """Write the rows as one record batch, however they arrived."""
        self._writer.write_table(table.combine_chunks())

    def close(self) -> None:
        self._writer.close()


class _TextWriter:
    def __init__(self, file: Any, render: Callable[[pa.Table], list[pa.Buffer]]):
        self._file = file
        self._render = render

    def write_table(self, table: pa.Table) -> None:
        for piece in self._render(table):
            self._file.write(piece)

    def close(self) -> None:
        """The file is closed by its owner."""


class _Compressed:
    """A text writer, and the compressed stream that ends after it."""

    def __init__(self, writer: TableWriter, stream: pa.CompressedOutputStream):
        self._writer = writer
        self._stream = stream

    def write_table(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()
        self._stream.close()
