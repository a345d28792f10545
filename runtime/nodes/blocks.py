"""Blocks on disk: an Arrow IPC file whose record batches are grouped by segment.

A segment is a byte range of whole encapsulated messages. It can be sent, mapped and parsed alone,
given the schema, while the file as a whole opens with any Arrow reader. A block may end in its index
(see block_index.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from .scratch_file import ScratchFile

_MAGIC = b"ARROW1\0\0"
#: a range from this size on is mapped
_MAPPED_BYTES = 64 << 10
_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)


class BlockWriter:
    """Writes the segments of one block, in order.

    Args:
        file: the scratch file to write to; it is neither published nor discarded here.
        schema: of the rows, without dictionaries.
        count: number of segments, R.

    Example:
        >>> from headwater.runtime.nodes.node_store import NodeStore
        >>> store, rows = NodeStore(getfixture("tmp_path")), pa.table({"x": [1, 2, 3]})
        >>> folder = store.open_run("r1")
        >>> with store.create_block("r1", 0, 0, 0) as file:
        ...     writer = BlockWriter(file, rows.schema, 2)
        ...     writer.write(0, rows[:1])
        ...     writer.write(1, rows[1:])
        ...     offsets, counts = writer.close()
        ...     _ = file.publish()
        >>> counts.tolist()
        [1, 2]
        >>> path = store.resolve(store.blocks("r1")[0].path)
        >>> second = map_range(path, int(offsets[1]), int(offsets[2] - offsets[1]))
        >>> next(read_segment(second, rows.schema))["x"].to_pylist()
        [2, 3]

    Source:
        The file and encapsulated message formats of the Apache Arrow columnar specification.
    """

    def __init__(self, file: ScratchFile, schema: pa.Schema, count: int):
        self._file, self._schema = file, schema
        self._writer = pa.ipc.new_file(file.stream, schema, options=_OPTIONS)
        self._starts = np.zeros(count + 1, dtype=np.int64)
        self._rows = np.zeros(count, dtype=np.int64)
        #: the writer puts the schema down with the first batch, or when it is closed
        self._end = len(_MAGIC) + _schema_bytes(schema)
        self._begun = 0  # segments whose start is known

    def write(self, segment: int, table: pa.Table) -> None:
        """Append rows to a segment that is not before the one last written.

        Raises:
            DiskFullError: the quota or the disk is full.
        """
        self._begin(segment)
        with self._file.space.full_disk_explained():
            for batch in table.to_batches():
                if batch.num_rows:
                    self._writer.write_batch(batch)
                    self._end = self._file.stream.tell()
            self._file.account()
        self._rows[segment] += table.num_rows

    def finish_segments(self) -> tuple[np.ndarray, np.ndarray]:
        """End the last segment.

        Returns:
            Byte offset of each segment and the end of the last, shape (R + 1,), and rows of each
            segment, shape (R,); both int64.
        """
        self._begin(len(self._starts) - 1)
        return self._starts, self._rows

    def close(self, index: Mapping[str, str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Write the footer.

        Args:
            index: metadata for an empty batch behind the segments, as `block_index.encode` gives.

        Returns:
            As `finish_segments`.

        Raises:
            DiskFullError: the quota or the disk is full.
        """
        segments = self.finish_segments()
        with self._file.space.full_disk_explained():
            if index is not None:
                self._writer.write_batch(_no_rows(self._schema), custom_metadata=index)
            self._writer.close()
        return segments

    def _begin(self, segment: int) -> None:
        if segment + 1 < self._begun:
            raise ValueError(f"segment {segment} comes after segment {self._begun - 1}")
        self._starts[self._begun : segment + 1] = self._end
        self._begun = max(self._begun, segment + 1)


@lru_cache(maxsize=64)
def _schema_bytes(schema: pa.Schema) -> int:
    return schema.serialize().size


@lru_cache(maxsize=64)
def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    columns = [column.combine_chunks() for column in schema.empty_table().columns]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def read_segment(buffer: pa.Buffer, schema: pa.Schema) -> Iterator[pa.Table]:
    """Parse a segment's messages; the tables point into the buffer and keep it alive.

    Args:
        buffer: whole messages, 8-byte aligned, as `map_range` gives.
        schema: of the block.

    Yields:
        One table a record batch.

    Raises:
        ArrowInvalid, EOFError: the bytes aren't messages of that schema.
    """
    reader = pa.BufferReader(buffer)
    while reader.tell() < buffer.size:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(reader), schema)
        yield pa.Table.from_batches([batch])


def map_range(path: Path | str, offset: int, length: int) -> pa.Buffer:
    """Map a byte range of a file into memory, where it stays while it is used, even if the file is deleted.

    A short range is read instead: that is faster, and a process may have some 65,000 mappings at most.

    Raises:
        FileNotFoundError: the file is gone.
        EOFError: the file is too short to hold the range.
    """
    if length < _MAPPED_BYTES:
        buffer = pa.py_buffer(_read_range(path, offset, length))
    else:
        with pa.memory_map(str(path)) as file:
            file.seek(offset)
            buffer = file.read_buffer(length)
    if buffer.size != length:
        raise EOFError(f"{path} ends within bytes {offset} to {offset + length}")
    return buffer


def _read_range(path: Path | str, offset: int, length: int) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, length, offset)
    finally:
        os.close(file)
