"""DeviceColumn: one column as arrays of the namespace in use, and its way from Arrow and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import TypeMismatchError
from ..backend import Array
from ..morsels import contiguous
from ..quantiles import SKETCH
from .crossing import fetched, staged

#: digits of decimals that fit 64 bits
SHORT_DECIMAL = 18


@dataclass(frozen=True)
class DeviceColumn:
    """A column of numbers, or of what numbers stand for.

    Attributes:
        type: the Arrow type it has on the host.
        values: shape (rows,), dtype `physical_type` of ``type``; 0 under nulls. Unscaled integers for decimals,
            codes into ``dictionary`` for strings and sketches of quantiles.
        valid: shape (rows,), dtype bool, False where the column is null; None is nowhere.
        dictionary: distinct values, on the host, that the codes stand for; for sketches any, or `Sketches`; None for
            other types.
    """

    type: pa.DataType
    values: Array
    valid: Array | None = None
    dictionary: pa.Array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the device; with these rows' part of sketches, wherever they are."""
        size = int(self.values.nbytes) + (0 if self.valid is None else int(self.valid.nbytes))
        if self.type == SKETCH and self.dictionary is not None and len(self.dictionary):
            size += self.dictionary.nbytes * len(self) // len(self.dictionary)
        return size

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def slice(self, start: int, stop: int) -> DeviceColumn:
        """Return rows from ``start`` up to ``stop``, without a copy."""
        valid = None if self.valid is None else self.valid[start:stop]
        return replace(self, values=self.values[start:stop], valid=valid)

    def take(self, rows: Array) -> DeviceColumn:
        """Return the rows of an index, shape (n,), any integer dtype; each index must be a row."""
        valid = None if self.valid is None else self.valid[rows]
        return replace(self, values=self.values[rows], valid=valid)


def physical_type(type: pa.DataType) -> np.dtype | None:
    """Return the dtype that a column's values have on a device; None if it has no place there.

    Example:
        >>> physical_type(pa.date32()), physical_type(pa.string()), physical_type(pa.list_(pa.int8()))
        (dtype('int32'), dtype('int32'), None)
    """
    if pa.types.is_boolean(type):
        return np.dtype(bool)
    if pa.types.is_integer(type) or pa.types.is_float32(type) or pa.types.is_float64(type):
        return np.dtype(type.to_pandas_dtype())
    if pa.types.is_date32(type) or pa.types.is_time32(type):
        return np.dtype(np.int32)
    if pa.types.is_temporal(type) and not pa.types.is_interval(type):
        return np.dtype(np.int64)
    if pa.types.is_decimal128(type):
        return np.dtype(np.int64) if type.precision <= SHORT_DECIMAL else None
    if has_dictionary(type):
        return np.dtype(np.int32)
    return None


def has_dictionary(type: pa.DataType) -> bool:
    """Whether values are codes into a dictionary: of strings, and of sketches of quantiles, which may repeat there."""
    return is_coded(type) or type == SKETCH


def is_coded(type: pa.DataType) -> bool:
    """Whether a type travels as codes: strings, and dictionaries of strings."""
    if pa.types.is_dictionary(type):
        return is_coded(type.value_type)
    return pa.types.is_string(type) or pa.types.is_large_string(type)


def to_device(column: pa.Array | pa.ChunkedArray, xp: ModuleType) -> DeviceColumn:
    """Bring a column to the device.

    Args:
        column: of a type that `physical_type` knows.
        xp: NumPy or CuPy.

    Raises:
        TypeMismatchError: the type has no place on a device.

    Example:
        >>> column = to_device(pa.array(["b", None, "b"]), np)
        >>> column.values.tolist(), column.valid.tolist(), column.dictionary.to_pylist()
        ([0, 0, 0], [True, False, True], ['b'])
    """
    array = contiguous(column)
    dtype = physical_type(array.type)
    if dtype is None:
        raise TypeMismatchError(f"a column of {array.type} has no form on a GPU. Cast it to numbers first.")
    valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    dictionary = None
    type = array.type
    if type == SKETCH:
        array, dictionary = pa.array(np.arange(len(array), dtype=np.int32)), array
    elif is_coded(type):
        if not pa.types.is_dictionary(type):
            array = array.dictionary_encode()
        array, dictionary = array.indices, array.dictionary
    values = _plain(array, dtype)
    if valid is not None:
        values = np.where(valid, values, dtype.type(0))
    return DeviceColumn(
        type,
        staged(xp, values),
        None if valid is None else staged(xp, valid),
        dictionary,
    )


def to_arrow(column: DeviceColumn) -> pa.Array:
    """Bring a column back to the host, as the type it had there.

    Example:
        >>> to_arrow(to_device(pa.array([1, None]), np)).to_pylist()
        [1, None]
    """
    values = np.ascontiguousarray(fetched(column.values))
    mask = None if column.valid is None else ~fetched(column.valid)
    if mask is not None and not mask.any():
        mask = None
    type = column.type
    if is_coded(type):
        codes = pa.array(values, pa.int32(), mask=mask)
        assert column.dictionary is not None
        if pa.types.is_dictionary(type):
            return pa.DictionaryArray.from_arrays(codes.cast(type.index_type), column.dictionary)
        return column.dictionary.take(codes)
    if type == SKETCH:
        assert column.dictionary is not None
        lists = column.dictionary if isinstance(column.dictionary, pa.Array) else column.dictionary.to_arrow()
        return lists.take(pa.array(values, mask=mask))
    if pa.types.is_decimal(type):
        words = np.empty((len(values), 2), np.int64)
        words[:, 0], words[:, 1] = values, values >> 63
        return pa.Array.from_buffers(type, len(values), [_bitmap(mask), pa.py_buffer(words)])
    if pa.types.is_boolean(type):
        return pa.array(values, type, mask=mask)
    return pa.Array.from_buffers(type, len(values), [_bitmap(mask), pa.py_buffer(values)])


def unified(columns: Sequence[DeviceColumn], xp: ModuleType) -> list[DeviceColumn]:
    """Give coded columns one dictionary, so that equal codes mean equal values; other columns are as they were.

    Values stand in the dictionary in the order in which the columns' dictionaries bring them.
    """
    if not columns or not is_coded(columns[0].type):
        return list(columns)
    first = columns[0].dictionary
    assert first is not None
    if all(column.dictionary is first or column.dictionary.equals(first) for column in columns):
        return list(columns)
    every = pa.chunked_array([column.dictionary for column in columns])
    whole = every.unique()
    result = []
    for column in columns:
        codes = pc.index_in(column.dictionary, whole).to_numpy(zero_copy_only=False).astype(np.int32)
        if not len(codes):
            codes = np.zeros(1, np.int32)
        values = (codes if xp is np else xp.asarray(codes))[column.values]
        if column.valid is not None:
            values = xp.where(column.valid, values, np.int32(0))
        result.append(replace(column, values=values, dictionary=whole))
    return result


def joined(columns: Sequence[DeviceColumn], xp: ModuleType) -> DeviceColumn:
    """Put columns of one type behind each other."""
    if len(columns) == 1:
        return columns[0]
    if columns[0].type == SKETCH:
        from .arrays.sketches import joined as joined_sketches

        return joined_sketches(columns, xp)
    columns = unified(columns, xp)
    valid = None
    if any(column.valid is not None for column in columns):
        valid = xp.concatenate([xp.ones(len(c), dtype=bool) if c.valid is None else c.valid for c in columns])
    return replace(columns[0], values=xp.concatenate([c.values for c in columns]), valid=valid)


def _plain(array: pa.Array, dtype: np.dtype) -> np.ndarray:
    """The values as they lie in memory, whatever is under nulls; a view where there is one."""
    type = array.type
    if pa.types.is_boolean(type):
        return array.fill_null(False).to_numpy(zero_copy_only=False)
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros(len(array), dtype)
    start, stop = array.offset, array.offset + len(array)
    if pa.types.is_decimal(type):
        return np.frombuffer(data, "<i8")[2 * start : 2 * stop : 2].copy()
    width = np.dtype(f"<i{type.bit_width // 8}") if not pa.types.is_floating(type) else dtype
    if pa.types.is_integer(type):
        width = np.dtype(type.to_pandas_dtype())
    return np.frombuffer(data, width)[start:stop].astype(dtype, copy=False)


def _bitmap(mask: np.ndarray | None) -> pa.Buffer | None:
    return None if mask is None else pa.py_buffer(np.packbits(~mask, bitorder="little"))
