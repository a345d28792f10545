"""Aggregation on a device gives the host's groups, and states that either side merges."""

from __future__ import annotations

import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headwater.errors import TypeMismatchError
from headwater.ops.aggregate import (
    Aggregation,
    FinalAggregateKernel,
    PartialAggregateKernel,
    state_schema,
)
from headwater.ops.aggregations import aggregation_type
from headwater.ops.backend import use_backend
from headwater.ops.device.device_kernel import DeviceKernel, device_kernel
from headwater.ops.device.operators import aggregate as device_aggregate
from headwater.ops.device.operators import hash_split
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.kernel import Context

RTOL = 1e-12
NUMERIC = ["i8", "u16", "i64", "u64", "f32", "f64", "bool"]
ORDERED = [*NUMERIC, "text", "date", "time", "dec"]
EVERY = [
    Aggregation("rows", "count", None),
    *(Aggregation(f"{f}_{c}", f, c) for c in NUMERIC for f in ("sum", "mean", "var")),
    *(Aggregation(f"{f}_{c}", f, c) for c in ORDERED for f in ("min", "max", "first", "last", "count")),
    Aggregation("std_f64", "std", "f64", (("ddof", 0),)),
    Aggregation("sum_span", "sum", "span"),
]
#: one of each kind
SOME = [
    a
    for a in EVERY
    if a.name in ("rows", "sum_i8", "mean_i64", "var_f32", "min_text", "max_u64", "last_time")
]
DECIMALS = [Aggregation(f"{f}_dec", f, "dec") for f in ("sum", "mean", "var")]


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr(device_aggregate, "UNIT_ROWS", 1500)
    monkeypatch.setattr(device_aggregate, "_FIRST_MERGE", 400)


def random_table(rows, nulls=0.3, groups=40, seed=0):
    rng = np.random.default_rng([seed, rows, groups])

    def column(values, type=None):
        return pa.array(values, type, mask=rng.random(rows) < nulls if nulls else None, from_pandas=False)

    return pa.table(
        {
            "key": column(rng.integers(0, groups, rows)),
            "word": column(rng.choice(["a", "b", "ä", ""], rows).astype(object), pa.string()),
            "float": column(rng.choice([0.0, -0.0, np.nan, 1.5], rows)),
            "i8": column(rng.integers(-128, 128, rows).astype(np.int8)),
            "u16": column(rng.integers(0, 65536, rows).astype(np.uint16)),
            "i64": column(rng.integers(-(2**40), 2**40, rows)),
            "u64": column(rng.integers(0, 2**48, rows).astype(np.uint64)),
            "f32": column(rng.normal(size=rows).astype(np.float32)),
            "f64": column(rng.normal(100, size=rows)),
            "bool": column(rng.random(rows) < 0.5),
            "text": column(rng.choice(["x", "Z", "日本", "", "zz"], rows).astype(object), pa.string()),
            "date": column(rng.integers(-99, 99, rows).astype(np.int32), pa.int32()).cast(pa.date32()),
            "time": column(rng.integers(0, 2**50, rows), pa.timestamp("us")),
            "span": column(rng.integers(0, 2**40, rows), pa.duration("ms")),
            "dec": column(
                [decimal.Decimal(int(v)) / 100 for v in rng.integers(-(10**9), 10**9, rows)],
                pa.decimal128(12, 2),
            ),
        }
    )


def kernels(schema, keys, aggregations):
    states = state_schema(schema, keys, aggregations)
    fields = [schema.field(name) for name in keys]
    for a in aggregations:
        type = None if a.column is None else schema.field(a.column).type
        fields.append(pa.field(a.name, aggregation_type(a.function, type, dict(a.options))))
    keys, aggregations = tuple(keys), tuple(aggregations)
    return (
        PartialAggregateKernel(keys, aggregations, states),
        FinalAggregateKernel(keys, aggregations, pa.schema(fields)),
    )


def cut(table, rows):
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def on_host(kernel, table, rows=1 << 20):
    found = list(kernel.run([iter(cut(table, rows))], Context()))
    return pa.concat_tables(found) if found else kernel.schema.empty_table()


def on_device(kernel, table, xp, rows=1 << 20):
    there = device_kernel(kernel, [table.schema])
    assert isinstance(there, DeviceKernel), there
    with use_backend(xp.__name__):
        found = list(there.run([(to_device(part, xp) for part in cut(table, rows))], Context()))
    for part in found:
        assert part.schema == kernel.schema
        for column in part.columns:
            if column.valid is not None and column.dictionary is None:  # 0 under nulls
                assert not bool((column.values[~column.valid] != 0).any())
    return pa.concat_tables([to_arrow(part) for part in found]) if found else kernel.schema.empty_table()


def assert_same(found, expected, rtol=0.0):
    assert found.schema == expected.schema
    assert found.num_rows == expected.num_rows
    for name in expected.schema.names:
        one, other = found[name].combine_chunks(), expected[name].combine_chunks()
        if rtol and pa.types.is_floating(other.type):
            assert one.is_valid().equals(other.is_valid()), name
            close = np.testing.assert_allclose
            close(
                one.fill_null(0).to_numpy(),
                other.fill_null(0).to_numpy(),
                rtol=rtol,
                atol=1e-15,
                err_msg=name,
            )
        elif pa.types.is_floating(other.type):
            np.testing.assert_array_equal(
                one.fill_null(7).to_numpy(), other.fill_null(7).to_numpy(), err_msg=name
            )
            assert one.is_valid().equals(other.is_valid()), name
        else:
            assert one.equals(other), name


@pytest.mark.parametrize("keys", [(), ("key",), ("word", "float"), ("key", "word", "i8")], ids="-".join)
@pytest.mark.parametrize(("rows", "nulls"), [(0, 0), (1, 0.0), (3203, 0.3), (200, 1.0)])
def test_either_side_merges_the_others_states(keys, rows, nulls, xp):
    table = random_table(rows, nulls)
    partial, final = kernels(table.schema, keys, EVERY if keys == ("key",) else SOME)
    expected = on_host(final, on_host(partial, table))
    states = on_device(partial, table, xp)
    assert_same(states, on_device(partial, table, np))
    assert_same(on_host(final, states), expected, RTOL)
    found = on_device(final, states, xp)
    assert_same(found, on_device(final, states, np))
    assert_same(found, expected, RTOL)
    assert_same(on_device(final, on_host(partial, table), xp), expected, RTOL)


def test_against_pandas(xp):
    table = random_table(4000, 0.2)
    asked = [Aggregation(f, f, "f64") for f in ("sum", "mean", "min", "max", "std", "count", "first")]
    partial, final = kernels(table.schema, ["key"], asked)
    found = on_device(final, on_device(partial, table, xp), xp).to_pandas().set_index("key")
    grouped = table.select(["key", "f64"]).to_pandas().groupby("key", dropna=False, sort=False).f64
    expected = grouped.agg(["sum", "mean", "min", "max", "std", "count"])
    pd.testing.assert_frame_equal(found.drop(columns="first"), expected, rtol=RTOL)
    np.testing.assert_array_equal(found["first"], grouped.nth(0))


@pytest.mark.parametrize("keys", [(), ("key",)], ids=["global", "key"])
def test_cuts_of_the_stream_leave_the_same_bits(keys, xp):
    table = random_table(3500)
    partial, _ = kernels(table.schema, keys, SOME)
    whole = on_device(partial, table, xp)
    for rows in (1499, 333):
        assert_same(on_device(partial, table, xp, rows), whole)


def test_too_many_groups_are_passed_on(xp):
    table = pa.table({"key": np.arange(5000) % 4500, "x": np.arange(5000.0)})
    partial, final = kernels(table.schema, ["key"], [Aggregation("sum", "sum", "x")])
    states = on_device(partial, table, xp)
    assert states.num_rows == 5000  # merging was given up
    assert_same(on_device(final, states, xp), on_host(final, on_host(partial, table)))


@pytest.mark.parametrize("keys", [(), ("key",)], ids=["global", "key"])
def test_decimals_are_exact(keys, xp):
    table = random_table(4000)
    partial, final = kernels(table.schema, keys, DECIMALS)
    states = on_device(partial, table, xp)
    assert_same(states, on_device(partial, table, np))
    assert_same(on_host(final, states), on_host(final, on_host(partial, table)), RTOL)
    assert "decimal128(38, 2)" in device_kernel(final, [partial.schema])


def test_decimals_whose_sum_has_more_than_64_bits_are_added_in_parts(xp):
    large = decimal.Decimal(10**18 - 1)
    values = pa.array([large] * 50 + [-large, None], pa.decimal128(18, 0))
    table = pa.table({"key": ["a"] * 52, "x": values})
    asked = [Aggregation("sum", "sum", "x"), Aggregation("n", "count", "x")]
    partial, final = kernels(table.schema, ["key"], asked)
    states = on_device(partial, table, xp)
    assert states.num_rows > 1
    assert on_host(final, states).to_pylist() == [{"key": "a", "sum": 49 * large, "n": 51}]


@pytest.mark.parametrize(
    ("type", "value"), [(pa.int64(), 2**62), (pa.int64(), -(2**62)), (pa.uint64(), 2**63)]
)
def test_integers_that_overflow_are_refused(type, value, xp):
    table = pa.table({"key": [1, 2, 1, 1], "x": pa.array([value, 5, value, value], type)})
    partial, _ = kernels(table.schema, ["key"], [Aggregation("sum", "sum", "x")])
    for module in (np, xp):
        with pytest.raises(TypeMismatchError, match="doesn't fit"):
            on_device(partial, table, module)


def test_large_integers_that_fit_are_exact(xp):
    values = pa.array([2**62, 2**61 + 1, -(2**62), 7])
    table = pa.table({"key": [1, 1, 2, 2], "x": values})
    partial, final = kernels(table.schema, ["key"], [Aggregation("sum", "sum", "x")])
    found = on_device(final, on_device(partial, table, xp), xp)
    assert found["sum"].to_pylist() == [3 * 2**61 + 1, 7 - 2**62]


@pytest.mark.parametrize("fanout", [4, 2])
def test_many_states_are_merged_by_parts(fanout, xp, monkeypatch, tmp_path):
    """A part is split again if need be; all parts together are as if merged at once, and bits are the twin's."""
    monkeypatch.setattr(device_aggregate, "_MOST_STATES", 7000)
    monkeypatch.setattr(hash_split, "FANOUT", fanout)
    monkeypatch.setattr(FinalAggregateKernel, "_spill", None)
    table = random_table(800, groups=200)
    asked = [
        Aggregation("sum", "sum", "i64"),
        Aggregation("max", "max", "text"),
        Aggregation("mean", "mean", "f64"),
    ]
    asked += [
        Aggregation("q", "approx_quantile", "f32", (("q", 0.3),)),
        Aggregation("first", "first", "word"),
    ]
    partial, final = kernels(table.schema, ["key", "word"], asked)
    parts = [on_device(partial, part, xp) for part in cut(table, 300)]
    states = pa.concat_tables(parts)
    found = on_device(final, states, xp, 100)
    assert_same(found, on_host(final, states), RTOL)
    assert_same(on_device(final, states, np, 777), found)
    operator = device_kernel(final, [states.schema])
    with use_backend(xp.__name__):
        stream = operator.run(
            [iter([to_device(states, xp)])], Context(memory_bytes=9000, spill_root=tmp_path)
        )
        next(stream)
        assert list(tmp_path.iterdir())
        stream.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("function", "type", "why"),
    [
        ("n_unique", pa.int64(), "n_unique keeps lists"),
        ("min", pa.dictionary(pa.int32(), pa.string()), "has no order there"),
        ("count", pa.list_(pa.int8()), "count of list"),
        ("sum", pa.decimal128(30, 2), "no form there"),
    ],
)
def test_what_stays_on_the_host_says_why(function, type, why):
    schema = pa.schema([("key", pa.int64()), ("x", type)])
    partial, _ = kernels(schema, ["key"], [Aggregation("a", function, "x")])
    assert why in device_kernel(partial, [schema])
