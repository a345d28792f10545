"""Batches: what a user function gets and gives, a dict of arrays, against Arrow columns.

From Arrow: floats and integers stay what they are; nulls become NaN, and make integers float64.
Dates and times with a date become datetime64 (in UTC), durations timedelta64; nulls are NaT. Booleans
with nulls, strings, decimals, times of day and nested values become object arrays with None for null;
lists of one fixed size without nulls become a second axis.

To Arrow: NaN stays NaN in a float column and is null in any other.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from .morsels import contiguous


def to_arrays(table: pa.Table, xp: ModuleType = np) -> dict[str, Any]:
    """Turn a table into a dict of arrays, writable and independent of the table.

    Args:
        table: the rows.
        xp: the array namespace; with CuPy, numbers and booleans go to the device.

    Returns:
        For each column an array of shape (rows,) or (rows, list size).

    Example:
        >>> to_arrays(pa.table({"x": [1, None], "s": ["a", None]}))
        {'x': array([ 1., nan]), 's': array(['a', None], dtype=object)}
    """
    arrays = {}
    for name, column in zip(table.column_names, table.columns):
        array = _to_numpy(contiguous(column))
        arrays[name] = xp.asarray(array) if xp is not np and array.dtype.kind in "biuf" else array
    return arrays


def to_column(value: Any, type: pa.DataType) -> pa.Array:
    """Turn what a user function gave for a column into an Arrow array of the declared type.

    Args:
        value: array of NumPy or CuPy, a list, or an Arrow array; shape (rows,), or (rows, n) for lists.
        type: the declared type.

    Raises:
        pa.ArrowInvalid, pa.ArrowTypeError, TypeError: the values don't fit the type.
    """
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return _cast(contiguous(value), type)
    array = as_numpy(value)
    if array.ndim == 0:
        raise TypeError("a single value; give one for each row, as numpy.full(rows, value)")
    if array.ndim > 1:
        return _nested(array, type)
    if array.dtype.kind == "O" or pa.types.is_nested(type):
        return pa.array(array, type=type, from_pandas=True)
    if pa.types.is_floating(type):
        return _cast(pa.array(array), type)
    return _cast(pa.array(array, from_pandas=True), type)


def column_type(value: Any) -> pa.DataType | None:
    """Return the Arrow type of an array that may be empty; None for objects, which don't tell."""
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return value.type
    array = as_numpy(value)
    if array.ndim == 2:
        return pa.list_(pa.from_numpy_dtype(array.dtype), array.shape[1])
    if array.dtype.kind == "U":
        return pa.string()
    if array.dtype.kind == "O" or array.ndim != 1:
        return None
    return pa.array(array[:0]).type


def as_numpy(value: Any) -> np.ndarray:
    """Bring an array, list or series to NumPy, from the device if it is there; strings as objects."""
    if not isinstance(value, np.ndarray) and hasattr(value, "__cuda_array_interface__"):
        value = value.get()
    array = np.asarray(value)
    if array.dtype.kind == "T":
        return array.astype("U") if not len(array) else array.astype(object)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def length_of(value: Any) -> int | None:
    """Return how many rows an array has, None for a single value."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return shape[0] if len(shape) else None
    return len(value) if hasattr(value, "__len__") and not isinstance(value, str | bytes) else None


def _to_numpy(array: pa.Array) -> np.ndarray:
    type = array.type
    if pa.types.is_fixed_size_list(type) and not array.null_count:
        inner = array.flatten()
        if not inner.null_count and _is_plain(inner.type):
            return np.array(_to_numpy(inner)).reshape(len(array), type.list_size)
    if pa.types.is_date32(type):
        days = array.view(pa.int32()).fill_null(0).to_numpy().astype("datetime64[D]")
        return _with_nat(days, array)
    if pa.types.is_date64(type):
        return _with_nat(array.view(pa.int64()).fill_null(0).to_numpy().astype("datetime64[ms]"), array)
    values = array.to_numpy(zero_copy_only=False)
    return values if values.flags.writeable and values.flags.owndata else values.copy()


def _with_nat(values: np.ndarray, array: pa.Array) -> np.ndarray:
    if array.null_count:
        values[array.is_null().to_numpy(zero_copy_only=False)] = np.datetime64("NaT")
    return values


def _is_plain(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_boolean(type)


def _nested(array: np.ndarray, type: pa.DataType) -> pa.Array:
    """Rows of a second axis as lists; more axes are flattened into it."""
    size = int(np.prod(array.shape[1:]))
    if not (pa.types.is_list(type) or pa.types.is_fixed_size_list(type)):
        raise TypeError(f"an array of shape {array.shape}; declare list_({pa.from_numpy_dtype(array.dtype)})")
    inner = to_column(array.reshape(-1), type.value_type)
    if pa.types.is_fixed_size_list(type):
        if type.list_size != size:
            raise TypeError(f"rows of {size} values")
        return pa.FixedSizeListArray.from_arrays(inner, size)
    offsets = np.arange(len(array) + 1, dtype=np.int32) * np.int32(size)
    return pa.ListArray.from_arrays(pa.array(offsets), inner)


def _cast(array: pa.Array, type: pa.DataType) -> pa.Array:
    """Cast within a family of types; a number never silently becomes a string or a date."""
    if array.type == type:
        return array
    if _family(array.type) != _family(type) and not pa.types.is_null(array.type):
        raise TypeError(str(array.type))
    return array.cast(type)


def _family(type: pa.DataType) -> str:
    if _is_plain(type) or pa.types.is_decimal(type):
        return "truth" if pa.types.is_boolean(type) else "number"
    if pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return "text"
    if pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_fixed_size_binary(type):
        return "bytes"
    if pa.types.is_date(type) or pa.types.is_timestamp(type):
        return "date"
    if pa.types.is_dictionary(type):
        return _family(type.value_type)
    return "list" if pa.types.is_nested(type) and not pa.types.is_struct(type) else str(type)
