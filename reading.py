"""Where datasets come from: read_parquet, read_csv, … and from_arrow, from_pandas, from_numpy, range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from . import datasets
from .arguments import column_names, known_options
from .errors import ParameterError, TypeMismatchError
from .ops.scan import Scan
from .ops.source import Source
from .pipeline import Dataset

if TYPE_CHECKING:
    import pandas as pd

Paths = str | Sequence[str]


def _scan(source: Source) -> Dataset:
    return Dataset(Scan(source))


def _read(
    source: Callable[..., Source],
    function: str,
    path: Paths,
    options: Mapping[str, Any],
    columns: Sequence[str] | None = None,
) -> Dataset:
    dataset = _scan(source(path, **known_options(source, options, function)))
    return dataset if columns is None else dataset.select(*column_names(columns, function, dataset.columns))


def read_parquet(path: Paths, *, columns: Sequence[str] | None = None, **options: Any) -> Dataset:
    """Read Parquet files, split by row group.

    Args:
        path: a file, a folder (hive-partitioned or not), a glob, or a list of them; any fsspec URL.
        columns: only these, in this order. What a pipeline doesn't use is never read anyway.
        options: of `headwater.datasets.parquet_source`: ``partition_bytes`` (size in memory, in bytes, that a
            partition aims at), ``storage_options``.

    Returns:
        A dataset; the values of ``name=value`` folders are its last columns.

    Raises:
        SourceNotFoundError: nothing is there.
        SchemaMismatchError: two files differ in columns or types.
        CorruptFileError: a file isn't Parquet, or is cut short.
    """
    return _read(datasets.parquet_source, "read_parquet", path, options, columns)


def read_csv(path: Paths, *, columns: Sequence[str] | None = None, **options: Any) -> Dataset:
    """Read CSV files, split by byte range.

    Args:
        path: as in `read_parquet`.
        columns: only these, in this order.
        options: of `headwater.datasets.csv_source`: ``delimiter``, ``header``, ``schema`` (column to type, for
            all or some columns), ``null_values``, ``on_bad_line`` ("error" or "skip") and others.

    Returns:
        A dataset whose types are inferred from the start of the first file, where ``schema`` doesn't say.

    Raises:
        SourceNotFoundError, SchemaMismatchError: as in `read_parquet`.
        BadRecordError: at run time, a line that doesn't parse.
    """
    return _read(datasets.csv_source, "read_csv", path, options, columns)


def read_json(path: Paths, *, columns: Sequence[str] | None = None, **options: Any) -> Dataset:
    """Read JSON lines, split by byte range.

    Args:
        path: as in `read_parquet`.
        columns: only these, in this order.
        options: of `headwater.datasets.json_source`: ``schema``, ``on_bad_line`` and others.
    """
    return _read(datasets.json_source, "read_json", path, options, columns)


def read_arrow(path: Paths, *, columns: Sequence[str] | None = None, **options: Any) -> Dataset:
    """Read Arrow IPC files or streams (Feather too), split by record batch.

    Args:
        path: as in `read_parquet`.
        columns: only these, in this order.
        options: of `headwater.datasets.arrow_source`.
    """
    return _read(datasets.arrow_source, "read_arrow", path, options, columns)


def read_text(path: Paths, **options: Any) -> Dataset:
    """Read text files as rows of one string column, ``text``, a line each; split by byte range.

    Args:
        path: as in `read_parquet`.
        options: of `headwater.datasets.text_source`.
    """
    return _read(datasets.text_source, "read_text", path, options)


def from_arrow(
    data: pa.Table | pa.RecordBatch | Mapping[str, Any], *, partitions: int | None = None
) -> Dataset:
    """Make a dataset of an Arrow table, or of a dict of columns.

    Args:
        data: the rows; they travel with the plan, so keep them small and read large data from files.
        partitions: how many; None chooses by size.

    Example:
        >>> import headwater as hw
        >>> hw.from_arrow({"x": [1, 2]}).columns
        ['x']
    """
    if isinstance(data, Mapping):
        data = _table("from_arrow", data)
    elif isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if not isinstance(data, pa.Table):
        raise TypeMismatchError(
            f"from_arrow() takes an Arrow table or a dict of columns, not {type(data).__name__}."
            + (" Write from_pandas(...)." if type(data).__name__ == "DataFrame" else "")
        )
    return _scan(datasets.table_source(data, partitions=partitions))


def from_pandas(frame: pd.DataFrame, *, partitions: int | None = None) -> Dataset:
    """Make a dataset of a pandas DataFrame; its index is left out.

    Args:
        frame: the rows. NaN, None and NA become null: in pandas they all mean that a value is missing.
        partitions: how many; None chooses by size.
    """
    if type(frame).__name__ != "DataFrame":
        raise TypeMismatchError(
            f"from_pandas() takes a DataFrame, not {type(frame).__name__}. Write from_arrow(...) for a dict or table."
        )
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as error:
        raise TypeMismatchError(
            f"from_pandas(): {_said(error)}. Give each column values of one type."
        ) from error
    return from_arrow(table, partitions=partitions)


def from_numpy(columns: Mapping[str, np.ndarray], *, partitions: int | None = None) -> Dataset:
    """Make a dataset of NumPy arrays.

    Args:
        columns: column name to array of shape (rows,); a two-dimensional one, (rows, width), becomes a
            column of lists of that width.
        partitions: how many; None chooses by size.

    Example:
        >>> import headwater as hw, numpy as np
        >>> hw.from_numpy({"x": np.zeros(3)}).schema.field("x").type
        DataType(double)
    """
    if not isinstance(columns, Mapping):
        raise TypeMismatchError(
            f"from_numpy() takes a dict of column name to array, not {type(columns).__name__}. Write {{'x': array}}."
        )
    arrays = {name: _array(name, values) for name, values in columns.items()}
    return from_arrow(_table("from_numpy", arrays), partitions=partitions)


def _table(function: str, columns: Mapping[str, Any]) -> pa.Table:
    arrays = {}
    for name in column_names(columns, function):
        try:
            values = columns[name]
            arrays[name] = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        except (pa.ArrowException, TypeError) as error:
            raise TypeMismatchError(f"{function}(): column {name!r}: {_said(error)}.") from error
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ParameterError(f"{function}(): the columns have different lengths: {lengths}.")
    return pa.table(arrays)


def _said(error: Exception) -> str:
    return ", ".join(map(str, error.args)).rstrip(".")


def _array(name: str, values: Any) -> Any:
    values = np.asarray(values)
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    if values.ndim != 1:
        raise TypeMismatchError(
            f"from_numpy(): column {name!r} has shape {values.shape}. Give arrays of shape (rows,) or (rows, width)."
        )
    return values


def range(start: int, stop: int | None = None, step: int = 1, *, partitions: int | None = None) -> Dataset:
    """Make a dataset of consecutive integers in one column, ``id`` (int64), as Python's ``range``.

    Args:
        start, stop, step: as in Python; one argument is the stop.
        partitions: how many; None chooses by size.

    Example:
        >>> import headwater as hw
        >>> hw.range(3).compute(hw.Session("inline")).to_pydict()
        {'id': [0, 1, 2]}
    """
    if stop is None:
        start, stop = 0, start
    return _scan(datasets.range_source(start, stop, step, partitions=partitions))
