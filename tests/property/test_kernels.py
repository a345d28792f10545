"""Kernels against DuckDB on random tables, with any chunking and any memory bound."""

import datetime
import math
from decimal import Decimal
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.ops.aggregate import (
    Aggregation,
    FinalAggregateKernel,
    PartialAggregateKernel,
    aggregation_type,
    state_schema,
)
from headwater.ops.distinct import DistinctKernel
from headwater.ops.expressions.expr import Column
from headwater.ops.filter import FilterKernel
from headwater.ops.join import JoinKernel
from headwater.ops.kernel import Broadcast, Context
from headwater.ops.limit import LimitKernel
from headwater.ops.map_batches import MapBatchesKernel
from headwater.ops.partitioner import (
    HashPartitioner,
    KeySampler,
    RangePartitioner,
    RoundRobinPartitioner,
    range_boundaries,
)
from headwater.ops.project import ProjectKernel
from headwater.ops.sample import SampleKernel
from headwater.ops.sort import SortKernel, SortKey, TopKKernel

SCHEMA = pa.schema(
    [
        ("i", pa.int64()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("d", pa.decimal128(10, 2)),
        ("t", pa.date32()),
        ("b", pa.bool_()),
        ("x", pa.float64()),
        ("l", pa.list_(pa.int32())),
    ]
)
KEYS = ["i", "f", "s", "d", "t", "b"]
VALUES = {
    "i": st.integers(-3, 3) | st.sampled_from([2**40, -(2**40)]),
    "f": st.sampled_from([0.0, -0.0, 1.5, -1.5, math.nan, math.inf, -math.inf, 1e300]),
    "s": st.sampled_from(["", "a", "b", "ab", "ß", "日本", "\U0001f30a", "a" * 40]),
    "d": st.sampled_from([Decimal("0.00"), Decimal("1.10"), Decimal("-99999999.99")]),
    "t": st.sampled_from([datetime.date(1969, 12, 31), datetime.date(2024, 2, 29)]),
    "b": st.booleans(),
    "x": st.floats(-1e6, 1e6),
    "l": st.lists(st.integers(0, 3) | st.none(), max_size=3),
}
few = settings(max_examples=25, deadline=None)
key_lists = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True).map(tuple)
sort_lists = st.lists(
    st.builds(SortKey, st.sampled_from(KEYS), st.booleans(), st.booleans()), min_size=1, max_size=3
).map(tuple)


@st.composite
def tables(draw, most=24):
    """Tables of up to ``most`` rows; each value is null with some chance."""
    rows = draw(st.integers(0, most))
    columns = {
        name: draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        for name, values in VALUES.items()
    }
    return pa.table(columns, schema=SCHEMA)


@st.composite
def cuts(draw):
    """A way to cut a table into a stream, empty tables included."""
    places = draw(st.lists(st.floats(0, 1), max_size=5).map(sorted))

    def cut(table):
        ends = [0, *(int(place * table.num_rows) for place in places), table.num_rows]
        return [table.slice(a, b - a) for a, b in pairwise(ends)]

    return cut


def whole(table):
    return [table] if table.num_rows else []


def run(kernel, *inputs, memory=1 << 28, partition=0):
    """Run a kernel over lists of tables; returns its rows as one table, None if it gave no table."""
    given = [source if isinstance(source, Broadcast) else iter(source) for source in inputs]
    out = list(kernel.run(given, Context(partition=partition, memory_bytes=memory)))
    return pa.concat_tables(out) if out else None


def exactly(table):
    """Rows as text: tells -0.0 from 0.0 and every bit of a float, and NaN equals NaN."""
    return None if table is None or not table.num_rows else [table.schema.names, repr(table.to_pylist())]


def same_however_run(kernel, table, cut, memory=200):
    """The kernel's rows; the same for another chunking and for hardly any memory."""
    plain = run(kernel, whole(table))
    assert exactly(run(kernel, cut(table))) == exactly(plain)
    assert exactly(run(kernel, cut(table), memory=memory)) == exactly(plain)
    return table.schema.empty_table() if plain is None else plain


def duck(sql, **sources):
    with duckdb.connect() as connection:
        connection.execute("set threads = 1")
        for name, table in sources.items():
            numbered = table.append_column("rn", pa.array(np.arange(table.num_rows)))
            connection.register(name, numbered)
        return connection.execute(sql).fetchall()


def quoted(names, prefix=""):
    return ", ".join(f'{prefix}"{name}"' for name in names)


def order_by(keys):
    return ", ".join(
        f'"{k.column}" {"desc" if k.descending else "asc"} nulls {"first" if k.nulls_first else "last"}'
        for k in keys
    )


@few
@given(tables(), sort_lists, cuts())
def test_sort(table, keys, cut):
    got = same_however_run(SortKernel(keys), table, cut)
    expected = [row[0] for row in duck(f"select rn from t order by {order_by(keys)}, rn", t=table)]
    assert exactly(got) == exactly(table.take(pa.array(expected, pa.int64())))


@few
@given(tables(), sort_lists, cuts(), st.integers(0, 20))
def test_top_k_is_sort_and_limit(table, keys, cut, count):
    got = same_however_run(TopKKernel(keys, count), table, cut)
    ordered = duck(f"select rn from t order by {order_by(keys)}, rn limit {count}", t=table)
    assert exactly(got) == exactly(table.take(pa.array([row[0] for row in ordered], pa.int64())))


@few
@given(tables(), key_lists, cuts())
def test_distinct(table, keys, cut):
    got = same_however_run(DistinctKernel(keys), table, cut)
    firsts = duck(f"select min(rn) as first from t group by {quoted(keys)} order by first", t=table)
    assert exactly(got) == exactly(table.take(pa.array([row[0] for row in firsts], pa.int64())))


@few
@given(tables(20), cuts())
def test_distinct_rows_with_lists(table, cut):
    table = table.select(["i", "b", "l"])
    got = same_however_run(DistinctKernel(None), table, cut)
    seen = dict.fromkeys(repr(row) for row in table.to_pylist())
    assert [repr(row) for row in got.to_pylist()] == list(seen)


JOINS = {
    "inner": "select l.rn, r.rn from l join r on {on} order by l.rn, r.rn",
    "left": "select l.rn, r.rn from l left join r on {on} order by l.rn, r.rn",
    "semi": "select l.rn, null from l where exists (from r where {on}) order by l.rn",
    "anti": "select l.rn, null from l where not exists (from r where {on}) order by l.rn",
}


@few
@given(tables(16), tables(16), key_lists, st.sampled_from(list(JOINS)), cuts(), cuts())
def test_join(left, right, keys, how, cut, other):
    taken = [(name, f"r_{name}") for name in right.schema.names if name not in keys]
    taken = tuple(taken) if how in ("inner", "left") else ()
    schema = pa.schema([*left.schema, *(pa.field(out, SCHEMA.field(name).type) for name, out in taken)])
    kernel = JoinKernel(keys, keys, how, taken, schema)

    pairs = duck(JOINS[how].format(on=" and ".join(f'l."{k}" = r."{k}"' for k in keys)), l=left, r=right)
    rows, matches = (pa.array([pair[side] for pair in pairs], pa.int64()) for side in (0, 1))
    expected = left.take(rows)
    for name, out in taken:
        expected = expected.append_column(out, right.column(name).take(matches))

    broadcast = Broadcast(lambda: iter(other(right)), right.schema, {})
    for got in (
        run(kernel, whole(left), whole(right)),
        run(kernel, cut(left), broadcast),
        run(kernel, cut(left), other(right), memory=200),
    ):
        assert exactly(got) == exactly(expected)
        assert got is None or got.schema == schema


AGGREGATES = {
    "sum": ["x", "d", "b", "i"],
    "mean": ["x", "d", "i"],
    "var": ["x"],
    "std": ["x"],
    "min": [*KEYS, "x"],
    "max": [*KEYS, "x"],
    "count": [*KEYS, "l"],
    "n_unique": KEYS,
    "first": [*KEYS, "l"],
    "last": [*KEYS, "l"],
}
SQL = {
    "sum": "sum({c})",
    "mean": "avg({c})",
    "var": "var_samp({c})",
    "std": "stddev_samp({c})",
    "n_unique": "count(distinct {c})",
    "first": "first({c} order by rn)",
    "last": "last({c} order by rn)",
}
ALL = (
    *(Aggregation(f"{f}_{c}", f, c) for f, cs in AGGREGATES.items() for c in cs),
    Aggregation("rows", "count", None),
)


def aggregate_kernels(keys, aggregations, schema=SCHEMA):
    states = state_schema(schema, keys, aggregations)
    types = [
        aggregation_type(
            a.function, None if a.column is None else schema.field(a.column).type, dict(a.options)
        )
        for a in aggregations
    ]
    output = pa.schema(
        [
            *(schema.field(k) for k in keys),
            *(pa.field(a.name, t) for a, t in zip(aggregations, types)),
        ]
    )
    return PartialAggregateKernel(keys, aggregations, states), FinalAggregateKernel(
        keys, aggregations, output
    )


def close(got, expected):
    if isinstance(got, float) and isinstance(expected, int | float | Decimal):
        expected = float(expected)
        return (math.isnan(got) and math.isnan(expected)) or got == pytest.approx(
            expected, rel=1e-9, abs=1e-6
        )
    return got == expected


@few
@given(tables(), st.just(()) | key_lists, cuts(), cuts())
def test_aggregate(table, keys, cut, parts):
    partial, final = aggregate_kernels(keys, ALL)
    partitions = [run(partial, cut(part)) for part in parts(table)]
    states = [state for state in partitions if state is not None]
    got = run(final, states)
    assert exactly(run(final, states, memory=200)) == exactly(got)
    assert [run(partial, whole(part)) is None for part in parts(table)] == [p is None for p in partitions]

    terms = [
        "count(*)"
        if a.column is None
        else SQL.get(a.function, a.function + "({c})").format(c=f'"{a.column}"')
        for a in ALL
    ]
    by = f"group by {quoted(keys)}" if keys else ""
    terms = [*(f"first({quoted([k])} order by rn)" for k in keys), *terms]
    expected = duck(f"select {', '.join(terms)} from t {by} order by min(rn)", t=table)
    rows = [] if got is None else list(zip(*(column.to_pylist() for column in got.columns)))
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected):
        for name, a, b in zip(got.schema.names, row, wanted):
            assert close(a, b), (name, a, b)


@few
@given(tables(), key_lists, st.integers(1, 7))
def test_hash_partitions_hold_whole_groups(table, keys, count):
    segment = HashPartitioner(keys, count).assign(table, 0, 0)
    assert segment.dtype == np.uint32
    assert len(segment) == table.num_rows
    assert (segment < count).all()
    cut = table.append_column("segment", pa.array(segment))
    split = duck(f"select count(distinct segment) from t group by {quoted(keys)}", t=cut)
    assert all(segments == 1 for (segments,) in split)


@few
@given(tables(), sort_lists, st.integers(1, 7), cuts())
def test_range_partitions_in_order_are_the_sorted_rows(table, keys, count, cut):
    samples = []
    for pieces in (cut(table), whole(table)):
        sampler = KeySampler(keys, (1, 2), size=9)
        for piece in pieces:
            sampler.update(piece)
        samples.append(sampler.result())
    if table.num_rows:
        assert exactly(samples[0].keys) == exactly(samples[1].keys)
        assert samples[0].rows == table.num_rows
        assert samples[0].keys.num_rows == min(9, table.num_rows)
    boundaries = range_boundaries([s for s in samples if s is not None], keys, count)
    assert boundaries.num_rows < count
    segment = RangePartitioner(keys, count, boundaries).assign(table, 0, 0)
    assert (segment <= boundaries.num_rows).all()
    pieces = [run(SortKernel(keys), whole(table.filter(pa.array(segment == i)))) for i in range(count)]
    pieces = [piece for piece in pieces if piece is not None]
    joined = pa.concat_tables(pieces) if pieces else table
    assert exactly(joined) == exactly(run(SortKernel(keys), whole(table)))


@few
@given(tables(), cuts(), st.integers(0, 70))
def test_streaming_kernels_do_not_see_chunks(table, cut, count):
    limited = same_however_run(LimitKernel(count), table, cut)
    assert exactly(limited) == exactly(table.slice(0, count))

    kept = same_however_run(FilterKernel(Column("b")), table, cut)
    assert exactly(kept) == exactly(table.filter(pc.equal(table.column("b"), True)))

    exprs = (("z", Column("s")), ("i", Column("i")))
    projected = same_however_run(
        ProjectKernel(exprs, pa.schema([("z", pa.string()), ("i", pa.int64())])), table, cut
    )
    if table.num_rows:
        assert exactly(projected) == exactly(table.select(["s", "i"]).rename_columns(["z", "i"]))

    low = same_however_run(SampleKernel(0.0, 0.4, 7, "stream"), table, cut)
    high = same_however_run(SampleKernel(0.4, 1.0, 7, "stream"), table, cut)
    both = sorted(repr(row) for part in (low, high) for row in part.to_pylist())
    assert both == sorted(repr(row) for row in table.to_pylist())

    sizes = []
    identity = MapBatchesKernel(
        lambda rows: sizes.append(rows.num_rows) or rows, SCHEMA, "arrow", 8, True, "identity"
    )
    same_however_run(identity, table, cut)
    assert sizes == [*[8] * (table.num_rows // 8), *([table.num_rows % 8] if table.num_rows % 8 else [])] * 3


@given(st.integers(0, 50), st.integers(1, 9), st.integers(0, 5))
def test_round_robin_counts_rows_of_the_partition(rows, count, partition):
    table = pa.table({"a": range(rows)})
    whole_table = RoundRobinPartitioner(count).assign(table, partition, 0)
    half = rows // 2
    pieces = [
        RoundRobinPartitioner(count).assign(table.slice(0, half), partition, 0),
        RoundRobinPartitioner(count).assign(table.slice(half), partition, half),
    ]
    assert np.concatenate(pieces).tolist() == whole_table.tolist()
    assert whole_table.tolist() == [(partition + r) % count for r in range(rows)]
