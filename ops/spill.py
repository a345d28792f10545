"""Spilling: tables in Arrow IPC files, and streams split by key hash until each part fits memory."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import DiskFullError
from ..lineage.hashing import hash_columns
from .kernel import Context
from .morsels import slices

#: a column that numbers rows, so that spilled work can be put back in order; no user's column has such a name
ROW = "\x1frow"
#: parts that one split makes
FANOUT = 16
#: splits of splits, after which a part is one that no hash can split
MAX_DEPTH = 8
#: rows in one batch of a file; a merge holds a batch of each run
_BATCH_ROWS = 16_384


class SpillFile:
    """Tables appended to an Arrow IPC file in small batches, then read back.

    Reading is by plain reads, not by memory map: mapped pages would count as the worker's memory. A file has room for
    one dictionary a column, but tables bring one each, so values that are encoded by a dictionary are written as such.

    Args:
        path: of the file, which must not exist.
        schema: of the tables.
        context: counts ``spilled_bytes`` in its metrics.
    """

    def __init__(self, path: Path, schema: pa.Schema, context: Context):
        self.path = path
        self.schema = schema
        self.bytes = 0
        self._ends: list[int] = []
        self._context = context
        self._stored = _decoded(schema)
        self._writer = pa.ipc.new_file(str(path), self._stored)

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self._ends[-1] if self._ends else 0

    def append(self, table: pa.Table) -> None:
        """Write a table.

        Raises:
            DiskFullError: no space is left.
        """
        try:
            for batch in cast(table, self._stored).to_batches(_BATCH_ROWS):
                self._writer.write_batch(batch)
                self._ends.append(self.rows + batch.num_rows)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"{self._context.operator or 'an operator'} ran out of disk while it spilled to "
                    f"{self.path.parent}. Free some space, or give the session another scratch folder."
                ) from error
            raise
        self.bytes += table.nbytes
        metrics = self._context.metrics
        metrics["spilled_bytes"] = metrics.get("spilled_bytes", 0) + table.nbytes

    def finish(self) -> SpillFile:
        """End writing; reading comes after."""
        self._writer.close()
        return self

    def read(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in the order written, of some columns only; one empty table if there are none."""
        kept = None if columns is None else sorted(self.schema.get_field_index(name) for name in columns)
        options = pa.ipc.IpcReadOptions(included_fields=kept, use_threads=False)
        with pa.OSFile(str(self.path)) as source:
            reader = pa.ipc.open_file(source, options=options)
            schema = pa.schema([self.schema.field(name) for name in reader.schema.names])
            for index in range(reader.num_record_batches):
                yield cast(pa.Table.from_batches([reader.get_batch(index)]), schema)
            if not self.rows:
                yield schema.empty_table()

    def slice(self, start: int, stop: int) -> pa.Table:
        """Return the rows from ``start`` up to ``stop``."""
        if start >= stop:
            return self.schema.empty_table()
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, stop)
        before = self._ends[first - 1] if first else 0
        with pa.OSFile(str(self.path)) as source:
            reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False))
            batches = [reader.get_batch(index) for index in range(first, last + 1)]
        return cast(pa.Table.from_batches(batches).slice(start - before, stop - start), self.schema)

    def table(self) -> pa.Table:
        """Return all rows."""
        return self.slice(0, self.rows)

    def delete(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def new_spill(folder: Path, schema: pa.Schema, context: Context) -> SpillFile:
    """Open a spill file under a free name in a folder that one kernel owns."""
    number = context.metrics["spill_files"] = context.metrics.get("spill_files", 0) + 1
    return SpillFile(Path(folder) / f"{number}.arrow", schema, context)


def hash_split(
    stream: Iterable[pa.Table],
    keys: Sequence[str],
    fanout: int,
    folder: Path,
    context: Context,
    depth: int = 0,
) -> list[SpillFile]:
    """Split a stream by the hash of its keys; rows of a part keep their order.

    Args:
        stream: tables of one schema.
        keys: rows of equal keys come into one part.
        fanout: how many parts.
        folder: where to put the files.
        context: counts the bytes.
        depth: how often these rows have been split; each depth hashes by another seed.

    Returns:
        ``fanout`` finished files; none if the stream has no tables.
    """
    files: list[SpillFile] = []
    for table in stream:
        if not files:
            files = [new_spill(folder, table.schema, context) for _ in range(fanout)]
        for piece in slices(table):
            hashes = hash_columns([piece.column(name) for name in keys], seed=depth + 1)
            parts = ((hashes >> np.uint64(32)) * np.uint64(fanout)) >> np.uint64(32)
            ordered = piece.take(pa.array(np.argsort(parts, kind="stable")))
            ends = np.cumsum(np.bincount(parts.astype(np.int64), minlength=fanout))
            for file, start, end in zip(files, [0, *ends[:-1]], ends):
                if end > start:
                    file.append(ordered.slice(start, end - start))
    return [file.finish() for file in files]


def hash_parts(
    streams: Sequence[Iterable[pa.Table]],
    keys: Sequence[Sequence[str]],
    limit: int,
    measured: int,
    folder: Path,
    context: Context,
    depth: int = 0,
) -> Iterator[tuple[SpillFile | None, ...]]:
    """Split streams alike by the hash of their keys, again and again until each part is small.

    Args:
        streams: to split.
        keys: the keys of each.
        limit: bytes that a part of the measured stream may have; one whose keys don't split may have more.
        measured: which stream has to be small.
        folder: where to put the files; each is deleted when the next part is asked for.
        context: counts the bytes.
        depth: how often these rows have been split.

    Returns:
        For each part the file of each stream, None if that stream had no tables.
    """
    split = [hash_split(stream, by, FANOUT, folder, context, depth) for stream, by in zip(streams, keys)]
    total = sum(file.rows for file in split[measured])
    for part in range(FANOUT):
        files = tuple(parts[part] if parts else None for parts in split)
        file = files[measured]
        deeper = depth + (4 if file is not None and file.rows == total else 1)
        if file is None or file.bytes <= limit or deeper > MAX_DEPTH:
            yield files
        else:
            again = [() if f is None else f.read() for f in files]
            yield from hash_parts(again, keys, limit, measured, folder, context, deeper)
        for f in files:
            if f is not None:
                f.delete()


def _decoded(schema: pa.Schema) -> pa.Schema:
    """The schema with values in place of dictionaries' codes."""
    for place, field in enumerate(schema):
        if pa.types.is_dictionary(field.type):
            schema = schema.set(place, field.with_type(field.type.value_type))
    return schema


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table in a schema that may differ in what is encoded by dictionaries."""
    return table if table.schema.equals(schema) else table.cast(schema)
