"""Rows on a device go to the ranges that the host's order of keys gives them."""

import decimal

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.device.arrays.range_segments import range_segments
from headwater.ops.device.table import to_device
from headwater.ops.ordering import SortKey, quantiles, segments

RNG = np.random.default_rng(19)
ROWS = 1100


def floats(rows, dtype):
    values = RNG.normal(size=rows).astype(dtype).round(1)
    for special in (np.nan, -np.nan, -0.0, 0.0, np.inf, -np.inf):
        values[RNG.random(rows) < 0.05] = special
    return values


def column(kind, rows, nulls):
    mask = RNG.random(rows) < nulls
    if kind == "string":
        words = RNG.choice(["", "a", "ab", "b", "ä", "zz", "Z"], rows).tolist()
        return pa.array(words, pa.string(), mask=mask)
    if kind == "decimal":
        values = [decimal.Decimal(int(v)) / 10 for v in RNG.integers(-30, 30, rows)]
        return pa.array(values, pa.decimal128(9, 1), mask=mask)
    if kind == "bool":
        return pa.array(RNG.random(rows) < 0.5, mask=mask)
    if kind.startswith("float"):
        return pa.array(floats(rows, kind), mask=mask, from_pandas=False)
    if kind == "date":
        return pa.array(RNG.integers(-9, 9, rows).astype(np.int32), mask=mask).cast(pa.date32())
    ends = np.iinfo(kind)
    values = RNG.integers(max(ends.min, -20), 20, rows).astype(kind)
    values[RNG.random(rows) < 0.1], values[RNG.random(rows) < 0.1] = ends.min, ends.max
    return pa.array(values, mask=mask)


KINDS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]
KINDS += ["bool", "date", "decimal", "string"]


def check(table, boundaries, keys, xp):
    expected = segments(table, boundaries, keys)
    count = boundaries.num_rows + 1
    for module in (np, xp):
        found = range_segments(to_device(table, module), boundaries, keys, count, module)
        assert found.dtype == np.min_scalar_type(count - 1)
        np.testing.assert_array_equal(found if module is np else found.get(), expected)


@pytest.mark.parametrize("nulls", [0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_one_key(kind, nulls, xp):
    table = pa.table({"x": column(kind, ROWS, nulls)})
    for key in (SortKey("x"), SortKey("x", descending=True, nulls_first=True)):
        check(table, quantiles(table[:50], np.ones(50), [key], 12), [key], xp)


@pytest.mark.parametrize("first", KINDS)
def test_more_keys(first, xp):
    second, third = RNG.choice(KINDS, 2)
    table = pa.table(
        {"a": column(first, ROWS, 0.2), "b": column(second, ROWS, 0.2), "c": column(third, ROWS, 0)}
    )
    keys = [SortKey("a", nulls_first=True), SortKey("b", descending=True), SortKey("c")]
    check(table, quantiles(table, np.ones(ROWS), keys, 300), keys, xp)


@pytest.mark.parametrize("rows", [0, 1, 257])
def test_few_rows_and_boundaries(rows, xp):
    table = pa.table({"x": column("int32", rows, 0.1), "s": column("string", rows, 1)})
    keys = [SortKey("s"), SortKey("x")]
    check(table, table.schema.empty_table(), keys, xp)
    check(table, pa.table({"x": pa.array([3], pa.int32()), "s": ["a"]}), keys, xp)
    check(table, pa.table({"x": pa.array([3], pa.int32()), "s": pa.array([None], pa.string())}), keys, xp)


def test_nulls_only_in_boundaries(xp):
    boundaries = pa.table({"x": pa.array([2, None], pa.int64())})
    check(pa.table({"x": [1, 2, 3]}), boundaries, [SortKey("x")], xp)
