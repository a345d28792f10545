"""Sources and sinks over fsspec, and deterministic synthetic data. Each format is imported when it is first used."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .arrow import ArrowSource, arrow_source
    from .csv import CsvSource, csv_source
    from .csv_dialect import NULL_VALUES
    from .files import DataFile, FileSet, find_files
    from .json import JsonSource, json_source
    from .parquet import ParquetSource, parquet_source
    from .range import RangeSource, range_source
    from .sinks import ArrowSink, CsvSink, JsonSink, ParquetSink
    from .synthetic import RidesSource, rides_source, zones_table
    from .table import TableSource, table_source
    from .text import TextSource, text_source

__all__ = [
    "NULL_VALUES",
    "ArrowSink",
    "ArrowSource",
    "CsvSink",
    "CsvSource",
    "DataFile",
    "FileSet",
    "JsonSink",
    "JsonSource",
    "ParquetSink",
    "ParquetSource",
    "RangeSource",
    "RidesSource",
    "TableSource",
    "TextSource",
    "arrow_source",
    "csv_source",
    "find_files",
    "json_source",
    "parquet_source",
    "range_source",
    "rides_source",
    "table_source",
    "text_source",
    "zones_table",
]

if not TYPE_CHECKING:  # so that type checkers know the names above, and no others
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".arrow": ["ArrowSource", "arrow_source"],
            ".csv": ["CsvSource", "csv_source"],
            ".csv_dialect": ["NULL_VALUES"],
            ".files": ["DataFile", "FileSet", "find_files"],
            ".json": ["JsonSource", "json_source"],
            ".parquet": ["ParquetSource", "parquet_source"],
            ".range": ["RangeSource", "range_source"],
            ".sinks": ["ArrowSink", "CsvSink", "JsonSink", "ParquetSink"],
            ".synthetic": ["RidesSource", "rides_source", "zones_table"],
            ".table": ["TableSource", "table_source"],
            ".text": ["TextSource", "text_source"],
        },
    )
