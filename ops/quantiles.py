"""Quantiles: approximate ones of each group, from counts of values that are rounded to a few bits of the mantissa.

A bucket holds the numbers that round to the same one, so it is as wide as a fixed fraction of its values, and those of
few bits, as small integers, are exact. Counts of parts add up to those of the whole, in any order and exactly. A state
is a list of the buckets that have rows, ascending, with how many, beside the exact extremes: as small as the number of
distinct buckets, which is at most that of the rows, and `most_buckets` of the accuracy.

Source: Masson, Rim, Lee 2019, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
section 2, with buckets that are even between powers of two in place of logarithmic ones, as in Tene's HdrHistogram.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ParameterError
from . import reductions
from .backend import Array
from .expressions.types import decimal_integers
from .grouping import Groups

State = tuple[pa.Array, ...]

#: the type of a state's list; the names tell it from lists of users
SKETCH = pa.list_(pa.struct([("quantile bucket", pa.int32()), ("quantile rows", pa.int64())]))
#: relative error of an answer, unless another is asked for
ACCURACY = 0.01
_LEAST_ACCURACY, _MOST_ACCURACY = 1e-5, 0.25

_MANTISSA = 52
_MAGNITUDE = np.int64((1 << 63) - 1)
_INFINITE = np.int64(0x7FF << _MANTISSA)
#: digits of decimals that fit 64 bits, whatever their values
_SHORT_DECIMAL = 18
#: pairs of group and bucket that aren't many more than the values are counted in a table of all pairs
_DENSE, _FEW = 4, 4096


def check_q(q: Any) -> None:
    """Check which quantiles are asked for.

    Raises:
        ParameterError: not a number from 0 to 1, nor a few of them.
    """
    for part in q if isinstance(q, tuple) and q else (q,):
        if isinstance(part, bool) or not isinstance(part, int | float) or not 0 <= part <= 1:
            raise ParameterError(
                f"approx_quantile(q={q!r}): give a number from 0 to 1, as 0.5 for the median, or a list of them."
            )


def check_accuracy(accuracy: Any) -> None:
    """Check the relative error that is allowed.

    Raises:
        ParameterError: not a number from 0.00001 to 0.25.
    """
    known = isinstance(accuracy, int | float) and not isinstance(accuracy, bool)
    if not known or not _LEAST_ACCURACY <= accuracy <= _MOST_ACCURACY:
        raise ParameterError(
            f"approx_quantile(accuracy={accuracy!r}): give the relative error that is allowed, "
            "from 0.00001 to 0.25; 0.01 is one percent."
        )


def mantissa_bits(options: dict[str, Any]) -> int:
    """Return to how many bits of the mantissa values are rounded, so that half a bucket is within the accuracy.

    Example:
        >>> mantissa_bits({}), mantissa_bits({"accuracy": 0.001})
        (6, 9)
    """
    return max(0, math.ceil(-math.log2(options.get("accuracy", ACCURACY))) - 1)


def most_buckets(accuracy: float) -> int:
    """Return the most buckets that a group can have; each takes 12 bytes.

    A column whose values span a factor of 1000 has about 640 at the accuracy 0.01.

    Example:
        >>> most_buckets(0.01)
        262018
    """
    return 2 * ((0x7FF << mantissa_bits({"accuracy": accuracy})) + 1)


def expected_bytes(rows: float, accuracy: float) -> float:
    """Return how large the sketch of a group is expected to be, for plans.

    Args:
        rows: of the group.
        accuracy: of its quantiles.

    Returns:
        Bytes: 12 for each row, or each bucket of values that span a factor of about 1000, if these are fewer.

    Example:
        >>> expected_bytes(4, 0.01), expected_bytes(1e6, 0.01), expected_bytes(1e6, 0.001)
        (48, 7680, 61440)
    """
    return 12 * min(rows, 10 << mantissa_bits({"accuracy": accuracy}))


def quantile_type(type: pa.DataType) -> pa.DataType | None:
    """Return the type of a quantile over a column type; None if it can't have one."""
    if pa.types.is_decimal(type):
        return pa.float64()
    whole = pa.types.is_integer(type) or pa.types.is_duration(type)
    return type if whole or pa.types.is_floating(type) else None


def quantile_types(type: pa.DataType, options: dict[str, Any]) -> pa.DataType:
    """Return the type of the answer, given that of one quantile: a list for several."""
    return pa.list_(type) if isinstance(options.get("q"), tuple) else type


def state_fields(type: pa.DataType) -> tuple[tuple[str, pa.DataType], ...]:
    """The parts of a state."""
    value = quantile_type(type) or type
    return (("sketch", SKETCH), ("min", value), ("max", value))


def count_buckets(groups: Groups, column: pa.Array, options: dict[str, Any]) -> State:
    """The state of each group's rows."""
    if pa.types.is_decimal(column.type):
        column = _decimals(column)
    codes, values = groups.codes, column
    if column.null_count:
        valid = column.is_valid()
        codes, values = codes[valid.to_numpy(zero_copy_only=False)], column.filter(valid)
    buckets = bucket_numbers(_numbers(values), mantissa_bits(options))
    extremes = (reductions.extreme(groups, column, largest) for largest in (False, True))
    return (sketch_array(*tally(codes, buckets, None, groups.count)), *extremes)


def merge_counts(groups: Groups, state: State) -> State:
    """The state of each group from states of its parts."""
    sketches, *bounds = state
    starts, buckets, rows = sketch_parts(sketches)
    codes = np.repeat(groups.codes, np.diff(starts))
    extremes = (reductions.extreme(groups, part, largest) for part, largest in zip(bounds, (False, True)))
    return (sketch_array(*tally(codes, buckets, rows, groups.count)), *extremes)


def quantiles(state: State, options: dict[str, Any]) -> pa.Array:
    """The quantiles of each group; null for one that has no values."""
    sketches, low, high = state
    starts, buckets, rows = sketch_parts(sketches)
    empty = np.diff(starts) == 0
    lowest, highest = (_numbers(part.fill_null(0)) for part in (low, high))
    q = options.get("q", 0.5)
    found = [
        pick(starts, buckets, rows, (lowest, highest), one, mantissa_bits(options), np)
        for one in (q if isinstance(q, tuple) else (q,))
    ]
    if not isinstance(q, tuple):
        return _typed(found[0], low.type, empty)
    values = _typed(np.stack(found, axis=1).reshape(-1), low.type, np.repeat(empty, len(q)))
    offsets = pa.array(np.arange(len(empty) + 1, dtype=np.int32) * len(q))
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(empty))


def bucket_numbers(values: np.ndarray, bits: int) -> np.ndarray:
    """Return the bucket of each number; buckets ascend as their values do.

    Bucket 0 has zero and what rounds to it, those of negative numbers are negative, infinities and NaN have the
    outermost ones, NaN above all. No finite number rounds to an infinite one.

    Args:
        values: shape (n,), numbers; as float64 they have their buckets.
        bits: of the mantissa, from `mantissa_bits`.

    Returns:
        Shape (n,), dtype int32.

    Example:
        >>> bucket_numbers(np.array([-1.0, -0.0, 1.0, 1.3, 1.9]), 2).tolist()
        [-4092, 0, 4092, 4093, 4096]
    """
    words = values.astype(np.float64, copy=False).view(np.int64)
    magnitudes = words & _MAGNITUDE
    infinite, shift = 0x7FF << bits, _MANTISSA - bits
    buckets = ((magnitudes + (1 << (shift - 1))) >> shift).astype(np.int32)
    np.minimum(buckets, infinite - 1, out=buckets)
    strange = magnitudes >= _INFINITE
    if strange.any():
        buckets[strange] = infinite + (magnitudes[strange] > _INFINITE)
    np.negative(buckets, out=buckets, where=(words < 0) & (buckets <= infinite))
    return buckets


def centres(buckets: Array, bits: int, xp: ModuleType) -> Array:
    """Return the number that those of each bucket round to: at most a relative 2**-(bits + 1) from any of them.

    Below 2**-1022 buckets are evenly wide, so that the error is at most 2**-(1023 + bits).

    Returns:
        Shape (n,), float64: 0 of bucket 0, infinities and NaN of theirs.
    """
    words = xp.abs(buckets).astype(np.int64) << (_MANTISSA - bits)
    found = xp.where(words > _INFINITE, np.nan, words.view(np.float64))
    return xp.where(buckets < 0, -found, found)


def pick(
    starts: Array,
    buckets: Array,
    rows: Array,
    extremes: tuple[Array, Array],
    q: float,
    bits: int,
    xp: ModuleType,
) -> Array:
    """Return a quantile of each group: the value of rank floor(q * (rows - 1)), from 0, as its bucket tells it.

    The ranks of the extremes give these, and no answer is beyond them.

    Args:
        starts: where the buckets of each group begin, and the end; shape (groups + 1,), int64.
        buckets, rows: ascending within a group; shape (n,), int32 and int64.
        extremes: the smallest and the largest value of each group; shape (groups,).
        q: from 0 to 1.
        bits: of the mantissa.
        xp: NumPy or CuPy.

    Returns:
        Shape (groups,), the dtype of the extremes; 0 for a group without rows.

    Source:
        Hyndman, Fan 1996, "Sample quantiles in statistical packages"; the rank is NumPy's of ``method="lower"``.
    """
    low, high = extremes
    if not len(buckets):
        return xp.zeros(len(low), dtype=low.dtype)
    running = xp.zeros(len(rows) + 1, dtype=np.int64)
    running[1:] = xp.cumsum(rows)
    before = running[starts[:-1]]
    last = running[starts[1:]] - before - 1
    rank = xp.floor(last * q).astype(np.int64)
    places = xp.searchsorted(running[1:], before + rank, side="right")
    found = centres(buckets[xp.minimum(places, len(buckets) - 1)], bits, xp)
    answers = _within(found, low, high, xp)
    answers = xp.where(rank == last, high, xp.where(rank == 0, low, answers))
    return xp.where(last < 0, low.dtype.type(0), answers)


def _within(found: Array, low: Array, high: Array, xp: ModuleType) -> Array:
    """Numbers as the dtype of the extremes, and not beyond them; buckets of integers have integers as centres."""
    below, above = found <= low.astype(np.float64), found >= high.astype(np.float64)
    inside = xp.where(below | above, 0.0, found).astype(low.dtype)
    return xp.where(below, low, xp.where(above, high, inside))


def tally(
    codes: np.ndarray, buckets: np.ndarray, rows: np.ndarray | None, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the rows of each group and bucket.

    Args:
        codes: the group of each value; shape (n,), int64.
        buckets: shape (n,), int32.
        rows: how many rows each value stands for, int64; None is one.
        count: how many groups.

    Returns:
        As `pick` takes them: where each group begins, buckets, and rows of each.
    """
    if not len(buckets):
        return np.zeros(count + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64)
    low = int(buckets.min())
    span, most = int(buckets.max()) - low + 1, _DENSE * len(buckets) + _FEW
    places, present = (buckets - np.int32(low)).astype(np.int64), None
    if count * span > most and span <= most:  # then the buckets that are there are fewer
        marks = np.zeros(span, bool)
        marks[places] = True
        present = np.flatnonzero(marks)
        places, span = (np.cumsum(marks) - 1)[places], len(present)
    if count > 1:
        places += codes.astype(np.int64, copy=False) * span
    if count * span <= most:
        totals = np.bincount(places, weights=rows)  # exact below 2**53 rows
        found = np.flatnonzero(totals)
        totals = totals[found].astype(np.int64)
    else:
        if count * span < 1 << 31:
            places = places.astype(np.int32)  # sorted in fewer passes
        order = None if rows is None else np.argsort(places)
        ordered = np.sort(places) if order is None else places[order]
        begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        found = ordered[begins]
        if rows is None:
            totals = np.diff(begins, append=len(ordered))
        else:
            totals = np.add.reduceat(rows[order], begins)
    starts = np.searchsorted(found, np.arange(count + 1) * span)
    found = found % span if count > 1 else found
    return starts, ((found if present is None else present[found]) + low).astype(np.int32), totals


def sketch_array(starts: np.ndarray, buckets: np.ndarray, rows: np.ndarray) -> pa.Array:
    """Put the buckets of groups into lists, a `SKETCH` for each."""
    entries = pa.StructArray.from_arrays([pa.array(buckets), pa.array(rows)], fields=list(SKETCH.value_type))
    return pa.ListArray.from_arrays(pa.array(starts.astype(np.int32)), entries)


def sketch_parts(sketches: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take lists apart: where each begins, the buckets and the rows; a null is an empty one."""
    lengths = pc.list_value_length(sketches).fill_null(0).to_numpy(zero_copy_only=False)
    buckets, rows = (part.to_numpy(zero_copy_only=False) for part in pc.list_flatten(sketches).flatten())
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), buckets, rows


def _decimals(column: pa.Array) -> pa.Array:
    """Decimals as float64; short ones as a device has them."""
    type = column.type
    if not pa.types.is_decimal128(type) or type.precision > _SHORT_DECIMAL:
        return column.cast(pa.float64())
    mask = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    return pa.array(decimal_integers(column) / 10.0**type.scale, mask=mask)


def _numbers(array: pa.Array) -> np.ndarray:
    if pa.types.is_duration(array.type):
        array = array.view(pa.int64())
    elif pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    return array.to_numpy(zero_copy_only=False)


def _typed(values: np.ndarray, type: pa.DataType, empty: np.ndarray) -> pa.Array:
    array = pa.array(values, mask=empty)
    return array.view(type) if pa.types.is_duration(type) else array.cast(type)
