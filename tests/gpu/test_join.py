"""Joins on a device leave the host's rows in the host's order, whatever the keys' types and how often each stands."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headwater.ops.backend import use_backend
from headwater.ops.device.arrays.gather import take_or_null
from headwater.ops.device.arrays.hash_table import HashTable
from headwater.ops.device.arrays.key_index import DeviceKeyIndex
from headwater.ops.device.device_kernel import device_kernel
from headwater.ops.device.operators import join as device_join
from headwater.ops.device.operators import sort as device_sort
from headwater.ops.device.operators.join import DeviceJoin
from headwater.ops.device.table import to_arrow, to_device
from headwater.ops.join import JoinKernel
from headwater.ops.kernel import Broadcast, Context

RNG = np.random.default_rng(11)
MOST = 2**64 - 1
WORDS = ("", "a", "b", "ä", "日本", "zebra")


def table_keys(kind: str, top: int, rows: int) -> np.ndarray:
    if kind == "dense":
        return RNG.integers(0, top, rows, dtype=np.uint64)
    if kind == "sparse":
        return RNG.integers(0, 4000, rows, dtype=np.uint64) * np.uint64(0x123456789ABCDF)
    if kind == "crowded":
        return np.where(RNG.random(rows) < 0.9, 5, RNG.integers(0, 99, rows)).astype(np.uint64)
    return RNG.choice(np.array([0, MOST, MOST - 1, 1 << 63, 7], np.uint64), rows)


@pytest.mark.parametrize("kind", ["dense", "sparse", "crowded", "extremes"])
def test_hash_table(kind, xp):
    for rows in (1, 3, 1000, 7001):
        size = {"dense": rows, "crowded": 99}.get(kind, 1 << 64)
        put, known = table_keys(kind, rows, rows), RNG.random(rows) < 0.8
        asked, sensible = table_keys(kind, rows, 5000), RNG.random(5000) < 0.9
        here = HashTable(put, known, size, np)
        there = HashTable(xp.asarray(put), xp.asarray(known), size, xp)
        first: dict[int, int] = {}
        for row in np.flatnonzero(known):
            first.setdefault(int(put[row]), int(row))
        expected = np.array([first[int(k)] if ok else -1 for k, ok in zip(put, known)])
        np.testing.assert_array_equal(here.lookup(put, known), expected)
        np.testing.assert_array_equal(there.lookup(xp.asarray(put), xp.asarray(known)).get(), expected)
        expected = np.array([first.get(int(k), -1) if ok else -1 for k, ok in zip(asked, sensible)])
        np.testing.assert_array_equal(here.lookup(asked, sensible), expected)
        found = there.lookup(xp.asarray(asked), xp.asarray(sensible))
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found.get(), expected)


@pytest.mark.parametrize("type", [pa.bool_(), pa.int8(), pa.uint16(), pa.float32(), pa.int64(), pa.string()])
def test_take_or_null(type, xp):
    values = RNG.choice(WORDS, 500).astype(object) if type == pa.string() else RNG.integers(0, 2, 500)
    for mask in (None, RNG.random(500) < 0.3):
        column = pa.array(values, pa.int64() if type == pa.bool_() else type, mask=mask).cast(type)
        rows = RNG.integers(-1, 500, 3001)
        expected = column.take(pa.array(rows, mask=rows < 0))
        here = take_or_null(to_device(pa.table({"x": column}), np).columns[0], rows, np)
        there = take_or_null(to_device(pa.table({"x": column}), xp).columns[0], xp.asarray(rows), xp)
        for result, get in ((here, np.asarray), (there, lambda a: a.get())):
            table = pa.table({"x": expected})
            whole = to_device(table, np)
            np.testing.assert_array_equal(get(result.values) * get(result.valid), get(result.values))
            np.testing.assert_array_equal(
                get(result.valid), expected.is_valid().to_numpy(zero_copy_only=False)
            )
            assert type == pa.string() or get(result.values).tobytes() == whole.columns[0].values.tobytes()


def column(kind: str, rows: int, nulls: float) -> pa.Array:
    whole = np.iinfo(np.int64)
    types = {"text": pa.string(), "date": pa.date32()}
    values = {
        "few": lambda: RNG.integers(0, 6, rows),
        "small": lambda: RNG.integers(-100, 100, rows).astype(np.int8),
        "many": lambda: RNG.integers(0, 3 * rows + 1, rows),
        "wide": lambda: RNG.choice([whole.min, whole.max, 0, -1, 1 << 40], rows),
        "u64": lambda: RNG.choice(np.array([0, MOST, 1 << 63], np.uint64), rows),
        "f64": lambda: RNG.choice([0.0, -0.0, np.nan, np.inf, -1.5, 1e300, -1e300], rows),
        "f32": lambda: RNG.choice([0.0, -0.0, np.nan, -np.inf, 2.5], rows).astype(np.float32),
        "text": lambda: RNG.choice(WORDS[: 3 + rows % 4], rows).astype(object),
        "bool": lambda: RNG.random(rows) < 0.5,
        "date": lambda: RNG.integers(-3, 3, rows).astype(np.int32),
    }[kind]()
    mask = RNG.random(rows) < nulls if nulls else None
    return pa.array(values, types.get(kind), mask=mask, from_pandas=False)


def side(kinds, rows, nulls, name):
    columns = {f"{name}{place}": column(kind, rows, nulls) for place, kind in enumerate(kinds)}
    columns |= {f"{name}v": column("text", rows, 0.2), f"{name}f": column("f64", rows, 0.1)}
    return pa.table({**columns, f"{name}row": np.arange(rows)})


def join_kernel(how, left, right, count):
    mine = [name for name in right.column_names if not name[1:].isdigit()] if how in ("inner", "left") else []
    fields = [*left.schema, *(right.schema.field(name).with_name("r_" + name) for name in mine)]
    return JoinKernel(
        tuple(left.column_names[:count]),
        tuple(right.column_names[:count]),
        how,
        tuple((name, "r_" + name) for name in mine),
        pa.schema(fields),
    )


def cut(table, namespace, parts=3):
    ends = np.linspace(0, table.num_rows, parts + 1).astype(int)
    return (to_device(table.slice(a, b - a), namespace) for a, b in zip(ends, ends[1:]))


def contents(stream, schema):
    tables = [schema.empty_table(), *stream]
    for table in tables:
        assert table.schema.equals(schema)
    return repr(pa.concat_tables(tables).to_pydict())


def check(how, left, right, count, xp, context=None, held=None):
    kernel = join_kernel(how, left, right, count)
    expected = contents(kernel.run([iter([left]), iter([right])], Context()), kernel.schema)
    for namespace in (np, xp):
        with use_backend(namespace.__name__):
            stream = DeviceJoin(kernel, held).run(
                [cut(left, namespace), cut(right, namespace)], context or Context()
            )
            assert contents(map(to_arrow, stream), kernel.schema) == expected
            if namespace is np:
                continue
            cache = {}
            for _ in range(2 if how == "inner" else 1):
                whole = Broadcast(lambda: iter([right.slice(0, 5), right.slice(5)]), right.schema, cache)
                stream = DeviceJoin(kernel, held).run([cut(left, namespace), whole], context or Context())
                assert contents(map(to_arrow, stream), kernel.schema) == expected


KEYS = [
    *([kind] for kind in ("few", "small", "many", "wide", "u64", "f64", "f32", "text", "bool", "date")),
    ["few", "text"],
    ["small", "f64", "bool"],
    ["f64", "wide", "u64"],
    ["text", "f64", "few", "wide"],
    ["wide", "text"],
]


@pytest.mark.parametrize("kinds", KEYS, ids="-".join)
def test_every_kind_of_key(kinds, xp, monkeypatch):
    for module in (device_join, device_sort):
        monkeypatch.setattr(module, "UNIT_ROWS", 1000)
    for how in ("inner", "left", "semi", "anti"):
        check(how, side(kinds, 299, 0.1, "l"), side(kinds, 23, 0.1, "r"), len(kinds), xp)


@pytest.mark.parametrize("how", ["inner", "left", "semi", "anti"])
def test_sizes_and_nulls(how, xp):
    for left, right in ((0, 5), (5, 0), (1, 1), (257, 1), (1, 300), (1000, 700)):
        for nulls in (0.0, 0.5, 1.0):
            check(how, side(["many"], left, nulls, "l"), side(["many"], right, nulls, "r"), 1, xp)
            check(
                how, side(["many", "few"], left, nulls, "l"), side(["many", "few"], right, nulls, "r"), 2, xp
            )


@pytest.mark.parametrize("how", ["inner", "left"])
def test_unique_right_keys(how, xp):
    right = pa.table({"r0": RNG.permutation(500) * 1_000_003, "rv": RNG.normal(size=500)})
    left = pa.table({"l0": RNG.integers(0, 700, 3000) * 1_000_003, "lv": np.arange(3000)})
    check(how, left, right, 1, xp)
    assert DeviceKeyIndex([to_device(right, xp).column("r0")], xp).unique


def test_inner_join_is_that_of_pandas(xp):
    left, right = side(["few", "date"], 400, 0.0, "l"), side(["few", "date"], 150, 0.0, "r")
    kernel = join_kernel("inner", left, right, 2)
    result = pa.concat_tables(
        map(to_arrow, DeviceJoin(kernel).run([cut(left, xp), cut(right, xp)], Context()))
    )
    frame = left.to_pandas().merge(
        right.to_pandas(), left_on=["l0", "l1"], right_on=["r0", "r1"], how="inner", sort=False
    )
    frame = frame.sort_values(["lrow", "rrow"])
    pd.testing.assert_series_equal(
        result.column("lrow").to_pandas(), frame["lrow"].reset_index(drop=True), check_names=False
    )
    np.testing.assert_array_equal(result.column("r_rrow").to_numpy(), frame["rrow"].to_numpy())


def test_one_crowded_key(xp, monkeypatch):
    monkeypatch.setattr(device_join, "UNIT_ROWS", 5000)
    left = pa.table({"l0": np.where(RNG.random(300) < 0.5, 3, np.arange(300)), "lrow": np.arange(300)})
    right = pa.table({"r0": np.where(RNG.random(90) < 0.9, 3, np.arange(90)), "rrow": np.arange(90)})
    for how in ("inner", "left"):
        check(how, left, right, 1, xp)


def test_lowering():
    left = pa.schema([("k", pa.int64()), ("x", pa.string())])
    right = pa.schema([("k", pa.int64()), ("y", pa.list_(pa.int8())), ("z", pa.float64())])
    kernel = JoinKernel(("k",), ("k",), "inner", (("z", "z"),), pa.schema([*left, right.field("z")]))
    assert device_kernel(kernel, [left, right]) == DeviceJoin(kernel)
    kernel = JoinKernel(("k",), ("k",), "inner", (("y", "y"),), pa.schema([*left, right.field("y")]))
    assert "'y'" in device_kernel(kernel, [left, right])
