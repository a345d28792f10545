"""Groups on a device are the host's: numbered by first appearance, null and NaN values like any other."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops import grouping as on_host
from headwater.ops.backend import to_host
from headwater.ops.device.arrays.grouping import group
from headwater.ops.device.arrays.key_words import key_words
from headwater.ops.device.column import to_device

RNG = np.random.default_rng(3)


def holes(values, share, type=None):
    return pa.array(values, type, mask=RNG.random(len(values)) < share)


def keys(kind, rows):
    some = RNG.integers(0, 50, rows)
    if kind == "few":
        return [pa.array(RNG.integers(0, 3, rows).astype(np.int8))]
    if kind == "one":
        return [pa.array(np.full(rows, 7))]
    if kind == "null":
        return [pa.nulls(rows, pa.int32())]
    if kind == "dense":
        return [holes(RNG.integers(-900, 900, rows).astype(np.int32), 0.3)]
    if kind == "wide":
        values = RNG.integers(0, max(1, rows // 2), rows) * 0x1E3779B97F4A7C15
        values[: min(rows, 2)] = [np.iinfo(np.int64).min, np.iinfo(np.int64).max][: min(rows, 2)]
        return [holes(values.astype(np.int64), 0.1)]
    if kind == "unsigned":
        return [pa.array((some.astype(np.uint64) << np.uint64(58)) + np.uint64(1 << 63))]
    if kind == "floats":
        table = np.array([0.0, -0.0, np.nan, -np.nan, 1.5, -np.inf, np.inf, 5e-324])
        return [holes(table[some % 8], 0.1), pa.array(table[some % 7].astype(np.float32))]
    if kind == "strings":
        return [holes([f"s{number % 13}" for number in some], 0.2, pa.string()), pa.array(some % 2 == 0)]
    if kind == "times":
        return [
            pa.array(some.astype(np.int64) << 40, pa.timestamp("us")),
            pa.array(RNG.integers(0, 9, rows).astype(np.int32), pa.date32()),
        ]
    if kind == "many":
        return [pa.array(RNG.integers(0, 1 << 62, rows)), holes(RNG.random(rows), 0.5), pa.array(some)]
    raise KeyError(kind)


def both(columns, rows, xp):
    there = group([to_device(column, xp) for column in columns], rows, xp)
    return there, on_host.group(columns, rows)


@pytest.mark.parametrize("rows", [0, 1, 255, 10_001])
@pytest.mark.parametrize(
    "kind", ["few", "one", "null", "dense", "wide", "unsigned", "floats", "strings", "times", "many"]
)
def test_groups_are_the_hosts(kind, rows, xp):
    columns = keys(kind, rows)
    for module in (np, xp):
        there, expected = both(columns, rows, module)
        assert there.count == expected.count
        np.testing.assert_array_equal(to_host(there.codes), expected.codes)
        np.testing.assert_array_equal(to_host(there.first_rows), expected.first_rows)
        np.testing.assert_array_equal(to_host(there.sizes), expected.sizes)
        np.testing.assert_array_equal(to_host(there.order), np.argsort(expected.codes, kind="stable"))
        assert there.first_rows.dtype == there.sizes.dtype == there.order.dtype == np.int64
        assert there.codes.dtype == np.int32


@pytest.mark.parametrize("kind", ["dense", "wide", "unsigned", "floats", "strings", "times", "many"])
def test_words_have_the_same_bits(kind, xp):
    columns = keys(kind, 3001)
    expected = key_words([to_device(column, np) for column in columns], 3001, np)
    found = key_words([to_device(column, xp) for column in columns], 3001, xp)
    assert found.size == expected.size
    np.testing.assert_array_equal(to_host(found.words), expected.words)


def test_slots_of_more_than_a_block_of_shared_counters(xp):
    values = pa.array(RNG.permutation(6000)[:5000] % 2500)
    there, expected = both([values], 5000, xp)
    np.testing.assert_array_equal(to_host(there.codes), expected.codes)
    valid = RNG.random(5000) < 0.5
    found = to_host(there.count_valid(xp.asarray(valid)))
    np.testing.assert_array_equal(found, np.bincount(expected.codes[valid], minlength=expected.count))


def test_no_keys_are_one_group(xp):
    assert to_host(group([], 5, xp).codes).tolist() == [0] * 5
    assert group([], 0, xp).count == 0


def test_too_many_rows_are_refused(xp):
    with pytest.raises(ValueError, match="fewer than 2147483647"):
        group([], 1 << 31, xp)
