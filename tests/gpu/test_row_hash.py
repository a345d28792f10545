"""Row hashes of device columns are those of the host."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from headwater.lineage.hashing import hash_columns, string_words
from headwater.ops.device.arrays.row_hash import hash_rows, hash_segments
from headwater.ops.device.column import DeviceColumn, to_device
from headwater.ops.partitioner import HashPartitioner

RNG = np.random.default_rng(11)
ROWS = 2500


def column(type, rows, nulls):
    """Random values of a type with its extremes, and null with a probability."""
    mask = RNG.random(rows) < nulls if nulls else None
    t = pa.types
    if t.is_boolean(type):
        return pa.array(RNG.random(rows) < 0.5, mask=mask)
    if t.is_floating(type):
        values = RNG.normal(size=rows).astype(type.to_pandas_dtype())
        for special in (
            np.nan,
            -np.nan,
            -0.0,
            0.0,
            np.inf,
            -np.inf,
            np.finfo(values.dtype).smallest_subnormal,
        ):
            values[RNG.random(rows) < 0.05] = special
        return pa.array(values, type, mask=mask, from_pandas=False)
    if t.is_integer(type):
        ends = np.iinfo(type.to_pandas_dtype())
        values = RNG.integers(ends.min, ends.max, rows, type.to_pandas_dtype(), endpoint=True)
        values[RNG.random(rows) < 0.1] = ends.min
        return pa.array(values, type, mask=mask)
    if t.is_decimal(type):
        whole = RNG.integers(-(10**type.precision) + 1, 10**type.precision, rows)
        values = [decimal.Decimal(int(v)).scaleb(-type.scale) for v in whole]
        return pa.array(values, type, mask=mask)
    if t.is_string(type) or t.is_large_string(type):
        words = ["", "a", "ä", "eight by", "nine byte", "x" * 100, "y" * 256, "z" * 257, "w" * 3000]
        return pa.array(RNG.choice(words, rows).tolist(), type, mask=mask)
    if t.is_dictionary(type):
        return column(type.value_type, rows, nulls).dictionary_encode().cast(type)
    if t.is_date64(type):
        values = RNG.integers(-20000, 20000, rows) * 86_400_000
        return pa.array(values, pa.int64(), mask=mask).cast(type)
    wide = np.int32 if type.bit_width == 32 else np.int64
    top = 86_000 if t.is_time(type) else 2**30
    values = RNG.integers(0 if t.is_time(type) else -top, top, rows).astype(wide)
    return pa.array(values, mask=mask).cast(type)


TYPES = [
    pa.bool_(),
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float32(), pa.float64(), pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us")),
    *(
        pa.timestamp("us"),
        pa.timestamp("ns", "UTC"),
        pa.duration("ms"),
        pa.decimal128(18, 2),
        pa.decimal128(5, 5),
    ),
    *(pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())),
]


def plain(array):
    """The host has no row hash of dictionaries: that of their values is meant."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def same(columns, xp, exact):
    expected = hash_columns([plain(c) for c in columns], exact=exact)
    for module in (np, xp):
        found = hash_rows([to_device(c, module) for c in columns], module, exact)
        found = found if module is np else found.get()
        assert found.dtype == np.uint64
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("nulls", [0, 0.3, 1], ids=["full", "some-null", "all-null"])
@pytest.mark.parametrize("type", TYPES, ids=str)
def test_each_type(type, nulls, xp):
    column_ = column(type, 300, nulls)
    same([column_], xp, exact=False)
    same([column(pa.int32(), 300, 0), column_], xp, exact=True)


@pytest.mark.parametrize("rows", [0, 1, 255, 1023, 1025, ROWS])
def test_all_types_together(rows, xp):
    same([column(type, rows, 0.2) for type in TYPES], xp, exact=True)


def test_slices_and_strides(xp):
    column_ = to_device(column(pa.int16(), ROWS, 0.2), xp)
    parts = DeviceColumn(column_.type, column_.values[1::2], column_.valid[1::2])
    whole = hash_rows([column_], xp).get()
    assert (hash_rows([parts], xp).get() == whole[1::2]).all()
    assert (hash_rows([column_.slice(7, 1500)], xp).get() == whole[7:1500]).all()


@pytest.mark.parametrize("parts", [1, 2, 7, 1000, 2**31 - 1])
def test_segments_are_those_of_the_partitioner(parts, xp):
    table = pa.table({"a": column(pa.int64(), ROWS, 0.1), "s": column(pa.string(), ROWS, 0.1)})
    expected = HashPartitioner(("s", "a"), parts).assign(table, 0, 0)
    for module in (np, xp):
        keys = [to_device(table.column(name), module) for name in ("s", "a")]
        found = hash_segments(keys, parts, module)
        assert found.dtype == np.min_scalar_type(parts - 1)
        np.testing.assert_array_equal(found if module is np else found.get(), expected)


def test_string_words_of_slices():
    array = pa.array(["abc", None, "", "q" * 300, "12345678", "123456789"])
    words, bounds = string_words(array)
    for start in range(len(array)):
        part, ends = string_words(array[start:])
        assert part.tolist() == words[bounds[start] :].tolist()
        assert ends.tolist() == (bounds[start:] - bounds[start]).tolist()


def test_a_day_is_a_day(xp):
    day = pa.array([datetime.date(2024, 2, 29)])
    same([day], xp, exact=False)
