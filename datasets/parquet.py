"""ParquetSource: Parquet files, split by row group, pruned by statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorruptFileError
from ..ops.expressions.expr import Expr
from ..ops.expressions.statistics import can_match
from ..ops.kernel import MORSEL_ROWS
from ..ops.schema import canonical_schema
from ..ops.source import Split
from .file_source import FileSource, check_same_schema, rows_only
from .files import DataFile, FileSet, Paths, find_files
from .parquet_statistics import group_statistics, row_bytes
from .sizes import check_positive, pack

#: how much of a partition, in bytes, is aimed at: row groups as encoded, before compression
PARTITION_BYTES = 32 << 20


@dataclass(frozen=True)
class RowGroups:
    """A split of a Parquet file: some of its row groups, in order."""

    file: DataFile
    groups: tuple[int, ...]


class ParquetSource(FileSource):
    """Parquet files. Made by `parquet_source`, which checks the footers."""

    kind = "parquet"

    def __init__(self, files: FileSet, footers: Sequence[pq.FileMetaData], partition_bytes: int):
        schema = canonical_schema(footers[0].schema.to_arrow_schema())
        super().__init__(files, schema, {"partition_bytes": partition_bytes})
        self.partition_bytes = partition_bytes
        self.row_bytes = row_bytes(footers, self.schema)
        self._footers: Sequence[pq.FileMetaData] | None = footers

    def __getstate__(self) -> dict[str, Any]:
        """Footers stay on the driver; they can be large, and a worker reads those of its own splits."""
        state = {**self.__dict__, "_footers": None}
        state.pop("_all_splits", None)
        return state

    @property
    def footers(self) -> Sequence[pq.FileMetaData]:
        """The footer of each file, in the order of the files."""
        if self._footers is None:
            self._footers = _read_footers(self.files)
        return self._footers

    @cached_property
    def _all_splits(self) -> tuple[Split, ...]:
        splits: list[Split] = []
        width = sum(self.row_bytes.values())
        for file, footer in zip(self.files.files, self.footers):
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            rows = [group.num_rows for group in groups]
            for start, stop in pack([group.total_byte_size for group in groups], self.partition_bytes):
                count = sum(rows[start:stop])
                detail = RowGroups(file, tuple(range(start, stop)))
                splits.append(Split(len(splits), count, int(count * width), detail=detail))
        return tuple(splits)

    def splits(self) -> Sequence[Split]:
        return self._all_splits

    def prune(self, splits: Sequence[Split], predicate: Expr) -> Sequence[Split]:
        footers = {file.path: footer for file, footer in zip(self.files.files, self.footers)}
        return [
            s for s in splits if self._matching(s.detail, footers[s.detail.file.path], predicate, first=True)
        ]

    def _matching(
        self, detail: RowGroups, footer: pq.FileMetaData, predicate: Expr, first: bool = False
    ) -> list[int]:
        """Row groups in which some row may satisfy the predicate; only one of them, if ``first``."""
        wanted = pa.schema([field for field in self.file_schema if field.name in predicate.columns()])
        hive = self.hive_statistics(detail.file)
        found = []
        for index in detail.groups:
            statistics = {**group_statistics(footer, index, wanted), **hive}
            if can_match(predicate, statistics):
                found.append(index)
                if first:
                    break
        return found

    def read_file(
        self, split: Split, columns: list[str], predicate: Expr | None, limit: int | None
    ) -> Iterator[pa.Table]:
        detail: RowGroups = split.detail
        file = open_parquet(self.files, detail.file)
        try:
            groups = list(detail.groups)
            if predicate is not None:
                groups = self._matching(detail, file.metadata, predicate)
            if not columns:
                yield from (rows_only(file.metadata.row_group(i).num_rows) for i in groups)
                return
            size = MORSEL_ROWS if limit is None else max(1, min(MORSEL_ROWS, limit))
            for batch in file.iter_batches(size, row_groups=groups, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch]).select(columns)
        except (pa.ArrowException, OSError) as error:
            raise corrupt(detail.file, error) from error
        finally:
            file.close()

    def column_bytes(self, columns: Sequence[str]) -> float:
        total = sum(self.row_bytes.values())
        return min(1.0, sum(self.row_bytes[name] for name in set(columns)) / total) if total else 1.0


def parquet_source(
    path: Paths,
    *,
    partition_bytes: int = PARTITION_BYTES,
    storage_options: Mapping[str, Any] | None = None,
    hive: bool = True,
) -> ParquetSource:
    """Make a source of Parquet files; reads and checks all footers.

    Args:
        path: a file, a folder, a glob or a list of them; local, or any fsspec URL.
        partition_bytes: row groups of one file are packed into a partition up to this many bytes,
            as encoded, before compression. A row group is never cut, so write moderate ones.
        storage_options: for the fsspec file system.
        hive: whether ``key=value`` folders are columns.

    Returns:
        The source; columns in the order of the first file, hive columns last.

    Raises:
        SourceNotFoundError: nothing is there.
        SchemaMismatchError: two files differ in columns or types.
        CorruptFileError: a file isn't Parquet, or is cut short.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> pq.write_table(pa.table({"x": [1, 2, 3]}), f"{folder}/part-0.parquet")
        >>> source = parquet_source(folder)
        >>> source.schema.names, [split.rows for split in source.splits()]
        (['x'], [3])
    """
    check_positive("parquet_source", partition_bytes=partition_bytes)
    files = find_files(path, storage_options, hive)
    footers = _read_footers(files)
    first = files.files[0]
    expected = canonical_schema(footers[0].schema.to_arrow_schema())
    for file, footer in zip(files.files[1:], footers[1:]):
        if not footer.schema.equals(footers[0].schema):
            check_same_schema(first, expected, file, canonical_schema(footer.schema.to_arrow_schema()))
    return ParquetSource(files, footers, partition_bytes)


def open_parquet(files: FileSet, file: DataFile) -> pq.ParquetFile:
    """Open a Parquet file; the caller closes it.

    Raises:
        CorruptFileError: it isn't Parquet, or is cut short.
    """
    handle = files.open_arrow(file)
    try:
        return pq.ParquetFile(handle, pre_buffer=not files.local, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        handle.close()
        raise corrupt(file, error) from error


def corrupt(file: DataFile, error: Exception) -> CorruptFileError:
    """Build the error for a file that can't be read as Parquet."""
    reason = str(error).strip().split("\n")[0]
    return CorruptFileError(
        f"{file.path} ({file.size} bytes) can't be read as Parquet: {reason} "
        "It may be cut short or of another format; write it again, or leave it out with a glob."
    )


def _read_footers(files: FileSet) -> list[pq.FileMetaData]:
    return files.map(lambda file: _read_footer(files, file), files.files)


def _read_footer(files: FileSet, file: DataFile) -> pq.FileMetaData:
    with open_parquet(files, file) as opened:
        return opened.metadata
