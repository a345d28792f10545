"""ParquetSource: Parquet files, split by row group, pruned by statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import CorruptFileError
from ..ops.expressions.cast import cast_value
from ..ops.expressions.expr import Expr, evaluate_column
from ..ops.expressions.statistics import ColumnStatistics, which_match
from ..ops.kernel import MORSEL_ROWS
from ..ops.schema import canonical_schema, canonical_table
from .file_source import FileSource, Part, check_same_schema, rows_only
from .files import DataFile, FileSet, Paths, find_files
from .parquet_statistics import group_statistics, row_bytes
from .sizes import check_positive, pack

#: how much of a partition, in bytes, is aimed at: row groups as encoded, before compression
PARTITION_BYTES = 32 << 20

#: a predicate's columns are read ahead of the others if they are at most this share of all that is read
_MOST_PROBED = 0.5
_PROBED_ROWS = MORSEL_ROWS // 4

#: a text column is worth reading as a dictionary if its values take this many bytes on average, or fewer
_DICTIONARY_BYTES = 2


class ParquetSource(FileSource):
    """Parquet files. Made by `parquet_source`, which checks the footers."""

    kind = "parquet"

    def __init__(self, files: FileSet, footers: Sequence[pq.FileMetaData], partition_bytes: int):
        #: columns that are read in another type than the file's
        self._read_as: dict[str, pa.DataType] = {}
        schema = canonical_schema(footers[0].schema.to_arrow_schema())
        super().__init__(files, schema, {}, partition_bytes)
        self.row_bytes = row_bytes(footers, self.schema)
        self._footers: Sequence[pq.FileMetaData] | None = footers

    def __getstate__(self) -> dict[str, Any]:
        """Footers stay on the driver; they can be large, and a worker reads those of its own splits."""
        return {**super().__getstate__(), "_footers": None}

    @property
    def schema(self) -> pa.Schema:
        fields = [pa.field(f.name, self._read_as.get(f.name, f.type)) for f in self.file_schema]
        return pa.schema([*fields, *self.hive_schema])

    def reading_as(self, types: Mapping[str, pa.DataType]) -> ParquetSource:
        source = copy(self)
        stored = {field.name: field.type for field in self.file_schema}
        source._read_as = {
            name: type
            for name, type in types.items()
            if name in stored
            and (
                self._repeats(name)
                if pa.types.is_dictionary(type)
                else pa.types.is_decimal(stored[name]) and pa.types.is_float64(type)
            )
        }
        return source

    def _repeats(self, name: str) -> bool:
        """Whether a column is stored as few values that repeat: at most a byte a row or so."""
        places = [footer.schema.to_arrow_schema().get_field_index(name) for footer in self.footers]
        size = values = 0
        for footer, place in zip(self.footers, places):
            if footer.schema.column(place).path != name:  # a nested column stands before it
                return False
            for group in range(footer.num_row_groups):
                chunk = footer.row_group(group).column(place)
                size, values = size + chunk.total_uncompressed_size, values + chunk.num_values
        return size <= _DICTIONARY_BYTES * values

    def typed(self, table: pa.Table) -> pa.Table:
        if not self._read_as:
            return super().typed(table)
        fields = [
            pa.field(name, type)
            if pa.types.is_dictionary(type := self._read_as.get(name, pa.null()))
            else self.file_schema.field(name)
            for name in table.column_names
        ]
        table = canonical_table(table, pa.schema(fields))
        for place, name in enumerate(table.column_names):
            if self._read_as.get(name) == pa.float64():
                table = table.set_column(place, name, cast_value(table.column(place), pa.float64()))
        return table

    @property
    def footers(self) -> Sequence[pq.FileMetaData]:
        """The footer of each file, in the order of the files."""
        if self._footers is None:
            self._footers = _read_footers(self.files)
        return self._footers

    def parts(self) -> Iterator[Part]:
        width = sum(self.row_bytes.values())
        for file, footer in zip(self.files.files, self.footers):
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            rows = [group.num_rows for group in groups]
            sizes = [group.total_byte_size for group in groups]
            for start, stop in pack(sizes, self.partition_bytes):
                count = sum(rows[start:stop])
                yield Part(file, range(start, stop), count, int(count * width), sum(sizes[start:stop]))

    def may_match(self, parts: Sequence[Part], predicate: Expr) -> Sequence[bool]:
        footers = {file.path: footer for file, footer in zip(self.files.files, self.footers)}
        groups = [(part.file, footers[part.file.path], index) for part in parts for index in part.where]
        flags = iter(self._groups_may_match(groups, predicate))
        return [any(list(islice(flags, len(part.where)))) for part in parts]

    def _groups_may_match(
        self, groups: Sequence[tuple[DataFile, pq.FileMetaData, int]], predicate: Expr
    ) -> np.ndarray:
        """Return for each row group whether some row in it may satisfy a predicate."""
        wanted = pa.schema([field for field in self.file_schema if field.name in predicate.columns()])
        known = [group_statistics(footer, index, wanted) for _, footer, index in groups]
        unknown = ColumnStatistics()
        statistics = {name: [one.get(name, unknown) for one in known] for name in wanted.names}
        hive = self.hive_statistics([file for file, _, _ in groups])
        return which_match(predicate, {**statistics, **hive}, len(groups))

    def read_part(
        self, part: Part, columns: list[str], predicate: Expr | None, limit: int | None
    ) -> Iterator[pa.Table]:
        dictionaries = [
            name for name in columns if pa.types.is_dictionary(self._read_as.get(name, pa.null()))
        ]
        file = open_parquet(self.files, part.file, dictionaries)
        try:
            groups = list(part.where)
            if predicate is not None:
                flags = self._groups_may_match([(part.file, file.metadata, i) for i in groups], predicate)
                groups = [index for index, flag in zip(groups, flags) if flag]
                groups = [index for index in groups if self._worth_reading(file, index, columns, predicate)]
            if not columns:
                yield from (rows_only(file.metadata.row_group(i).num_rows) for i in groups)
                return
            size = MORSEL_ROWS if limit is None else max(1, min(MORSEL_ROWS, limit))
            for batch in file.iter_batches(size, row_groups=groups, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch]).select(columns)
        except (pa.ArrowException, OSError) as error:
            raise corrupt(part.file, error) from error
        finally:
            file.close()

    def _worth_reading(self, file: pq.ParquetFile, group: int, columns: list[str], predicate: Expr) -> bool:
        """Whether a row group is worth reading: some row satisfies the predicate, or asking costs too much.

        Only the predicate's columns are read, up to the first row that satisfies it.
        """
        wanted = [field for field in self.file_schema if field.name in predicate.columns()]
        names = [field.name for field in wanted]
        share = sum(self.row_bytes[name] for name in names) / max(1, sum(self.row_bytes[n] for n in columns))
        few = file.metadata.row_group(group).num_rows <= _PROBED_ROWS
        if few or not names or share > _MOST_PROBED or predicate.columns() - set(names):
            return True
        for batch in file.iter_batches(_PROBED_ROWS, row_groups=[group], columns=names, use_threads=False):
            table = canonical_table(pa.Table.from_batches([batch]).select(names), pa.schema(wanted))
            if table.filter(evaluate_column(predicate, table)).num_rows:
                return True
        return False

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
            as encoded, before compression. A row group is never cut, so write moderate ones. Small
            files are read together, up to a quarter of it.
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


def open_parquet(files: FileSet, file: DataFile, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file, to read some columns as dictionaries; the caller closes it.

    Raises:
        CorruptFileError: it isn't Parquet, or is cut short.
    """
    handle = files.open_arrow(file)
    try:
        return pq.ParquetFile(
            handle,
            read_dictionary=list(dictionaries),
            pre_buffer=not files.local,
            page_checksum_verification=True,
        )
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
