"""Aggregations on a device: states of the same parts as in `ops.aggregations`, so that either side merges the other's.

``partial`` reduces rows to a state for each group, ``merge`` states to states, ``finish`` turns states into the
answer. Integers, counts, extremes and decimals are those of the host; float sums are added in the order of `segmented`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ....errors import TypeMismatchError
from ... import quantiles
from ...aggregations import Options
from ...backend import Array
from ...reductions import sum_type
from ..arrays.grouping import DeviceGroups
from ..arrays.key_words import ranges
from ..arrays.segmented import extremes, last_rows, spreads, sums
from ..arrays.sketches import column_of, ends_of, number_buckets, sketches_of, tally
from ..column import DeviceColumn, is_coded, physical_type
from ..crossing import staged

State = tuple[DeviceColumn, ...]

#: as on the host: integers whose sum in float64 passes this may overflow
_MARGIN = 1 - 1e-9


class TotalTooWide(Exception):
    """A sum of decimals has more than 64 bits; sums of fewer rows may not."""


@dataclass(frozen=True)
class DeviceAggregateFunction:
    """How one aggregation is computed on a device.

    Attributes:
        partial: state of each group from its rows and the options; the column is None for a count of rows.
        merge: state of each group from states of its parts, in order.
        finish: the answer of each group from its state; its type is given to it by who asks.
    """

    partial: Callable[[Reductions, DeviceColumn | None, Options], State]
    merge: Callable[[Reductions, State], State]
    finish: Callable[[State, Options, ModuleType], DeviceColumn]


class Reductions:
    """Reductions of columns within the same groups, each computed once.

    Args:
        groups: of the rows.
    """

    def __init__(self, groups: DeviceGroups):
        self.groups = groups
        self.xp = groups.xp
        self._known: dict[tuple[str, int], tuple[DeviceColumn, Array]] = {}

    def _once(self, name: str, column: DeviceColumn, compute: Callable[[DeviceColumn], Array]) -> Array:
        key = name, id(column)
        if key not in self._known:
            self._known[key] = column, compute(column)  # with the column, so that its id stays its own
        return self._known[key][1]

    def count(self, column: DeviceColumn) -> Array:
        """Count each group's values that aren't null; shape (count,), int64."""
        if column.valid is None:
            return self.groups.sizes
        return self._once("count", column, lambda c: self.groups.count_valid(c.valid))

    def some(self, column: DeviceColumn) -> Array | None:
        """Return which groups have a value that isn't null, shape (count,), bool; None if all have."""
        return None if column.valid is None else self.count(column) > 0

    def floats(self, column: DeviceColumn) -> Array:
        """Return the values as floats; shape (rows,)."""
        return self._once("floats", column, _floats)

    def float_sum(self, column: DeviceColumn) -> Array:
        """Sum each group's values as float64; 0 for none; shape (count,)."""
        return self._once("float sum", column, lambda c: sums(self.floats(c), self.groups))

    def sum(self, column: DeviceColumn) -> DeviceColumn:
        """Sum each group's values; null for a group that has none.

        Raises:
            TypeMismatchError: an integer sum doesn't fit 64 bits.
            TotalTooWide: nor does one of decimals.
        """
        type = sum_type(column.type)
        assert type is not None
        if pa.types.is_floating(type):
            return DeviceColumn(type, self.float_sum(column), self.some(column))
        self._check_overflow(column, type)
        return DeviceColumn(type, sums(column.values, self.groups), self.some(column))

    def moments(self, column: DeviceColumn) -> tuple[Array, Array, Array]:
        """Return each group's count, mean and sum of squared deviations from the mean, float64 (two passes)."""
        count = self.count(column).astype(np.float64)
        mean = quotient(self.float_sum(column), count, self.xp)
        return count, mean, spreads(self.floats(column), column.valid, mean, self.groups)

    def extreme(self, column: DeviceColumn, largest: bool) -> DeviceColumn:
        """Return each group's smallest or largest value that isn't null; NaN is larger than every number."""
        if is_coded(column.type):
            return self._extreme_code(column, largest)
        some = self.some(column)
        found = extremes(column.values, column.valid, self.groups, largest)
        return replace(column, values=blank(found, some, self.xp), valid=some)

    def _extreme_code(self, column: DeviceColumn, largest: bool) -> DeviceColumn:
        """Strings by their rank in the dictionary, which the host sorts."""
        some, words = self.some(column), column.dictionary
        assert words is not None
        if not len(words):
            return column.take(self.groups.first_rows)
        order = pc.sort_indices(words).to_numpy().astype(np.int32)
        ranks = np.empty_like(order)
        ranks[order] = np.arange(len(order), dtype=np.int32)
        best = extremes(staged(self.xp, ranks)[column.values], column.valid, self.groups, largest)
        codes = staged(self.xp, order)[blank(best, some, self.xp)]
        return replace(column, values=blank(codes, some, self.xp), valid=some)

    def _check_overflow(self, column: DeviceColumn, type: pa.DataType) -> None:
        """As on the host: the rough sums of integers that may not fit 64 bits tell."""
        dtype = column.values.dtype
        limit = float(np.iinfo(np.uint64 if dtype == np.uint64 else np.int64).max)
        rows = len(column)
        if dtype.itemsize < 8 and rows << 8 * dtype.itemsize < limit:
            return
        ((low, size),) = ranges([column], self.xp)
        if max(abs(low), abs(low + size - 1)) * rows < limit:
            return
        rough = sums(column.values.astype(np.float64), self.groups)
        largest = float(abs(rough).max())
        if largest <= limit * _MARGIN:
            return
        if pa.types.is_decimal(type):
            raise TotalTooWide
        raise TypeMismatchError(
            f"sum: a total near {largest:.3g} doesn't fit {'uint64' if dtype == np.uint64 else 'int64'}. "
            "Sum as float64 or a decimal, as col('x').cast('float64').sum()."
        )


def blank(values: Array, known: Array | None, xp: ModuleType) -> Array:
    """Return values with 0 where they aren't known; ``known`` is None where all are."""
    return values if known is None else xp.where(known, values, values.dtype.type(0))


def quotient(values: Array, counts: Array, xp: ModuleType) -> Array:
    """Return values over counts, 0 where the count is 0 or less; shape (n,), float64."""
    return blank(values / xp.maximum(counts, 1), counts > 0, xp)


def unsupported(function: str, type: pa.DataType | None) -> str | None:
    """Return why a device doesn't compute an aggregation over a type (None: of rows); None if it does.

    Example:
        >>> unsupported("n_unique", pa.int64()), unsupported("sum", pa.int64())
        ('n_unique keeps lists, which have no form there', None)
    """
    if function not in DEVICE_AGGREGATIONS:
        return f"{function} keeps lists, which have no form there"
    if type is None:
        return None
    if physical_type(type) is None:
        return f"{function} of {type} has no form there"
    if function in ("min", "max") and pa.types.is_dictionary(type):
        return f"{function} of {type} has no order there"
    return None


def _floats(column: DeviceColumn) -> Array:
    values = column.values
    if values.dtype.kind == "f":
        return values
    values = values.astype(np.float64)
    return values / 10.0**column.type.scale if pa.types.is_decimal(column.type) else values


def _plain(reduce: Callable[[Reductions, DeviceColumn | None], State]) -> Callable[..., State]:
    """A reduction of rows that has no options."""
    return lambda r, column, options: reduce(r, column)


def _column(type: pa.DataType, values: Array, valid: Array | None = None) -> DeviceColumn:
    return DeviceColumn(type, values, valid)


def _counted(r: Reductions, column: DeviceColumn | None) -> State:
    return (_column(pa.int64(), r.groups.sizes if column is None else r.count(column)),)


def _merge_count(r: Reductions, state: State) -> State:
    return (_column(pa.int64(), sums(state[0].values, r.groups)),)


def _sum(r: Reductions, column: DeviceColumn | None) -> State:
    assert column is not None
    return (r.sum(column),)


def _mean(r: Reductions, column: DeviceColumn | None) -> State:
    assert column is not None
    if pa.types.is_decimal(column.type):
        return (*_sum(r, column), *_counted(r, column))
    return (_column(pa.float64(), r.float_sum(column)), *_counted(r, column))


def _finish_mean(state: State, options: Options, xp: ModuleType) -> DeviceColumn:
    total, count = state
    return _column(pa.float64(), quotient(_floats(total), count.values, xp), count.values > 0)


def _moments(r: Reductions, column: DeviceColumn | None) -> State:
    assert column is not None
    return tuple(_column(pa.float64(), part) for part in r.moments(column))


def _merge_moments(r: Reductions, state: State) -> State:
    """As `reductions.merge_moments`.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1, over any number of
    parts.
    """
    counts, means, squares = (part.values for part in state)
    with np.errstate(invalid="ignore", over="ignore"):
        total = sums(counts, r.groups)
        mean = quotient(sums(counts * means, r.groups), total, r.xp)
        distances = means - mean[r.groups.codes]
        spread = sums(squares + counts * (distances * distances), r.groups)
    return tuple(_column(pa.float64(), part) for part in (total, mean, spread))


def _variance(root: bool) -> DeviceAggregateFunction:
    def finish(state: State, options: Options, xp: ModuleType) -> DeviceColumn:
        freedom = state[0].values - options.get("ddof", 1)
        variance = quotient(state[2].values, freedom, xp)
        return _column(pa.float64(), xp.sqrt(variance) if root else variance, freedom > 0)

    return DeviceAggregateFunction(_plain(_moments), _merge_moments, finish)


def _picked(pick: Callable[[Reductions, DeviceColumn], DeviceColumn]) -> DeviceAggregateFunction:
    """What picks a value of each group, from rows as from states."""

    def partial(r: Reductions, column: DeviceColumn | None) -> State:
        assert column is not None
        return (pick(r, column),)

    return DeviceAggregateFunction(_plain(partial), lambda r, state: partial(r, state[0]), _first_part)


def _count_buckets(r: Reductions, column: DeviceColumn | None, options: Options) -> State:
    """As `quantiles.count_buckets`, whose integers these are."""
    assert column is not None
    if pa.types.is_decimal(column.type):
        column = DeviceColumn(pa.float64(), blank(r.floats(column), column.valid, r.xp), column.valid)
    numbered = number_buckets(column.values, column.valid, quantiles.mantissa_bits(options), r.xp)
    sketches = tally(r.groups.codes, numbered, None, r.groups.count, r.xp)
    return (column_of(sketches), *(r.extreme(column, largest) for largest in (False, True)))


def _merge_buckets(r: Reductions, state: State) -> State:
    sketches = sketches_of(state[0], r.xp)
    numbered = (sketches.buckets, *ends_of(sketches.buckets, r.xp))
    merged = tally(r.groups.codes[sketches.owners()], numbered, sketches.rows, r.groups.count, r.xp)
    return (column_of(merged), r.extreme(state[1], False), r.extreme(state[2], True))


def _finish_quantile(state: State, options: Options, xp: ModuleType) -> DeviceColumn:
    found, (low, high) = sketches_of(state[0], xp), state[1:]
    with np.errstate(invalid="ignore"):
        answers = quantiles.pick(
            found.starts,
            found.buckets,
            found.rows,
            (low.values, high.values),
            options.get("q", 0.5),
            quantiles.mantissa_bits(options),
            xp,
        )
    return _column(low.type, answers, low.valid)


def _first_part(state: State, options: Options, xp: ModuleType) -> DeviceColumn:
    return state[0]


#: the aggregations of `ops.aggregations` that a device computes; the others keep lists
DEVICE_AGGREGATIONS: dict[str, DeviceAggregateFunction] = {
    "sum": DeviceAggregateFunction(_plain(_sum), lambda r, state: _sum(r, state[0]), _first_part),
    "mean": DeviceAggregateFunction(
        _plain(_mean), lambda r, state: (*_sum(r, state[0]), *_merge_count(r, state[1:])), _finish_mean
    ),
    "var": _variance(root=False),
    "std": _variance(root=True),
    "min": _picked(lambda r, column: r.extreme(column, largest=False)),
    "max": _picked(lambda r, column: r.extreme(column, largest=True)),
    "count": DeviceAggregateFunction(_plain(_counted), _merge_count, _first_part),
    "first": _picked(lambda r, column: column.take(r.groups.first_rows)),
    "last": _picked(lambda r, column: column.take(last_rows(r.groups))),
    "approx_quantile": DeviceAggregateFunction(_count_buckets, _merge_buckets, _finish_quantile),
}


def of_nothing(type: pa.DataType, nothing: Any, xp: ModuleType) -> DeviceColumn:
    """Return a column of one row: the answer of a global aggregation of no rows."""
    dtype = physical_type(type)
    assert dtype is not None
    dictionary = pa.array([], pa.string()) if is_coded(type) else None
    values = xp.full(1, nothing or 0, dtype=dtype)
    return DeviceColumn(type, values, None if nothing is not None else xp.zeros(1, dtype=bool), dictionary)


def typed(columns: Sequence[DeviceColumn], schema: pa.Schema) -> tuple[DeviceColumn, ...]:
    """Give columns the types of a schema, which have the same form."""
    return tuple(replace(column, type=field.type) for column, field in zip(columns, schema))
