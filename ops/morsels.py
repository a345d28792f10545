"""Morsels: streams cut at fixed row numbers, so that results don't depend on how they arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .kernel import MORSEL_ROWS


def rechunk(stream: Iterable[pa.Table], rows: int = MORSEL_ROWS) -> Iterator[pa.Table]:
    """Cut a stream at every ``rows`` rows counted from its start; only the last table is shorter.

    Args:
        stream: tables of one schema, with at least one column (Arrow forgets the number of rows of
            a table without columns when it concatenates).
        rows: rows in each table.

    Returns:
        The same rows in non-empty tables; slices, not copies.

    Example:
        >>> [t.num_rows for t in rechunk([pa.table({"a": [1, 2, 3]}), pa.table({"a": [4, 5]})], 2)]
        [2, 2, 1]
    """
    pending: list[pa.Table] = []
    held = 0
    for table in stream:
        start = 0
        while held + table.num_rows - start >= rows:
            pending.append(table.slice(start, rows - held))
            start += rows - held
            yield _joined(pending)
            pending, held = [], 0
        if start < table.num_rows:
            pending.append(table.slice(start))
            held += table.num_rows - start
    if held:
        yield _joined(pending)


def slices(table: pa.Table, rows: int = MORSEL_ROWS) -> Iterator[pa.Table]:
    """Yield consecutive slices of a table, none longer than ``rows``; nothing for an empty table."""
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, min(rows, table.num_rows - start))  # without columns, slice doesn't clip


def gather(table: pa.Table, rows: np.ndarray | pa.Array) -> pa.Table:
    """Take rows by their numbers, all of which the table has: `Table.take` without its checks and its chunks.

    Args:
        table: best of one chunk a column; others are joined first.
        rows: shape (n,), of integers; uint32 is fastest.

    Example:
        >>> gather(pa.table({"x": [5, 6, 7]}), np.array([2, 0])).to_pydict()
        {'x': [7, 5]}
    """
    numbers = rows if isinstance(rows, pa.Array) else pa.array(rows)
    columns = [pc.take(contiguous(column), numbers, boundscheck=False) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema)


def drained(tables: list[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables from the front of a list and let go of each."""
    tables.reverse()
    while tables:
        yield tables.pop()


def numbered(stream: Iterable[pa.Table], name: str) -> Iterator[pa.Table]:
    """Append a column that numbers the rows of a stream from 0, int64."""
    offset = 0
    for table in stream:
        numbers = pa.array(np.arange(offset, offset + table.num_rows, dtype=np.int64))
        yield table.append_column(pa.field(name, pa.int64()), numbers)
        offset += table.num_rows


def contiguous(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array; no copy if it is one chunk."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _joined(tables: list[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
