"""ShardFile: the rows of a shard as arrays of fixed width, in one file that processes of a node share by memory map.

    "HWSHARD1", length of the header, start of the data     8 bytes each, little-endian
    the header, JSON                                        padded with spaces
    the arrays, one after the other                         each aligned to 64 bytes

The header is written last. The page cache is the cache of the training data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import CorruptFileError, PlanError
from ...ops.training.features import Features, Layout
from ..nodes.scratch_file import ScratchFile
from .buffers import aligned, empty

MAGIC = b"HWSHARD1"
_START = struct.Struct("<8sQQ")
#: bytes left in the header for what is known only once all rows have passed
_SLACK = 96
#: bytes of arrays that a writer holds at once
_HELD_BYTES = 8 << 20


@dataclass(frozen=True)
class ShardFile:
    """A shard's rows, as arrays.

    Attributes:
        index: of the shard.
        first_row: number of its first row among all rows.
        rows: how many it has.
        layout: (shape of a row, dtype) of each array.
        widths: of vector columns.
        target_range: the smallest and the largest target; None without rows or target.
        arrays: name to array of shape (rows, ...), read-only, aligned to 64 bytes.
        path: of the file; None for a shard without rows, which needs none.
        bytes: size of the file.
    """

    index: int
    first_row: int
    rows: int
    layout: Layout
    widths: dict[str, int]
    target_range: tuple[float, float] | None
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    path: Path | None = None
    bytes: int = 0

    @classmethod
    def open(cls, path: Path | str) -> ShardFile:
        """Map a file.

        Raises:
            FileNotFoundError: it isn't there.
            CorruptFileError: it isn't whole, as a power failure may leave it.
        """
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            start = stream.read(_START.size)
            if len(start) < _START.size or not start.startswith(MAGIC):
                raise CorruptFileError(f"{path} isn't a file of training rows.")
            _, length, data = _START.unpack(start)
            try:
                header = json.loads(stream.read(length))
            except ValueError as error:
                raise CorruptFileError(f"the header of {path} can't be read.") from error
        if header["bytes"] != size:
            raise CorruptFileError(f"{path} is {size} bytes long, and should be {header['bytes']}.")
        mapped = np.memmap(path, np.uint8, "r")
        layout: Layout = {name: (tuple(shape), dtype) for name, (shape, dtype) in header["layout"].items()}
        offsets, _ = _places(layout, header["rows"], data)
        arrays = {
            name: _view(mapped, offsets[name], (header["rows"], *shape), dtype)
            for name, (shape, dtype) in layout.items()
        }
        span = header["target_range"]
        return cls(
            header["index"],
            header["first_row"],
            header["rows"],
            layout,
            header["widths"],
            None if span is None else (span[0], span[1]),
            arrays,
            Path(path),
            size,
        )

    @classmethod
    def without_rows(cls, index: int, first_row: int, layout: Layout, widths: Mapping[str, int]) -> ShardFile:
        """Make an empty shard, in memory alone."""
        arrays = {name: np.empty((0, *shape), dtype) for name, (shape, dtype) in layout.items()}
        return cls(index, first_row, 0, layout, dict(widths), None, arrays)

    def take(self, rows: np.ndarray, xp: ModuleType = np) -> dict[str, np.ndarray]:
        """Copy rows into new arrays.

        Args:
            rows: their numbers within the shard, shape (n,), int64. They are read in this order: sorting them
                first takes longer, measured with 128 rows of 784 floats each.
            xp: the namespace that they are for.

        Returns:
            Name to array of shape (n, ...).
        """
        taken = {}
        for name, array in self.arrays.items():
            taken[name] = empty((len(rows), *array.shape[1:]), array.dtype, xp)
            array.take(rows, axis=0, out=taken[name], mode="clip")  # "raise" would copy twice
        return taken

    def slice(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return views of rows."""
        return {name: array[start:stop] for name, array in self.arrays.items()}


class ShardWriter:
    """Writes a shard's file from tables, holding a few MB.

    Args:
        file: where to; the caller opened it in a ``with``.
        features: which columns become which arrays.
        schema: of the tables.
        index, first_row, rows: of the shard; all known before.
        widths: of vector columns; what isn't given is found in the first table.

    Example:
        >>> from headwater.runtime.nodes.node_store import NodeStore
        >>> store, table = NodeStore(getfixture("tmp_path")), pa.table({"a": [1.0, 2.0], "b": [3.0, 4.0]})
        >>> _ = store.open_run("r1")
        >>> with store.create_shard("r1", "s0") as file:
        ...     writer = ShardWriter(file, Features(), table.schema, index=0, first_row=0, rows=2)
        ...     writer.write(table)
        ...     writer.publish()
        >>> ShardFile.open(store.shard_path("r1", "s0")).arrays["x"].tolist()
        [[1.0, 3.0], [2.0, 4.0]]
    """

    def __init__(
        self,
        file: ScratchFile,
        features: Features,
        schema: pa.Schema,
        index: int,
        first_row: int,
        rows: int,
        widths: Mapping[str, int] | None = None,
    ):
        self._file, self._features, self._schema = file, features, schema
        self._index, self._first_row, self._rows = index, first_row, rows
        self._widths = dict(widths or {})
        self._layout: Layout | None = None
        self._written = 0
        self._range: tuple[float, float] | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            HeadwaterError: a null, or a vector of another length.
            DiskFullError: the file doesn't fit; known at the first table.
        """
        if not table.num_rows:
            return
        if self._written + table.num_rows > self._rows:
            raise PlanError(f"shard {self._index} has {self._rows} rows, and more arrived")
        if self._layout is None:
            self._begin(self._features.widths(table, self._widths))
        step = max(1, _HELD_BYTES // self._row_bytes)
        with self._file.space.full_disk_explained(), open(self._file.draft, "r+b", buffering=0) as stream:
            for start in range(0, table.num_rows, step):
                row = self._first_row + self._written
                arrays = self._features.to_arrays(table.slice(start, step), self._widths, row)
                for name, array in arrays.items():
                    place = self._offsets[name] + self._written * array[:1].nbytes
                    _write_all(stream.fileno(), array, place)
                if "y" in arrays:
                    self._range = widened(self._range, arrays["y"])
                self._written += min(step, table.num_rows - start)

    def publish(self) -> None:
        """Let the file appear.

        Raises:
            PlanError: rows are missing.
            DiskFullError: the disk is full.
        """
        if self._written < self._rows:
            raise PlanError(f"shard {self._index} has {self._rows} rows, and {self._written} arrived")
        if self._layout is None:
            self._begin(self._widths)
        text = self._header(self._range)
        with self._file.space.full_disk_explained(), open(self._file.draft, "r+b", buffering=0) as stream:
            os.pwrite(stream.fileno(), text.ljust(self._data - _START.size), _START.size)
            os.pwrite(stream.fileno(), _START.pack(MAGIC, len(text), self._data), 0)
        self._file.publish()

    def _begin(self, widths: dict[str, int]) -> None:
        """Lay the file out, and make sure that it fits."""
        self._widths = widths
        self._layout = self._features.layout(self._schema, widths)
        self._row_bytes = row_bytes(self._layout)
        self._size = 0
        self._data = aligned(_START.size + len(self._header(None)) + _SLACK)
        self._offsets, self._size = _places(self._layout, self._rows, self._data)
        self._file.reserve(self._size)
        with self._file.space.full_disk_explained():
            os.truncate(self._file.draft, self._size)

    def _header(self, target_range: tuple[float, float] | None) -> bytes:
        header: dict[str, Any] = {
            "bytes": self._size,
            "first_row": self._first_row,
            "index": self._index,
            "layout": self._layout,
            "rows": self._rows,
            "target_range": target_range,
            "widths": self._widths,
        }
        return json.dumps(header).encode()


def row_bytes(layout: Layout) -> int:
    """Return how many bytes the arrays take for each row, at least 1."""
    items = (
        int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in layout.values()
    )
    return max(1, sum(items))


def widened(known: tuple[float, float] | None, values: np.ndarray) -> tuple[float, float] | None:
    """Return a range that covers values too; NaN is left out."""
    if not len(values):
        return known
    low, high = float(np.fmin.reduce(values)), float(np.fmax.reduce(values))
    return (low, high) if known is None else (min(known[0], low), max(known[1], high))


def _places(layout: Layout, rows: int, start: int) -> tuple[dict[str, int], int]:
    """Where each array begins, and where the last ends."""
    offsets = {}
    for name, (shape, dtype) in layout.items():
        offsets[name] = start
        start += aligned(rows * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
    return offsets, start


def _view(mapped: np.ndarray, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return np.asarray(mapped[offset : offset + size]).view(dtype).reshape(shape)


def _write_all(file: int, array: np.ndarray, offset: int) -> None:
    rest = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    while rest:
        done = os.pwrite(file, rest, offset)
        rest, offset = rest[done:], offset + done
