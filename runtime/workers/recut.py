"""Morsels: a stream cut again into tables whose bounds the rows alone decide.

However a stream arrives (in one piece, or in thousands of small segments, spilled or not), what
leaves has the same bounds and one chunk a column. So kernels meet the same tables on every run, and
each table carries enough rows to be worth its overhead of about a kilobyte.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa

from ...ops.kernel import MORSEL_ROWS

#: a morsel ends with the row that makes it this large, in bytes of values
MORSEL_BYTES = 16 << 20


def recut(
    stream: Iterator[pa.Table],
    schema: pa.Schema,
    max_rows: int = MORSEL_ROWS,
    max_bytes: int = MORSEL_BYTES,
) -> Iterator[pa.Table]:
    """Cut a stream of tables into morsels; a table that already is one passes without a copy.

    Args:
        stream: tables with the schema.
        schema: needed for streams of no columns.
        max_rows: rows of every morsel but the last.
        max_bytes: a morsel ends earlier, with the row at which its values reach this size.

    Yields:
        Tables of at least one row.

    Example:
        >>> table = pa.table({"x": range(5)})
        >>> [t.num_rows for t in recut(iter([table[:1], table[1:]]), table.schema, max_rows=2)]
        [2, 2, 1]
    """
    held: list[pa.Table] = []
    rows = bytes = 0
    measure = _measure(schema)
    for table in stream:
        while table.num_rows:
            piece, size = _fitting(table, max_rows - rows, max_bytes - bytes, measure)
            held.append(piece)
            rows, bytes = rows + piece.num_rows, bytes + size
            if rows >= max_rows or bytes >= max_bytes:
                yield joined(held, schema)
                held, rows, bytes = [], 0, 0
            left = table.num_rows - piece.num_rows
            if not left:
                break
            table = table.slice(piece.num_rows, left)  # without a length, rows of no columns never end
    if held:
        yield joined(held, schema)


def joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Concatenate tables to one with a single chunk a column, also where there are no columns."""
    if not schema.names:
        return rows_only(sum(table.num_rows for table in tables))
    whole = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
    if all(column.num_chunks == 1 for column in whole.columns):
        return whole
    return whole.combine_chunks()


def rows_only(count: int) -> pa.Table:
    """Return a table of no columns and so many rows."""
    return pa.table({"_": pa.nulls(count)}).select([])


def value_bytes(table: pa.Table) -> int:
    """Bytes of a table's values, without validity; of two tables together, the sum of theirs.

    Example:
        >>> value_bytes(pa.table({"x": pa.array([1, 2], pa.int16()), "s": ["a", "bcd"]}))
        8
    """
    return _measure(table.schema)(table)


def bytes_between(batch: pa.RecordBatch, bounds: np.ndarray) -> np.ndarray | None:
    """Bytes of the values of consecutive slices, as `value_bytes` counts them.

    Args:
        batch: the rows.
        bounds: where slices begin, and where the last ends; shape (n + 1,), ascending.

    Returns:
        Shape (n,), int64; None if a column's type needs its values looked at.

    Example:
        >>> batch = pa.record_batch({"x": pa.array([1, 2, 3], pa.int16()), "s": ["a", "bcd", ""]})
        >>> bytes_between(batch, np.array([0, 2, 3])).tolist()
        [8, 2]
    """
    total = np.zeros(len(bounds) - 1, dtype=np.int64)
    for array in batch.columns:
        if (size := _fixed_bytes(array.type)) is not None:
            total += size * np.diff(bounds)
        elif (pa.types.is_string(array.type) or pa.types.is_binary(array.type)) and len(array):
            offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)
            total += np.diff(offsets[bounds + array.offset])
        elif len(array):
            return None
    return total


@lru_cache(64)
def _measure(schema: pa.Schema) -> Callable[[pa.Table], int]:
    """`value_bytes` for tables of a schema; only columns whose values vary in size are looked at."""
    one = [_fixed_bytes(type) for type in schema.types]
    fixed = sum(size for size in one if size is not None)
    varying = [index for index, size in enumerate(one) if size is None]

    def measure(table: pa.Table) -> int:
        chunks = (chunk for index in varying for chunk in table.column(index).chunks)
        return fixed * table.num_rows + sum(map(_bytes_of, chunks))

    return measure


def _fixed_bytes(type: pa.DataType) -> int | None:
    """Bytes of each value, None if they vary."""
    if pa.types.is_boolean(type):
        return 1
    whole = pa.types.is_integer(type) or pa.types.is_floating(type)
    whole = whole or pa.types.is_temporal(type) or pa.types.is_decimal(type)
    return type.bit_width // 8 if whole else None


def _fitting(
    table: pa.Table, rows: int, bytes: int, measure: Callable[[pa.Table], int]
) -> tuple[pa.Table, int]:
    """Leading rows up to and with the one that reaches either bound, at least one; and their bytes."""
    piece = table if table.num_rows <= rows else table.slice(0, rows)
    size = measure(piece)
    if size > bytes:
        count = bisect_left(range(1, piece.num_rows), bytes, key=lambda n: measure(table.slice(0, n)))
        piece = table.slice(0, 1 + count)
        size = measure(piece)
    return piece, size


def _bytes_of(array: pa.Array) -> int:
    type, count = array.type, len(array)
    if count == 0 or pa.types.is_null(type):
        return 0
    if pa.types.is_boolean(type):
        return count
    if pa.types.is_struct(type):
        return sum(_bytes_of(array.field(i)) for i in range(type.num_fields))
    if pa.types.is_fixed_size_list(type):
        return _bytes_of(array.values.slice(array.offset * type.list_size, count * type.list_size))
    if pa.types.is_string(type) or pa.types.is_binary(type):
        start, stop = _bounds(array, np.int32)
        return stop - start
    if pa.types.is_list(type) or pa.types.is_map(type):
        start, stop = _bounds(array, np.int32)
        return _bytes_of(array.values.slice(start, stop - start))
    try:
        return count * type.bit_width // 8
    except ValueError:  # no width that is known: unions and views, which sources don't give
        return count * 16


def _bounds(array: pa.Array, width: type[np.generic]) -> tuple[int, int]:
    offsets = np.frombuffer(array.buffers()[1], dtype=width)
    return int(offsets[array.offset]), int(offsets[array.offset + len(array)])
