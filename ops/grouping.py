"""Groups: rows with equal key values get one number, in order of first appearance.

Null is a value like any other, all NaN are one value, and -0.0 equals 0.0. Nested values are equal if
their parts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .key_table import DirectTable, most_slots
from .morsels import contiguous

#: numbers of a range up to so many times the rows are told apart by an array of slots
_SPARSE = 4
#: few values have all appeared within so many rows
_HEAD = 4096


@dataclass(frozen=True)
class Groups:
    """Which group each row is in.

    Attributes:
        codes: the group of each row; shape (rows,), int64, numbered by first appearance.
        count: how many groups. A group without rows is legal: a global aggregation of nothing.
        sums: of columns that were summed up already, with the column, by its id; `reductions.add_floats` keeps them,
            as a sum and a mean of one column are often asked for together.
    """

    codes: np.ndarray
    count: int
    sums: dict[int, tuple[pa.Array, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def sizes(self) -> np.ndarray:
        """How many rows each group has; shape (count,), int64."""
        return np.bincount(self.codes, minlength=self.count)

    @cached_property
    def first_rows(self) -> np.ndarray:
        """The first row of each group, -1 for one without rows; shape (count,), int64."""
        rows = np.full(self.count, -1, dtype=np.int64)
        head = self.codes[:_HEAD]
        codes = head if len(head) and head.max() == self.count - 1 else self.codes
        rows[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
        return rows

    @cached_property
    def last_rows(self) -> np.ndarray:
        """The last row of each group, -1 for one without rows; shape (count,), int64."""
        rows = np.full(self.count, -1, dtype=np.int64)
        rows[self.codes] = np.arange(len(self.codes))
        return rows


def group(columns: Sequence[pa.ChunkedArray | pa.Array], rows: int) -> Groups:
    """Number the groups of equal rows.

    Args:
        columns: the keys, each of ``rows`` values; none puts all rows in one group.
        rows: how many rows.

    Returns:
        The groups; none for no rows.

    Example:
        >>> group([pa.array(["b", "a", "b", None])], 4).codes.tolist()
        [0, 1, 0, 2]
    """
    if not columns or not rows:
        return Groups(np.zeros(rows, dtype=np.int64), min(rows, 1))
    arrays = [contiguous(column) for column in columns]
    if len(arrays) > 1 and (places := _few_places(arrays)) is not None:
        return _number_places(*places)
    groups = _encode(arrays[0])
    for array in arrays[1:]:
        (codes, count), (more, size) = _pair(groups), encode(array)
        pairs = codes * size + more
        if count * size <= _SPARSE * rows:
            groups = _number_places(pairs, count * size)
        elif max(count, size) > rows // 4:
            groups = _number(_firsts_by_sorting(pairs))  # faster than a hash table of many values
        else:
            groups = _encode(pa.array(pairs))
    return groups


def encode(array: pa.Array) -> tuple[np.ndarray, int]:
    """Replace values by their number in order of first appearance.

    Args:
        array: values of any type; a dictionary's values are distinct.

    Returns:
        The numbers, shape (rows,), int64, and how many distinct values there are.
    """
    return _pair(_encode(array))


def _encode(array: pa.Array) -> Groups:
    type = array.type
    if pa.types.is_struct(type):
        flags = array.is_valid()
        return group([flags, *array.flatten()], len(array))
    if _is_listlike(type):
        array = _list_bytes(array)
    elif pa.types.is_dictionary(type):
        return _number_places(*_dictionary_places(array))
    elif pa.types.is_null(type):
        return Groups(np.zeros(len(array), dtype=np.int64), min(len(array), 1))
    elif pa.types.is_interval(type):
        array = pa.array([repr(value) for value in array.to_pylist()])
    elif is_integral(type) and (places := _places(array)) is not None:
        return _number_places(*places)
    encoded = pc.dictionary_encode(comparable(array), null_encoding="encode")
    return Groups(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary))


def comparable(array: pa.Array) -> pa.Array:
    """Bring floats to one representation of each value: no -0.0, one NaN; half floats become single."""
    if not pa.types.is_floating(array.type):
        return array
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    mask = null_mask(array)
    values = array.to_numpy(zero_copy_only=False) + array.type.to_pandas_dtype()(0)
    values[np.isnan(values)] = np.nan
    return pa.array(values, type=array.type, mask=mask)


def is_integral(type: pa.DataType) -> bool:
    """Return whether values are integers, or booleans, dates and times that stand for integers."""
    return (
        pa.types.is_integer(type)
        or pa.types.is_boolean(type)
        or (pa.types.is_temporal(type) and not pa.types.is_interval(type))
    )


def integers(array: pa.Array) -> np.ndarray:
    """Return the integers of such values, int64, 0 for null; equal values, and only those, are equal."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    elif pa.types.is_temporal(array.type):
        array = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    if array.null_count:
        array = array.fill_null(0)
    return array.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def null_mask(array: pa.Array) -> np.ndarray | None:
    """Return which values are null, shape (rows,), bool; None if none is."""
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


def _pair(groups: Groups) -> tuple[np.ndarray, int]:
    return groups.codes, groups.count


def _places(array: pa.Array) -> tuple[np.ndarray, int] | None:
    """Values as places from 1 on, 0 for null, and how many places there are; None if too many."""
    if array.null_count == len(array):
        return None
    values, nulls = integers(array), null_mask(array)
    known = values if nulls is None else values[~nulls]
    low, high = int(known.min()), int(known.max())
    if high - low + 2 > most_slots(len(array)):
        return None
    places = values - low + 1
    if nulls is not None:
        places[nulls] = 0
    return places, high - low + 2


def _dictionary_places(array: pa.Array) -> tuple[np.ndarray, int]:
    """Values as places, the last one for null if there is any, and how many places there are."""
    size, nulls = len(array.dictionary), null_mask(array)
    if nulls is None:
        return array.indices.to_numpy(zero_copy_only=False).astype(np.int64), size
    places = array.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    places[nulls] = size
    return places, size + 1


def _few_places(arrays: Sequence[pa.Array]) -> tuple[np.ndarray, int] | None:
    """Rows of dictionaries' values as places, and how many there are; None if there are others, or many values.

    So few values needn't be numbered column by column.
    """
    rows, size = len(arrays[0]), 1
    for array in arrays:
        if not pa.types.is_dictionary(array.type):
            return None
        size *= len(array.dictionary) + 1
    if 8 * size > rows:
        return None
    places, _ = _dictionary_places(arrays[0])
    for array in arrays[1:]:
        more, count = _dictionary_places(array)
        places *= count
        places += more
    return places, size


def _number_places(places: np.ndarray, size: int) -> Groups:
    """Number rows by first appearance of their places, which are below ``size``."""
    rows = len(places)
    if size > _SPARSE * rows:
        return _number(DirectTable(places, 0, size).firsts)
    firsts: np.ndarray = np.full(size, rows, dtype=np.int32 if rows < 1 << 31 else np.int64)
    numbers = np.empty(size, dtype=np.int64)  # not touched where it isn't used
    if 8 * size > rows:
        # of equal places, the first row is written last
        firsts[places[::-1]] = np.arange(rows - 1, -1, -1, dtype=firsts.dtype)
        if 4 * size > 3 * rows:  # then one more table of that size costs more than passes over the rows
            return _number(firsts[places])
        is_first = np.zeros(rows + 1, dtype=bool)
        is_first[firsts] = True  # the last one stands for places without rows
        first_rows = np.flatnonzero(is_first[:rows])
        numbers[places[first_rows]] = np.arange(len(first_rows))
        return _numbered(numbers[places], first_rows)
    present = np.flatnonzero(np.bincount(places, minlength=size))
    for some in (places[:_HEAD], places):
        firsts[some[::-1]] = np.arange(len(some) - 1, -1, -1)
        if (firsts[present] < rows).all():
            break
    order = np.argsort(firsts[present])
    numbers[present[order]] = np.arange(len(present))
    return _numbered(numbers[places], firsts[present[order]].astype(np.int64))


def _firsts_by_sorting(values: np.ndarray) -> np.ndarray:
    """For each row, the first row of the same value."""
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    firsts = np.empty_like(order)
    firsts[order] = np.repeat(np.minimum.reduceat(order, starts), np.diff(np.append(starts, len(order))))
    return firsts


def _number(firsts: np.ndarray) -> Groups:
    """Number rows by first appearance, given the first row that is equal to each."""
    is_first = firsts == np.arange(len(firsts), dtype=firsts.dtype)
    numbers = np.cumsum(is_first) - 1
    return _numbered(numbers[firsts], np.flatnonzero(is_first))


def _numbered(codes: np.ndarray, first_rows: np.ndarray) -> Groups:
    """Groups of which the first rows are known."""
    groups = Groups(codes, len(first_rows))
    vars(groups)["first_rows"] = first_rows
    return groups


def _is_listlike(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_fixed_size_list(type) or pa.types.is_map(type)


def _list_bytes(array: pa.Array) -> pa.Array:
    """Turn each list into a binary value: its elements' codes, eight bytes each."""
    lengths = pc.list_value_length(_as_list(array)).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) * 8
    codes, _ = encode(pc.list_flatten(_as_list(array)))
    raw = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(array), [None, pa.py_buffer(offsets), pa.py_buffer(codes)]
    )
    return pc.if_else(array.is_valid(), raw, pa.scalar(None, pa.large_binary())) if array.null_count else raw


def _as_list(array: pa.Array) -> pa.Array:
    if not pa.types.is_map(array.type):
        return array
    entry = pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])
    return array.cast(pa.list_(entry))
