"""What Parquet footers tell of columns: ranges and nulls of row groups, and widths of values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..ops.expressions.statistics import ColumnStatistics
from .sizes import type_bytes

#: row groups that widths are measured on, spread over the dataset
_SAMPLED = 16


def group_statistics(footer: pq.FileMetaData, group: int, schema: pa.Schema) -> dict[str, ColumnStatistics]:
    """Return what the footer knows of columns in one row group.

    Args:
        footer: of the file.
        group: index of the row group.
        schema: the columns wanted; nested ones, and those without statistics, are left out.

    Returns:
        For each column, its range as Python values; a range that isn't known is None.
    """
    places = _leaves(footer.schema)
    metadata = footer.row_group(group)
    found = {}
    for field in schema:
        statistics = metadata.column(places[field.name]).statistics if field.name in places else None
        if statistics is None:
            continue
        low, high = _range(statistics)
        nulls = statistics.null_count if statistics.has_null_count else None
        found[field.name] = ColumnStatistics(low, high, nulls, metadata.num_rows, field.type)
    return found


def row_bytes(footers: Sequence[pq.FileMetaData], schema: pa.Schema) -> dict[str, float]:
    """Estimate how many bytes a value of each column takes in memory.

    Fixed-width types are exact. For others the encoded size is taken, and where a dictionary has made
    that small, the mean length of the smallest and the largest value.

    Args:
        footers: of all files.
        schema: the columns.

    Returns:
        Bytes a row, for each column.
    """
    encoded: defaultdict[str, float] = defaultdict(float)
    rows = 0
    for footer, index in _sampled(footers):
        group = footer.row_group(index)
        rows += group.num_rows
        for position in range(group.num_columns):
            column = group.column(position)
            name = column.path_in_schema.split(".")[0]
            text = _text_bytes(column.statistics) * group.num_rows
            encoded[name] += max(column.total_uncompressed_size, text) + 4 * group.num_rows
    return {
        field.name: type_bytes(field.type)
        if not _varies(field.type) or not rows or field.name not in encoded
        else encoded[field.name] / rows
        for field in schema
    }


def _sampled(footers: Sequence[pq.FileMetaData]) -> list[tuple[pq.FileMetaData, int]]:
    step = max(1, len(footers) // _SAMPLED)
    groups = [
        (footer, i) for footer in footers[::step][:_SAMPLED] for i in range(min(footer.num_row_groups, 64))
    ]
    return groups[:: max(1, len(groups) // _SAMPLED)][:_SAMPLED]


def _range(statistics: pq.Statistics) -> tuple[Any, Any]:
    try:
        return (statistics.min, statistics.max) if statistics.has_min_max else (None, None)
    except (ValueError, OverflowError):  # no Python value, as nanoseconds without pandas, or the year 30000
        return None, None


def _text_bytes(statistics: pq.Statistics | None) -> float:
    if statistics is None or not statistics.has_min_max or statistics.physical_type != "BYTE_ARRAY":
        return 0.0
    low, high = statistics.min_raw, statistics.max_raw
    return (len(low) + len(high)) / 2 if isinstance(low, str | bytes) else 0.0


def _varies(type: pa.DataType) -> bool:
    try:
        return type.bit_width < 0
    except ValueError:
        return True


@lru_cache(maxsize=64)
def _leaves(schema: pq.ParquetSchema) -> Mapping[str, int]:
    """Top-level columns that aren't nested, by name, to their index in a row group."""
    return {
        column.path: index
        for index in range(len(schema))
        if (column := schema.column(index)).max_repetition_level == 0 and column.path == column.name
    }
