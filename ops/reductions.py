"""Reductions of a column within groups: sums, extremes and distinct values.

Each result depends on its own group's values in row order alone: sums add from the first row to the
last, so that the same rows give the same bits whichever other groups stand between them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import TypeMismatchError
from .expressions.types import decimal_integers
from .grouping import Groups, comparable, group

#: integers whose sum in float64 passes this may overflow
_MARGIN = 1 - 1e-9
#: float64 adds integers below this exactly
_EXACT = 1 << 53


def sum_type(type: pa.DataType) -> pa.DataType | None:
    """Return the type of a sum over a column type, or None if it has no sum."""
    if pa.types.is_unsigned_integer(type):
        return pa.uint64()
    if pa.types.is_integer(type) or pa.types.is_boolean(type):
        return pa.int64()
    if pa.types.is_floating(type):
        return pa.float64()
    if pa.types.is_decimal256(type):
        return pa.decimal256(76, type.scale)
    if pa.types.is_decimal(type):
        return pa.decimal128(38, type.scale)
    return type if pa.types.is_duration(type) else None


def count_valid(groups: Groups, array: pa.Array) -> np.ndarray:
    """Count each group's non-null values; shape (count,), int64."""
    if not array.null_count:
        return groups.sizes
    return np.bincount(_valid(groups, array)[0], minlength=groups.count)


def _without_values(groups: Groups, array: pa.Array) -> np.ndarray | None:
    """Which groups have no value that isn't null, shape (count,), bool; None if all have one, as groups of rows do."""
    if len(groups.codes) and not array.null_count:
        return None
    return count_valid(groups, array) == 0


def add(groups: Groups, array: pa.Array) -> pa.Array:
    """Sum each group's non-null values in row order; null for a group that has none.

    Raises:
        TypeMismatchError: an integer sum doesn't fit 64 bits.
    """
    type = sum_type(array.type)
    if pa.types.is_decimal(array.type):
        if pa.types.is_decimal128(array.type) and (totals := _add_decimals(groups, array)) is not None:
            return totals
        return _by_arrow(groups, array, "sum").cast(type)
    empty = _without_values(groups, array)
    if pa.types.is_floating(type):
        return pa.array(add_floats(groups, array), mask=empty)
    codes, valid = _valid(groups, array)
    dtype = np.uint64 if pa.types.is_uint64(type) else np.int64
    _check_overflow(groups, codes, valid, dtype)
    totals = np.zeros(groups.count, dtype=dtype)
    np.add.at(totals, codes, valid.astype(dtype, copy=False))
    return pa.array(totals, mask=empty).view(type)


def add_floats(groups: Groups, array: pa.Array) -> np.ndarray:
    """Sum each group's non-null values as float64 in row order; 0 for none; shape (count,)."""
    if id(array) not in groups.sums:
        codes, values = _valid(groups, _floats(array))
        groups.sums[id(array)] = array, np.bincount(codes, weights=values, minlength=groups.count)
    return groups.sums[id(array)][1]


def _add_decimals(groups: Groups, array: pa.Array) -> pa.Array | None:
    """Sum decimals as integers of 64 bits; None if a sum may not fit these."""
    codes, numbers = groups.codes, decimal_integers(array)
    if numbers is None:
        return None
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        codes, numbers = codes[valid], numbers[valid]
    largest = max(abs(int(numbers.max())), abs(int(numbers.min()))) * len(numbers) if len(numbers) else 0
    if largest < _EXACT:
        totals = np.bincount(codes, weights=numbers, minlength=groups.count).astype(np.int64)
    elif largest < 1 << 63:
        totals = np.zeros(groups.count, dtype=np.int64)
        np.add.at(totals, codes, numbers)
    else:
        return None
    words = np.stack([totals, totals >> 63], axis=1)  # low word, then the sign
    type = pa.decimal128(38, array.type.scale)
    sums = pa.Array.from_buffers(type, groups.count, [None, pa.py_buffer(words)])
    empty = _without_values(groups, array)
    if empty is None or not empty.any():
        return sums
    return pc.if_else(pa.array(~empty), sums, pa.scalar(None, type))


def moments(groups: Groups, array: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each group's count, mean and sum of squared deviations from the mean (two passes)."""
    codes, values = _valid(groups, _floats(array))
    total = np.bincount(codes, minlength=groups.count).astype(np.float64)
    added = np.bincount(codes, weights=values, minlength=groups.count)
    mean = np.divide(added, total, out=np.zeros(groups.count), where=total > 0)
    with np.errstate(invalid="ignore", over="ignore"):
        spread = (values - (mean[0] if groups.count == 1 else mean[codes])) ** 2
    return total, mean, np.bincount(codes, weights=spread, minlength=groups.count)


def merge_moments(
    groups: Groups, counts: np.ndarray, means: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge counts, means and squared deviations of parts.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1, over
    any number of parts.
    """
    total = np.bincount(groups.codes, weights=counts, minlength=groups.count)
    weighted = np.bincount(groups.codes, weights=counts * means, minlength=groups.count)
    mean = np.divide(weighted, total, out=np.zeros(groups.count), where=total > 0)
    with np.errstate(invalid="ignore", over="ignore"):
        spread = squares + counts * (means - mean[groups.codes]) ** 2
    return total, mean, np.bincount(groups.codes, weights=spread, minlength=groups.count)


def extreme(groups: Groups, array: pa.Array, largest: bool) -> pa.Array:
    """Return each group's smallest or largest non-null value; NaN is larger than every number."""
    type = array.type
    if pa.types.is_float16(type):
        return extreme(groups, array.cast(pa.float32()), largest).cast(type)
    if pa.types.is_null(type):
        return pa.nulls(groups.count, type)
    if not _is_numeric(type):
        return _by_arrow(groups, array, "max" if largest else "min")
    codes, values = _valid(groups, comparable(array))
    empty = np.bincount(codes, minlength=groups.count) == 0
    if pa.types.is_floating(type):
        result = np.full(groups.count, -np.inf if largest else np.nan, dtype=values.dtype)
        with np.errstate(invalid="ignore"):
            (np.maximum if largest else np.fmin).at(result, codes, values)
    else:
        limits = np.iinfo(values.dtype)
        result = np.full(groups.count, limits.min if largest else limits.max, dtype=values.dtype)
        (np.maximum if largest else np.minimum).at(result, codes, values)
    found = pa.array(result, mask=empty)
    return found.cast(type) if pa.types.is_boolean(type) else found.view(type)


def pick(array: pa.Array, rows: np.ndarray) -> pa.Array:
    """Take values by row number; a negative row gives null."""
    missing = rows < 0
    return array.take(pa.array(rows, mask=missing if missing.any() else None))


def distinct_lists(groups: Groups, array: pa.Array) -> pa.Array:
    """Return each group's distinct non-null values, in order of first appearance, as a list."""
    if array.null_count:
        valid = array.is_valid()
        groups = Groups(groups.codes[valid.to_numpy(zero_copy_only=False)], groups.count)
        array = array.filter(valid)
    pairs = group([pa.array(groups.codes), array], len(array))
    owners = groups.codes[pairs.first_rows]
    order = np.argsort(owners, kind="stable")
    values = array.take(pa.array(pairs.first_rows[order]))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=groups.count))])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def merge_lists(groups: Groups, lists: pa.Array) -> pa.Array:
    """Merge each group's lists of distinct values into one."""
    owners = groups.codes[pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)]
    return distinct_lists(Groups(owners, groups.count), pc.list_flatten(lists))


def _is_numeric(type: pa.DataType) -> bool:
    return (
        pa.types.is_integer(type)
        or pa.types.is_floating(type)
        or pa.types.is_boolean(type)
        or (pa.types.is_temporal(type) and not pa.types.is_interval(type))
    )


def _floats(array: pa.Array) -> pa.Array:
    return array if pa.types.is_float64(array.type) else array.cast(pa.float64(), safe=False)


def _valid(groups: Groups, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The groups and values of the non-null rows, as NumPy numbers (None of them for other types)."""
    codes = groups.codes
    if array.null_count:
        valid = array.is_valid()
        codes, array = codes[valid.to_numpy(zero_copy_only=False)], array.filter(valid)
    return codes, _numbers(array)


def _numbers(array: pa.Array) -> np.ndarray:
    type = array.type
    if pa.types.is_boolean(type):
        array = array.cast(pa.uint8())
    elif pa.types.is_temporal(type) and not pa.types.is_interval(type):
        array = array.view(pa.int32() if type.bit_width == 32 else pa.int64())
    elif not _is_numeric(type):
        return np.empty(len(array), dtype=np.uint8)
    return array.to_numpy(zero_copy_only=False)


def _by_arrow(groups: Groups, array: pa.Array, function: str) -> pa.Array:
    """Reduce by Arrow's grouped kernels, which keep the order of the codes."""
    if not len(array):
        return pa.nulls(groups.count, sum_type(array.type) if function == "sum" else array.type)
    table = pa.table([pa.array(groups.codes), array], names=["code", "value"])
    grouped = table.group_by("code", use_threads=False).aggregate([("value", function)])
    return grouped.column(f"value_{function}").combine_chunks()


def _check_overflow(groups: Groups, codes: np.ndarray, values: np.ndarray, dtype: type) -> None:
    limit = float(np.iinfo(dtype).max)
    if not len(values) or max(abs(int(values.max())), abs(int(values.min()))) * len(values) < limit:
        return
    rough = np.bincount(codes, weights=values.astype(np.float64), minlength=groups.count)
    if np.abs(rough).max() > limit * _MARGIN:
        raise TypeMismatchError(
            f"sum: a total near {np.abs(rough).max():.3g} doesn't fit {np.dtype(dtype).name}. "
            "Sum as float64 or a decimal, as col('x').cast('float64').sum()."
        )
