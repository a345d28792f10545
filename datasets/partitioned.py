"""Hive-partitioned writing: rows sorted into folders by value, with few files open and few rows held."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from ..ops.sink import StagedFile
from .hive import hive_folder

#: files of one task that are open at a time
MAX_OPEN = 32
#: rows that are held for all folders together, and bytes they are kept to
MAX_ROWS = 1 << 20
_MAX_BYTES = 64 << 20


class OpenFile(Protocol):
    """A staged file being written."""

    def write(self, table: pa.Table) -> None: ...

    def close(self) -> StagedFile: ...


class PartitionedWriter:
    """Writes rows to a file in each folder; files beyond `MAX_OPEN` are closed and continued in another.

    Which rows go to which file depends on the rows alone, if they come in chunks cut at fixed row
    numbers.

    Args:
        open_file: starts the n-th file of a folder.
        chunk_rows: rows written to a file at once, if as many are there.
    """

    def __init__(self, open_file: Callable[[str, int], OpenFile], chunk_rows: int):
        self._open_file = open_file
        self._chunk_rows = chunk_rows
        self._held: dict[str, list[pa.Table]] = {}
        self._rows: dict[str, int] = {}
        self._total = 0
        self._most: int | None = None
        #: folders with an open file, the least recently written first
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._numbers: dict[str, int] = {}
        self._done: list[StagedFile] = []

    def add(self, folder: str, rows: pa.Table) -> None:
        """Hold rows for a folder, and write them once there are enough."""
        if self._most is None:
            self._most = _most_rows(rows)
        self._held.setdefault(folder, []).append(rows)
        self._rows[folder] = self._rows.get(folder, 0) + rows.num_rows
        self._total += rows.num_rows
        if self._rows[folder] >= self._chunk_rows:
            self._flush(folder)

    def shrink(self) -> None:
        """Write the largest folders' rows until few enough are held."""
        while self._most is not None and self._total > self._most:
            self._flush(max(self._rows, key=lambda folder: (self._rows[folder], folder)))

    def finish(self) -> list[StagedFile]:
        """Write all that is left, one folder at a time; return all files, sorted by target."""
        for folder in sorted(self._rows):
            self._flush(folder)
            self._close(folder)
        for folder in sorted(self._open):
            self._close(folder)
        return sorted(self._done, key=lambda file: file.target)

    def _flush(self, folder: str) -> None:
        table = pa.concat_tables(self._held.pop(folder)).combine_chunks()
        self._total -= self._rows.pop(folder)
        if folder not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._close(next(iter(self._open)))
            number = self._numbers.get(folder, 0)
            self._numbers[folder] = number + 1
            self._open[folder] = self._open_file(folder, number)
        self._open.move_to_end(folder)
        self._open[folder].write(table)

    def _close(self, folder: str) -> None:
        self._done.append(self._open.pop(folder).close())


def split_by_folder(table: pa.Table, keys: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Split a table by the values of some columns.

    Args:
        table: rows.
        keys: columns that become folders, outermost first; they are left out of the tables.

    Yields:
        (folder, rows in their order), sorted by folder. The rows are copies, so that holding some
        keeps none of the others.

    Example:
        >>> table = pa.table({"year": [2024, 2023, 2024], "x": [1, 2, 3]})
        >>> [(folder, rows.to_pydict()) for folder, rows in split_by_folder(table, ["year"])]
        [('year=2023', {'x': [2]}), ('year=2024', {'x': [1, 3]})]
    """
    codes = np.zeros(table.num_rows, np.int64)
    folders = [""]
    for key in keys:
        column = (
            table.column(key).cast(pa.string()).combine_chunks().dictionary_encode(null_encoding="encode")
        )
        values = [hive_folder(key, value) for value in column.dictionary.to_pylist()]
        joint = codes * len(values) + column.indices.to_numpy(zero_copy_only=False)
        present, codes = np.unique(joint, return_inverse=True)
        folders = [f"{folders[c // len(values)]}/{values[c % len(values)]}".lstrip("/") for c in present]
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(folders) + 1))
    stored = table.drop_columns(list(keys))
    for index in sorted(range(len(folders)), key=folders.__getitem__):
        chosen = order[bounds[index] : bounds[index + 1]]
        if len(chosen):
            yield folders[index], stored.take(pa.array(chosen))


def _most_rows(rows: pa.Table) -> int:
    """How many rows to hold, from the width of the first ones, to the next power of two."""
    width = max(1, rows.nbytes // max(1, rows.num_rows))
    return max(1024, min(MAX_ROWS, _MAX_BYTES >> int(width).bit_length()))
