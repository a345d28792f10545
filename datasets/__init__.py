"""Sources and sinks over fsspec, and deterministic synthetic data."""

from __future__ import annotations

from .arrow import arrow_source
from .csv import csv_source
from .json import json_source
from .parquet import parquet_source
from .range import range_source
from .synthetic import rides_source, zones_table
from .table import table_source
from .text import text_source

__all__ = [
    "arrow_source",
    "csv_source",
    "json_source",
    "parquet_source",
    "range_source",
    "rides_source",
    "table_source",
    "text_source",
    "zones_table",
]
