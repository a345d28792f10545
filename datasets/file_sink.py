"""FileSink: what sinks of files share: options, checks, streaming to staged files, hive folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from ..errors import ParameterError, TypeMismatchError, column_not_found
from ..ops.kernel import MORSEL_ROWS
from ..ops.morsels import rechunk
from ..ops.sink import Sink, StagedFile
from .commit import Destination, abort, check_destination, commit, disk_errors, sync_file
from .partitioned import PartitionedWriter, split_by_folder

#: Arrow's names of compressions, and the suffixes of files compressed so
CODEC_SUFFIXES = {"gzip": ".gz", "bz2": ".bz2", "zstd": ".zst", "lz4": ".lz4", "brotli": ".br"}


class TableWriter(Protocol):
    """Writes tables of one schema to an open file."""

    def write_table(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class FileSink(Sink):
    """A sink that writes files of one format.

    Subclasses give ``kind``, `suffix`, ``suffixes`` and `open_writer`, and `check_type` where the format
    can't hold every type.

    Args:
        path: a file (by its suffix) or a folder; local, or any fsspec URL.
        partition_by: columns that become ``key=value`` folders.
        if_exists: "error" or "overwrite".
        storage_options: for the fsspec file system.
        single_file: whether ``path`` is one file; None decides by its suffix.
    """

    #: suffixes of a path that names one file
    suffixes: tuple[str, ...] = ()
    #: rows written at once: of a row group, a record batch
    chunk_rows = MORSEL_ROWS

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        partition_by: str | Sequence[str] = (),
        if_exists: str = "error",
        storage_options: Mapping[str, Any] | None = None,
        single_file: bool | None = None,
    ):
        if not isinstance(path, str | os.PathLike):
            raise TypeMismatchError(f"write_{self.kind}() takes a path, not {path!r}.")
        if if_exists not in ("error", "overwrite"):
            raise ParameterError(
                f'write_{self.kind}: if_exists is "error" or "overwrite", not {if_exists!r}.'
            )
        self.partition_by = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
        self.overwrite = if_exists == "overwrite"
        if single_file is None:
            single_file = not self.partition_by and os.fspath(path).lower().endswith(self.suffixes)
        if single_file and self.partition_by:
            raise ParameterError(f"write_{self.kind}: one file can't have partition_by. Name a folder.")
        self.destination = Destination.at(path, storage_options, single_file)

    @property
    def suffix(self) -> str:
        """The suffix of the files written, as ".parquet"."""
        raise NotImplementedError

    def open_writer(self, file: BinaryIO, schema: pa.Schema) -> TableWriter:
        """Start writing to an open file."""
        raise NotImplementedError

    def check_type(self, type: pa.DataType) -> bool:
        """Whether the format can hold a type."""
        return True

    def options(self) -> tuple[Any, ...]:
        """What, besides the destination, decides the files' content."""
        return ()

    def check(self, schema: pa.Schema) -> None:
        where = f"write_{self.kind}({str(self.destination)!r})"
        for name in self.partition_by:
            if name not in schema.names:
                raise column_not_found(name, schema.names, f"{where}, partition_by")
            if pa.types.is_nested(schema.field(name).type) or pa.types.is_binary(schema.field(name).type):
                raise TypeMismatchError(
                    f"{where}: partition_by={name!r} is {schema.field(name).type}, which makes no folder. "
                    "Partition by a string, number, boolean or date."
                )
        if len(set(self.partition_by)) < len(self.partition_by):
            raise ParameterError(
                f"{where}: partition_by names a column twice: {', '.join(self.partition_by)}."
            )
        stored = self._stored(schema)
        if not len(stored):
            raise ParameterError(
                f"{where}: no column is left to write. Select one that isn't in partition_by."
            )
        for field in stored:
            if not self.check_type(field.type):
                raise TypeMismatchError(
                    f"{where}: column {field.name!r} is {field.type}, which {self.kind} can't hold. "
                    "Drop it, cast it, or write Parquet or Arrow."
                )
        check_destination(self.destination, self.overwrite)

    @property
    def single_file(self) -> bool:
        return self.destination.single_file

    def identity(self) -> Any:
        return (
            self.kind,
            str(self.destination),
            self.single_file,
            self.partition_by,
            self.overwrite,
            self.options(),
        )

    def stage(
        self, run: str, partition: int, attempt: int, stream: Iterator[pa.Table], schema: pa.Schema
    ) -> list[StagedFile]:
        files = _Staging(self, run, partition, attempt, self._stored(schema))
        try:
            with disk_errors(str(self.destination)):
                if self.partition_by:
                    return self._stage_folders(files, stream, partition, schema)
                return self._stage_file(files, stream, partition)
        except BaseException:
            files.discard()
            raise

    def is_staged(self, run: str, file: StagedFile) -> bool:
        try:
            found = self.destination.fs.info(f"{self.destination.staging(run)}/{file.path}")
        except FileNotFoundError:
            return False
        return found["size"] == file.bytes

    def commit(self, run: str, files: Sequence[StagedFile]) -> None:
        commit(self.destination, run, files, self.overwrite)

    def abort(self, run: str) -> None:
        abort(self.destination, run)

    def overlaps(self, other: Sink) -> bool:
        if not isinstance(other, FileSink) or self.destination.fs != other.destination.fs:
            return False
        mine, others = (f"{sink.destination.path.rstrip('/')}/" for sink in (self, other))
        return mine.startswith(others) or others.startswith(mine)

    def describe(self) -> str:
        by = f" by {', '.join(self.partition_by)}" if self.partition_by else ""
        return f"{self.kind} {self.destination}{by}"

    def _stored(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([field for field in schema if field.name not in self.partition_by])

    def _stage_file(self, files: _Staging, stream: Iterator[pa.Table], partition: int) -> list[StagedFile]:
        # Partition 0 leaves a file even without rows, so that an empty dataset keeps its schema.
        writer = files.open("", 0) if partition == 0 else None
        for table in rechunk(stream, self.chunk_rows):
            writer = writer or files.open("", 0)
            writer.write(table)
        return [writer.close()] if writer else []

    def _stage_folders(
        self, files: _Staging, stream: Iterator[pa.Table], partition: int, schema: pa.Schema
    ) -> list[StagedFile]:
        writer = PartitionedWriter(files.open, self.chunk_rows)
        for table in rechunk(stream):
            for folder, rows in split_by_folder(table, self.partition_by):
                writer.add(folder, rows)
            writer.shrink()
        staged = writer.finish()
        if staged or partition:
            return staged
        row = pa.table({name: pa.nulls(1, schema.field(name).type) for name in self.partition_by})
        folder = next(split_by_folder(row, self.partition_by))[0]
        return [files.open(folder, 0).close()]


class StagedWriter:
    """One staged file being written."""

    def __init__(self, sink: FileSink, place: str, path: str, target: str, schema: pa.Schema):
        self._sink = sink
        self._place = place
        self._path, self._target = path, target
        self._rows = 0
        self._file = _create(sink.destination, place)
        self._writer = sink.open_writer(self._file, schema)

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._rows += table.num_rows
        self._writer.write_table(table)

    def close(self) -> StagedFile:
        """Finish the file, and see it to the disk."""
        self._writer.close()
        self._file.close()
        if self._sink.destination.local:
            sync_file(self._place)
        size = self._sink.destination.fs.size(self._place)
        return StagedFile(self._path, self._target, self._rows, size)

    def drop(self) -> None:
        """Close without finishing."""
        with suppress(Exception):
            self._writer.close()
        with suppress(Exception):
            self._file.close()


class _Staging:
    """The files of one attempt at one partition: their names, and their removal if it fails."""

    def __init__(self, sink: FileSink, run: str, partition: int, attempt: int, schema: pa.Schema):
        self._sink = sink
        self._root = sink.destination.staging(run)
        self._name = f"part-{partition:05d}"
        self._attempt = attempt
        self._schema = schema
        self._opened: list[tuple[str, StagedWriter]] = []

    def open(self, folder: str, number: int) -> StagedWriter:
        """Start the ``number``-th file in a folder ("" is the top)."""
        name = self._name + (f"-{number}" if number else "")
        prefix = f"{folder}/" if folder else ""
        path = f"{prefix}{name}.attempt-{self._attempt}{self._sink.suffix}"
        place = f"{self._root}/{path}"
        writer = StagedWriter(self._sink, place, path, f"{prefix}{name}{self._sink.suffix}", self._schema)
        self._opened.append((place, writer))
        return writer

    def discard(self) -> None:
        """Remove what was written, to give the room back."""
        for place, writer in self._opened:
            writer.drop()
            with suppress(Exception):
                self._sink.destination.fs.rm_file(place)


def _create(destination: Destination, place: str) -> BinaryIO:
    destination.fs.makedirs(place.rpartition("/")[0], exist_ok=True)
    return open(place, "wb") if destination.local else destination.fs.open(place, "wb")
