"""Kernels on types, sizes and limits that the random tables don't reach."""

import datetime
import errno
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headwater.errors import DiskFullError, ParameterError, PlanError, TypeMismatchError
from headwater.ops.aggregate import (
    Aggregation,
    FinalAggregateKernel,
    PartialAggregateKernel,
    aggregation_type,
    state_schema,
)
from headwater.ops.distinct import DistinctKernel
from headwater.ops.join import JoinKernel
from headwater.ops.kernel import MORSEL_ROWS, Broadcast, Context
from headwater.ops.partitioner import RangePartitioner
from headwater.ops.sort import SortKernel, SortKey, TopKKernel
from headwater.ops.spill import SpillFile
from headwater.ops.transform import TransformKernel

ROWS = 2 * MORSEL_ROWS + 5000


@pytest.fixture(scope="module")
def big():
    rng = np.random.default_rng(3)
    return pa.table(
        {
            "g": rng.integers(0, 1000, ROWS),
            "w": rng.integers(0, ROWS, ROWS),
            "x": rng.normal(1e6, 1, ROWS).astype(np.float64),
            "f": rng.normal(0, 1, ROWS).astype(np.float32),
            "s": pa.array(np.array(["ab", "ß", ""])[rng.integers(0, 3, ROWS)]),
        }
    )


def stream(table, cut=None):
    return iter([table] if cut is None else [table.slice(a, cut) for a in range(0, table.num_rows, cut)])


def run(kernel, *inputs, memory=1 << 30):
    context = Context(memory_bytes=memory)
    out = pa.concat_tables(list(kernel.run(list(inputs), context))).combine_chunks()
    return out, context.metrics


def aggregate(table, keys, aggregations, cut=None):
    types = [
        aggregation_type(
            a.function, None if a.column is None else table.schema.field(a.column).type, dict(a.options)
        )
        for a in aggregations
    ]
    output = pa.schema(
        [*(table.schema.field(k) for k in keys), *(pa.field(a.name, t) for a, t in zip(aggregations, types))]
    )
    partial = PartialAggregateKernel(keys, aggregations, state_schema(table.schema, keys, aggregations))
    states = list(pickle.loads(pickle.dumps(partial)).run([stream(table, cut)], Context()))
    final = FinalAggregateKernel(keys, aggregations, output)
    return pa.concat_tables(list(final.run([iter(states)], Context()))).combine_chunks()


def named(*pairs):
    return tuple(Aggregation(f"{f}_{c}", f, c) for f, c in pairs)


@pytest.mark.parametrize("keys", [(), ("g",), ("w",), ("s", "g")])
def test_aggregates_of_many_morsels_have_the_same_bits_however_chunked(big, keys):
    wanted = named(
        ("sum", "x"),
        ("mean", "f"),
        ("var", "x"),
        ("min", "x"),
        ("max", "f"),
        ("last", "s"),
        ("n_unique", "s"),
    )
    plain = aggregate(big, keys, wanted)
    for cut in (777, 50_000, MORSEL_ROWS + 1):
        assert aggregate(big, keys, wanted, cut).equals(plain)
    if not keys:
        return
    frame = big.to_pandas().groupby(list(keys), sort=False)
    got = plain.to_pandas().set_index(list(keys))
    for column, expected in {
        "sum_x": frame.x.sum(),
        "mean_f": frame.f.apply(lambda v: v.astype("float64").mean()) if keys != ("w",) else None,
        "var_x": frame.x.var(),
        "last_s": frame.s.last(),
        "n_unique_s": frame.s.nunique(),
    }.items():
        if expected is not None and column.startswith(("last", "n_unique")):
            pd.testing.assert_series_equal(got[column], expected, check_names=False, check_dtype=False)
        elif expected is not None:
            pd.testing.assert_series_equal(got[column], expected, check_names=False, rtol=1e-9)


def test_variance_of_large_values_with_a_small_spread():
    values = 1e9 + np.arange(1000) % 7
    table = pa.table({"x": values})
    got = aggregate(table, (), named(("var", "x"), ("std", "x")), cut=100).to_pylist()[0]
    assert got["var_x"] == pytest.approx(np.var(values - 1e9, ddof=1), rel=1e-9)
    assert got["std_x"] == pytest.approx(np.std(values - 1e9, ddof=1), rel=1e-9)


def test_ddof_and_too_few_values():
    table = pa.table({"k": ["a", "a", "b", "c"], "x": [1.0, 3.0, 5.0, None]})
    wanted = (Aggregation("p", "var", "x", (("ddof", 0),)), Aggregation("s", "var", "x"))
    assert aggregate(table, ("k",), wanted).to_pydict() == {
        "k": ["a", "b", "c"],
        "p": [1.0, 0.0, None],
        "s": [2.0, None, None],
    }


@pytest.mark.parametrize(
    ("type", "values", "total"),
    [
        (pa.int8(), [100, 100], 200),
        (pa.uint64(), [2**63, 5], 2**63 + 5),
        (pa.float16(), [1.0, 2.0], 3.0),
        (pa.float32(), [1.0, 2.0], 3.0),
        (pa.bool_(), [True, True], 2),
        (pa.decimal128(5, 2), [Decimal("999.99")] * 2, Decimal("1999.98")),
        (pa.decimal256(50, 2), [Decimal("999.99")] * 2, Decimal("1999.98")),
        (pa.duration("s"), [datetime.timedelta(seconds=5)] * 2, datetime.timedelta(seconds=10)),
    ],
)
def test_sums_of_each_type(type, values, total):
    table = pa.table({"k": [1] * 3, "x": pa.array([*values, None], type)})
    for keys in ((), ("k",)):
        out = aggregate(
            table, keys, named(("sum", "x"), ("min", "x"), ("max", "x"), ("count", "x"), ("n_unique", "x"))
        )
        assert out.column("sum_x").to_pylist() == [total]
        assert out.column("min_x").to_pylist() == [min(values)]
        assert out.column("max_x").to_pylist() == [max(values)]
        assert out.column("max_x").type == type
        assert out.column("count_x").to_pylist() == [2]
        assert out.column("n_unique_x").to_pylist() == [len(set(values))]


@pytest.mark.parametrize(
    "values",
    [
        [datetime.date(1969, 1, 1), datetime.date(2024, 1, 1)],
        [datetime.datetime(1969, 1, 1), datetime.datetime(2024, 1, 1)],
        [datetime.time(1), datetime.time(2)],
        ["", "\U0001f30a"],
        [b"\x00", b"\xff"],
        [False, True],
    ],
)
def test_extremes_of_ordered_types(values):
    table = pa.table({"x": [values[1], None, values[0], values[1]]})
    got = aggregate(table, (), named(("min", "x"), ("max", "x"), ("first", "x"), ("last", "x"))).to_pylist()
    assert got == [{"min_x": values[0], "max_x": values[1], "first_x": values[1], "last_x": values[1]}]


def test_aggregates_of_nothing():
    table = pa.table({"x": pa.array([], pa.float64())})
    wanted = (
        *named(("sum", "x"), ("mean", "x"), ("count", "x"), ("n_unique", "x"), ("first", "x")),
        Aggregation("n", "count", None),
    )
    types = [pa.float64(), pa.float64(), pa.int64(), pa.int64(), pa.float64(), pa.int64()]
    schema = pa.schema([(a.name, t) for a, t in zip(wanted, types)])
    row = {"sum_x": None, "mean_x": None, "count_x": 0, "n_unique_x": 0, "first_x": None, "n": 0}
    assert run(FinalAggregateKernel((), wanted, schema), iter([]))[0].to_pylist() == [row]
    assert aggregate(table, (), wanted).to_pylist() == [row]
    nulls = pa.table({"x": pa.array([None], pa.float64())})
    assert aggregate(nulls, (), wanted).to_pylist() == [{**row, "n": 1}]


def test_integer_sums_that_overflow_are_told():
    table = pa.table({"x": pa.array([2**62] * 4)})
    with pytest.raises(TypeMismatchError, match="float64"):
        aggregate(table, (), named(("sum", "x")))
    back = pa.table({"x": pa.array([2**62, 2**62, -(2**62), -(2**62)])})
    assert aggregate(back, (), named(("sum", "x"))).to_pylist() == [{"sum_x": 0}]


@pytest.mark.parametrize(
    ("function", "type", "error", "told"),
    [
        ("sum", pa.string(), TypeMismatchError, "cast"),
        ("mean", pa.date32(), TypeMismatchError, "numbers"),
        ("min", pa.list_(pa.int8()), TypeMismatchError, "order"),
        ("summ", pa.int8(), ParameterError, "'sum'"),
        ("sum", None, ParameterError, "column"),
    ],
)
def test_aggregations_that_can_not_be_are_told(function, type, error, told):
    with pytest.raises(error, match=told):
        aggregation_type(function, type, {})
    with pytest.raises(ParameterError, match="ddof"):
        aggregation_type("var", pa.int8(), {"ddof": -1})


def test_spilling_gives_the_same_rows_and_is_counted(big):
    other = big.slice(0, 5000).select(["w", "s"])
    schema = pa.schema([("w", pa.int64()), ("s", pa.string()), ("s2", pa.string())])
    for kernel, inputs in [
        (SortKernel((SortKey("s", descending=True), SortKey("x"))), [big]),
        (DistinctKernel(("w",)), [big]),
        (JoinKernel(("w",), ("w",), "left", (("s", "s2"),), schema), [other, big]),
        (TopKKernel((SortKey("x"),), 200_000), [big]),
    ]:
        plain, metrics = run(kernel, *(stream(table) for table in inputs))
        assert "spilled_bytes" not in metrics
        spilled, metrics = run(kernel, *(stream(table, 40_000) for table in inputs), memory=1 << 20)
        assert metrics["spilled_bytes"] > 1 << 20
        assert spilled.equals(plain)


def test_many_to_many_joins_stream_in_slices():
    left = pa.table({"k": [1] * 700, "a": range(700)})
    right = pa.table({"k": [1] * 700, "b": range(700)})
    kernel = JoinKernel(
        ("k",),
        ("k",),
        "inner",
        (("b", "b"),),
        pa.schema([("k", pa.int64()), ("a", pa.int64()), ("b", pa.int64())]),
    )
    tables = list(kernel.run([stream(left), stream(right)], Context()))
    assert [t.num_rows for t in tables] == [MORSEL_ROWS] * 3 + [490_000 - 3 * MORSEL_ROWS]
    joined = pa.concat_tables(tables)
    assert joined.column("a").to_numpy().tolist() == np.repeat(np.arange(700), 700).tolist()
    assert joined.column("b").to_numpy().tolist() == np.tile(np.arange(700), 700).tolist()


@pytest.mark.parametrize(
    ("type", "left", "right", "matches"),
    [
        (pa.uint64(), [2**64 - 1, 0, 1], [0, 2**64 - 1], [2**64 - 1, 0]),
        (pa.int64(), [-(2**63), 2**63 - 1, 0], [2**63 - 1, -(2**63)], [-(2**63), 2**63 - 1]),
        (pa.float16(), [1.5, 2.5], [1.5], [1.5]),
        (pa.null(), [None], [None], []),
        (pa.binary(), [b"\xff", b""], [b""], [b""]),
        (pa.timestamp("us", "UTC"), [datetime.datetime(2024, 1, 1)], [datetime.datetime(2024, 1, 2)], []),
        (pa.duration("s"), [datetime.timedelta(1)], [datetime.timedelta(1)], [datetime.timedelta(1)]),
        (pa.time64("us"), [datetime.time(1), datetime.time(2)], [datetime.time(2)], [datetime.time(2)]),
        (pa.binary(2), [b"ab", b"cd"], [b"cd"], [b"cd"]),
    ],
)
def test_join_keys_of_each_type(type, left, right, matches):
    schema = pa.schema([("k", type)])
    tables = [pa.table({"k": pa.array(values, type)}) for values in (left, right)]
    kernel = JoinKernel(("k",), ("k",), "semi", (), schema)
    assert run(kernel, *(stream(t) for t in tables))[0].column("k").to_pylist() == matches
    pair = JoinKernel(("k", "j"), ("k", "j"), "semi", (), pa.schema([("k", type), ("j", type)]))
    twice = [t.append_column("j", t.column("k")) for t in tables]
    assert run(pair, *(stream(t) for t in twice))[0].column("j").to_pylist() == matches


def test_a_broadcast_is_indexed_once():
    loads = []

    def load():
        loads.append(1)
        return stream(pa.table({"k": [1], "b": ["x"]}))

    right = Broadcast(load, pa.schema([("k", pa.int64()), ("b", pa.string())]), {})
    kernel = JoinKernel(
        ("k",), ("k",), "left", (("b", "b"),), pa.schema([("k", pa.int64()), ("b", pa.string())])
    )
    for _ in range(3):
        out, _ = run(kernel, stream(pa.table({"k": [2, 1]})), right)
        assert out.column("b").to_pylist() == [None, "x"]
    assert loads == [1]


@pytest.mark.parametrize(
    "type",
    [
        pa.float16(),
        pa.uint64(),
        pa.time32("s"),
        pa.duration("ms"),
        pa.decimal256(40, 1),
        pa.null(),
        pa.binary(),
    ],
)
def test_sort_and_ranges_agree_on_each_type(type):
    samples = {
        pa.float16(): [2.0, float("nan"), -1.0],
        pa.uint64(): [2**64 - 1, 0, 7],
        pa.time32("s"): [datetime.time(3), datetime.time(1), datetime.time(2)],
        pa.duration("ms"): [datetime.timedelta(3), datetime.timedelta(-1), datetime.timedelta(2)],
        pa.decimal256(40, 1): [Decimal("9.5"), Decimal("-1.0"), Decimal("2.0")],
        pa.binary(): [b"\xff", b"", b"a"],
        pa.null(): [None, None, None],
    }
    table = pa.table({"x": pa.array([*samples[type], None], type)})
    for key in (SortKey("x"), SortKey("x", True), SortKey("x", False, True), SortKey("x", True, True)):
        ordered, _ = run(SortKernel((key,)), stream(table))
        boundaries = ordered.slice(2, 1)
        segment = RangePartitioner((key,), 2, boundaries).assign(ordered, 0, 0)
        expected = [0, 0, 1, 1] if type != pa.null() else [1, 1, 1, 1]
        assert segment.tolist() == expected


@pytest.mark.parametrize("column", ["w", "x", "f", "u"])
@pytest.mark.parametrize(
    ("descending", "nulls_first"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_sorts_of_many_rows_are_stable(big, column, descending, nulls_first):
    table = big.append_column("u", pc.if_else(pc.equal(big["g"], 5), None, pc.shift_left(big["w"], 30)))
    table = table.select([column]).append_column("row", pa.array(np.arange(ROWS)))
    got, _ = run(SortKernel((SortKey(column, descending, nulls_first),)), stream(table, 70_000))
    expected = table.to_pandas().sort_values(
        [column], kind="stable", ascending=not descending, na_position="first" if nulls_first else "last"
    )
    assert got.column("row").to_numpy().tolist() == expected["row"].tolist()


def test_range_partitioner_without_boundaries_is_a_defect():
    with pytest.raises(PlanError, match="boundaries"):
        RangePartitioner((SortKey("x"),), 2).assign(pa.table({"x": [1]}), 0, 0)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    spill = SpillFile(tmp_path / "a", pa.schema([("x", pa.int64())]), Context(operator="sort by [x]"))

    class Full:
        def write_batch(self, batch):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill, "_writer", Full())
    with pytest.raises(DiskFullError, match="sort by"):
        spill.append(pa.table({"x": [1]}))


def test_spill_folders_are_removed(big, tmp_path):
    context = Context(memory_bytes=1 << 20, spill_root=tmp_path)
    rows = SortKernel((SortKey("x"),)).run([stream(big, 40_000)], context)
    next(rows)
    assert list(tmp_path.iterdir())
    rows.close()
    assert not list(tmp_path.iterdir())


def test_transform_prepares_its_state_once():
    class Shift:
        prepared = 0

        def parameters(self):
            return ()

        def prepare(self, state):
            Shift.prepared += 1
            return state.column("by")[0].as_py()

        def apply(self, table, by):
            return pa.table({"x": [value + by for value in table.column("x").to_pylist()]})

    state = Broadcast(lambda: iter([pa.table({"by": [10]})]), pa.schema([("by", pa.int64())]), {})
    for _ in range(2):
        assert run(TransformKernel(Shift()), stream(pa.table({"x": [1]})), state)[0].to_pydict() == {
            "x": [11]
        }
    assert Shift.prepared == 1
