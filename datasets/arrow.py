"""ArrowSource: Arrow IPC files, Feather files and streams; files are split by record batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc

from ..errors import CorruptFileError
from ..ops.expressions.expr import Expr
from ..ops.morsels import slices
from ..ops.schema import canonical_schema
from .file_source import FileSource, Part, check_same_schema, rows_only
from .files import DataFile, FileSet, Paths, find_files
from .sizes import check_positive, cut_evenly, pack, type_bytes

#: how much of a partition, in bytes in memory, is aimed at
PARTITION_BYTES = 64 << 20

_MAGIC = b"ARROW1"
_MAGIC_V1 = b"FEA1"


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one record batch."""

    batch: int
    start: int
    stop: int


@dataclass(frozen=True)
class Batches:
    """A split of an IPC file: rows of some record batches, in order; None is a stream, read whole."""

    file: DataFile
    slices: tuple[Slice, ...] | None


@dataclass(frozen=True)
class Layout:
    """What planning needs of one file: rows of each batch (None for a stream), bytes a row, by column."""

    schema: pa.Schema
    rows: tuple[int, ...] | None
    widths: tuple[float, ...]


class ArrowSource(FileSource):
    """Arrow IPC files or streams. Made by `arrow_source`."""

    kind = "arrow"

    def __init__(self, files: FileSet, layouts: Sequence[Layout], partition_bytes: int):
        super().__init__(files, canonical_schema(layouts[0].schema), {}, partition_bytes)
        known = dict(zip(layouts[0].schema.names, layouts[0].widths))
        self.widths = {field.name: known.get(field.name, type_bytes(field.type)) for field in self.schema}
        self._layouts: Sequence[Layout] | None = layouts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_layouts": None}

    def parts(self) -> Iterator[Part]:
        layouts = self._layouts or self.files.map(lambda f: read_layout(self.files, f), self.files.files)
        for file, layout in zip(self.files.files, layouts):
            if layout.rows is None:
                yield Part(file, Batches(file, None), None, file.size, file.size)
                continue
            width = max(1.0, sum(layout.widths))
            pieces = list(_pieces(layout.rows, max(1, int(self.partition_bytes / width))))
            sizes = [int((piece.stop - piece.start) * width) for piece in pieces]
            for start, stop in pack(sizes, self.partition_bytes):
                chosen = tuple(pieces[start:stop])
                rows = sum(piece.stop - piece.start for piece in chosen)
                size = sum(sizes[start:stop])
                yield Part(file, Batches(file, chosen), rows, size, size)

    def read_part(
        self, part: Part, columns: list[str], predicate: Expr | None, limit: int | None
    ) -> Iterator[pa.Table]:
        detail: Batches = part.where
        try:
            with self.files.open_arrow(detail.file, mapped=True) as handle:
                for batch in _read(handle, detail.slices, columns):
                    table = pa.Table.from_batches([batch]).select(columns)
                    yield from slices(table) if columns else [rows_only(batch.num_rows)]
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(detail.file, error) from error

    def column_bytes(self, columns: Sequence[str]) -> float:
        total = sum(self.widths.values())
        return min(1.0, sum(self.widths[name] for name in set(columns)) / total) if total else 1.0


def arrow_source(
    path: Paths,
    *,
    partition_bytes: int = PARTITION_BYTES,
    storage_options: Mapping[str, Any] | None = None,
    hive: bool = True,
) -> ArrowSource:
    """Make a source of Arrow IPC files, Feather (version 2) files or IPC streams.

    Args:
        path: a file, a folder, a glob or a list of them; local, or any fsspec URL. Local files are
            memory-mapped.
        partition_bytes: record batches of one file are packed into partitions of this many bytes in
            memory, and larger batches are cut by rows. A stream is one partition.
        storage_options: for the fsspec file system.
        hive: whether ``key=value`` folders are columns.

    Returns:
        The source; dictionary, large and view types become the plain ones.

    Raises:
        SourceNotFoundError: nothing is there.
        SchemaMismatchError: two files differ in columns or types.
        CorruptFileError: a file isn't Arrow IPC, or is cut short.

    Example:
        >>> import tempfile, pathlib, pyarrow.feather
        >>> path = pathlib.Path(tempfile.mkdtemp(), "x.arrow")
        >>> pyarrow.feather.write_feather(pa.table({"x": [1, 2, 3]}), path)
        >>> source = arrow_source(path)
        >>> [t.to_pydict() for s in source.splits() for t in source.read(s, ["x"])]
        [{'x': [1, 2, 3]}]
    """
    check_positive("arrow_source", partition_bytes=partition_bytes)
    files = find_files(path, storage_options, hive)
    layouts = files.map(lambda file: read_layout(files, file), files.files)
    expected = canonical_schema(layouts[0].schema)
    for file, layout in zip(files.files[1:], layouts[1:]):
        check_same_schema(files.files[0], expected, file, canonical_schema(layout.schema))
    return ArrowSource(files, layouts, partition_bytes)


def read_layout(files: FileSet, file: DataFile) -> Layout:
    """Read what planning needs of a file: metadata, one column's buffers at most, and one batch.

    Raises:
        CorruptFileError: it isn't Arrow IPC, or is cut short.
    """
    try:
        with files.open_arrow(file, mapped=True) as handle:
            if _is_stream(handle):
                schema = ipc.open_stream(handle).schema
                return Layout(schema, None, tuple(type_bytes(field.type) for field in schema))
            reader = ipc.open_file(handle)
            widths = tuple(type_bytes(field.type) for field in reader.schema)
            if reader.num_record_batches:
                first = reader.get_batch(0)
                widths = tuple(column.nbytes / max(1, first.num_rows) for column in first.columns)
            return Layout(reader.schema, _batch_rows(handle, reader), widths)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(file, error) from error


def _batch_rows(handle: pa.NativeFile, reader: ipc.RecordBatchFileReader) -> tuple[int, ...]:
    """Rows of each batch; reads only the narrowest column's buffers."""
    count = reader.num_record_batches
    if count == 1:
        return (reader.get_batch(0).num_rows,)
    if len(reader.schema):
        types = [field.type for field in reader.schema]
        plain = [i for i, type in enumerate(types) if not pa.types.is_dictionary(type)] or range(len(types))
        narrow = min(plain, key=lambda i: type_bytes(types[i]))
        handle.seek(0)
        reader = ipc.open_file(handle, options=ipc.IpcReadOptions(included_fields=[narrow]))
    return tuple(reader.get_batch(i).num_rows for i in range(count))


def _pieces(rows: Sequence[int], most: int) -> Iterator[Slice]:
    for batch, count in enumerate(rows):
        for start, stop in cut_evenly(count, most):
            yield Slice(batch, start, stop)


def _read(
    handle: pa.NativeFile, wanted: Sequence[Slice] | None, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    opened = ipc.open_stream(handle) if wanted is None else ipc.open_file(handle)
    if columns:
        handle.seek(0)
        fields = [opened.schema.get_field_index(name) for name in columns]
        options = ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        opened = (ipc.open_stream if wanted is None else ipc.open_file)(handle, options=options)
    if wanted is None:
        yield from opened
        return
    for piece in wanted:
        yield opened.get_batch(piece.batch).slice(piece.start, piece.stop - piece.start)


def _is_stream(handle: pa.NativeFile) -> bool:
    magic = handle.read(len(_MAGIC))
    handle.seek(0)
    if magic.startswith(_MAGIC_V1):
        raise pa.ArrowInvalid("it is Feather version 1, which Arrow no longer reads; write it as version 2")
    return magic != _MAGIC


def _corrupt(file: DataFile, error: Exception) -> CorruptFileError:
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return CorruptFileError(
        f"{file.path} ({file.size} bytes) can't be read as Arrow IPC: {reason}. "
        "It may be cut short or of another format; write it again, or leave it out with a glob."
    )
