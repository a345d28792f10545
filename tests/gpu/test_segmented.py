"""Reductions by group on a device have the bits of their NumPy twins, and the values of pandas."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headwater.ops.backend import to_host
from headwater.ops.device.arrays import segmented
from headwater.ops.device.arrays.grouping import DeviceGroups, group
from headwater.ops.device.column import DeviceColumn, to_device

RNG = np.random.default_rng(11)
#: rows and groups: of a global sum, of lanes, of runs in one and several ranges, of chunks
SHAPES = [
    (1, 1),
    (4097, 1),
    (9000, 16),
    (5000, 17),
    (12_345, 600),
    (9001, 2048),
    (12_000, 2600),
    (3000, 3000),
]


def groups_of(codes, xp):
    return group([to_device(pa.array(codes), xp)], len(codes), xp)


def spread_codes(rows, count):
    codes = RNG.integers(0, count, rows)
    codes[RNG.random(rows) < 0.3] = 0  # one group has far more rows
    return np.where(np.arange(rows) < count, np.arange(rows), codes)


def on_both(function, codes, xp):
    here, there = groups_of(codes, np), groups_of(codes, xp)
    expected, found = function(here, np.asarray), to_host(function(there, xp.asarray))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(f"u{found.itemsize}"), expected.view(f"u{found.itemsize}"))
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("rows", "count"), SHAPES)
def test_float_sums(rows, count, dtype, xp):
    codes = spread_codes(rows, count)
    values = (RNG.normal(size=rows) * 10.0 ** RNG.integers(-6, 7, rows)).astype(dtype)
    found = on_both(lambda groups, there: segmented.sums(there(values), groups), codes, xp)
    expected = pd.Series(values.astype(np.float64)).groupby(codes, sort=False).sum()
    scale = pd.Series(np.abs(values.astype(np.float64))).groupby(codes, sort=False).sum()
    assert (np.abs(found - expected) <= 1e-13 * scale).all()


@pytest.mark.parametrize("count", [1, 16, 40, 2049])
def test_sums_of_what_is_no_number(count, xp):
    codes = spread_codes(5000, count)
    values = RNG.choice([-0.0, 0.0, np.inf, -np.inf, np.nan, 1.7e308, 1.0], 5000, p=[0.4, 0.4, *[0.04] * 5])
    here, there = groups_of(codes, np), groups_of(codes, xp)
    expected = segmented.sums(values, here)
    found = to_host(segmented.sums(xp.asarray(values), there))
    np.testing.assert_array_equal(found, expected)
    assert not np.signbit(found[found == 0]).any()


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (4097, 1), (9000, 16), (6000, 300), (5000, 1500)])
def test_integers(rows, count, dtype, xp):
    codes = spread_codes(rows, count)
    if dtype == "bool":
        values = RNG.random(rows) < 0.3
    else:
        limits = np.iinfo(dtype)
        values = RNG.integers(limits.min, limits.max, rows, dtype=dtype, endpoint=True)
        values[: min(2, rows)] = [limits.min, limits.max][: min(2, rows)]
    found = on_both(lambda groups, there: segmented.sums(there(values), groups), codes, xp)
    with np.errstate(over="ignore"):
        whole = values.astype(found.dtype)
        expected = [np.add.reduce(whole[codes == code]) for code in np.arange(count)]
    np.testing.assert_array_equal(found, expected)
    for largest in (False, True):
        check_extremes(values, None, codes, largest, xp)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint64", "bool"])
@pytest.mark.parametrize("count", [1, 30, 1700])
def test_extremes_leave_nulls_out(count, dtype, xp):
    codes = spread_codes(4000, count)
    some = RNG.choice([-0.0, 0.0, np.nan, np.inf, -np.inf, -5e-324, 1.5, -2.5], 4000)
    values = some.astype(dtype) if dtype.startswith("float") else RNG.integers(0, 2, 4000).astype(dtype)
    valid = RNG.random(4000) < 0.4
    values = np.where(valid, values, values.dtype.type(0))
    for largest in (False, True):
        check_extremes(values, valid, codes, largest, xp)


def check_extremes(values, valid, codes, largest, xp):
    found = on_both(
        lambda groups, there: segmented.extremes(
            there(values), None if valid is None else there(valid), groups, largest
        ),
        codes,
        xp,
    )
    valid = np.ones(len(values), bool) if valid is None else valid
    for code in np.unique(codes[valid])[:200]:
        mine = np.sort(values[valid & (codes == code)])  # NaN last
        assert np.array_equal(found[code], mine[-1 if largest else 0], equal_nan=found.dtype.kind == "f")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("count", [1, 16, 700, 2100])
def test_spreads(count, dtype, xp):
    codes, valid = spread_codes(9000, count), RNG.random(9000) < 0.7
    values = np.where(valid, RNG.normal(size=9000), 0).astype(dtype)
    means = RNG.normal(size=count)
    terms = np.where(valid, (values - means[codes]) ** 2, 0)
    expected = pd.Series(terms).groupby(codes, sort=False).sum()
    found = on_both(
        lambda groups, there: segmented.spreads(there(values), there(valid), there(means), groups), codes, xp
    )
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("every", [False, True])
def test_any_and_all(every, xp):
    codes, valid = spread_codes(3000, 90), RNG.random(3000) < 0.2
    values = (RNG.random(3000) < 0.2) & valid
    known = pd.Series(values[valid]).groupby(codes[valid])
    expected = (known.all() if every else known.any()).reindex(range(90), fill_value=every)
    function = segmented.all_true if every else segmented.any_true
    found = on_both(lambda groups, there: function(there(values), there(valid), groups), codes, xp)
    np.testing.assert_array_equal(found, expected)


def test_first_and_last(xp):
    codes, valid = spread_codes(3000, 90), RNG.random(3000) < 0.2
    values = RNG.random(3000) < 0.5
    rows = pd.Series(np.arange(3000)).groupby(codes)
    column, groups = to_device(pa.array(values, mask=~valid), xp), groups_of(codes, xp)
    np.testing.assert_array_equal(to_host(segmented.last_rows(groups)), rows.max())
    np.testing.assert_array_equal(to_host(segmented.last_values(column, groups).valid), valid[rows.max()])
    first = to_host(segmented.first_values(column, groups).values)
    np.testing.assert_array_equal(first, (values & valid)[rows.min()])


def test_no_rows(xp):
    empty = xp.zeros(0, dtype=np.int32)
    for count in (0, 1):
        groups = DeviceGroups(empty, count, xp.zeros(count, dtype=np.int64), xp)
        assert to_host(segmented.sums(xp.zeros(0), groups)).tolist() == [0.0] * count
        assert to_host(segmented.sums(empty, groups)).tolist() == [0] * count
        assert to_host(groups.sizes).tolist() == [0] * count


def test_a_group_without_rows_among_many_sums_to_zero(xp):
    codes = np.delete(np.arange(3000), 1234).astype(np.int32)
    for module in (np, xp):
        groups = DeviceGroups(module.asarray(codes), 3000, module.zeros(3000, dtype=np.int64), module)
        found = to_host(segmented.sums(module.ones(2999), groups))
        assert found[1234] == 0
        assert found.sum() == 2999


@pytest.mark.gpu
def test_as_many_rows_as_there_may_be(xp):
    rows = (1 << 31) - 2
    if xp.cuda.Device().mem_info[0] < 48 << 30:
        pytest.skip("less than 48 GiB of device memory are free")
    keys = xp.zeros(rows, dtype=np.int8)
    keys[::7] = 1
    groups = group([DeviceColumn(pa.int8(), keys)], rows, xp)
    few, many = -(-rows // 7), rows - -(-rows // 7)
    assert to_host(groups.first_rows).tolist() == [0, 1]
    assert to_host(groups.sizes).tolist() == [few, many]
    assert to_host(segmented.sums(xp.ones(rows, dtype=np.float32), groups)).tolist() == [few, many]
    assert to_host(segmented.sums(keys, groups)).tolist() == [few, 0]
