"""Parquet writer: which columns of a file get a dictionary, decided by a sample of its first row group.

A dictionary of many values costs hashing every value and then saves nothing, so a column gets one only where
the sample says that values repeat. The sample depends on the rows alone, and so do the file's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

#: rows, and values of lists in them, at even distances, that are looked at
_SAMPLE_ROWS, _SAMPLE_VALUES = 4096, 16_384
#: a dictionary is worth it if a value stands in so many rows on average
_LEAST_REPEATS = 4


class ParquetWriter:
    """Writes tables of one schema to an open file, a row group each.

    Args:
        file: to write to; left open.
        schema: of the tables.
        compression: of the pages; None for none.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema, compression: str | None):
        self._file, self._schema, self._compression = file, schema, compression
        self._writer: pq.ParquetWriter | None = None

    def write_table(self, table: pa.Table) -> None:
        """Append a row group; the first decides the encodings of the file."""
        self._opened(table).write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        """Write the footer."""
        self._opened(self._schema.empty_table()).close()

    def _opened(self, first: pa.Table) -> pq.ParquetWriter:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._file,
                self._schema,
                compression=self._compression or "none",
                use_dictionary=repeating(first) or False,
                store_decimal_as_integer=True,
                write_page_checksum=True,
            )
        return self._writer


def repeating(table: pa.Table) -> list[str]:
    """Return the paths of the leaf columns, as Parquet names them, whose values seem worth a dictionary.

    Args:
        table: a row group.

    Example:
        >>> repeating(pa.table({"id": range(100), "side": ["left", "right"] * 50, "tags": [["a"]] * 100}))
        ['side', 'tags.list.element']
    """
    places = _spread(table.num_rows, _SAMPLE_ROWS)
    sample = table if len(places) == table.num_rows else table.take(pa.array(places))
    return [
        path
        for name, column in zip(sample.column_names, sample.columns)
        for path, values in _leaves(name, column.combine_chunks())
        if _repeats(values, table.num_rows / max(1, len(places)))
    ]


def _spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` of ``count`` places, at even distances."""
    return np.arange(0, count, max(1, -(-count // most)))


def _repeats(values: pa.Array, share: float) -> bool:
    """Whether a value stands in several rows of a column, of which one in ``share`` is given."""
    if len(values) > _SAMPLE_VALUES:
        places = _spread(len(values), _SAMPLE_VALUES)
        values, share = values.take(pa.array(places)), share * len(values) / len(places)
    values = values.drop_null()
    seen, count = len(values), pc.count_distinct(values).as_py()
    if share > 1 and count > seen // 2:  # equal pairs among n of d values: about n * n / (2 * d)
        count = min(seen * share, seen * seen / (2 * max(1, seen - count)))
    return count * _LEAST_REPEATS <= seen * share


def _leaves(path: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    type = array.type
    if pa.types.is_struct(type):
        for field, values in zip(type, array.flatten()):
            yield from _leaves(f"{path}.{field.name}", values)
    elif pa.types.is_map(type):
        yield from _leaves(f"{path}.key_value.key", array.keys)
        yield from _leaves(f"{path}.key_value.value", array.items)
    elif pa.types.is_list(type) or pa.types.is_fixed_size_list(type):
        yield from _leaves(f"{path}.list.element", array.flatten())
    elif not (pa.types.is_boolean(type) or pa.types.is_null(type)):  # these never have one
        yield path, array
