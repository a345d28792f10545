"""Sketches of quantiles on a device: the buckets, counts and answers of the host, to the bit."""

from __future__ import annotations

import decimal

import numpy as np
import pyarrow as pa
import pytest

import headwater as hw
from headwater import col
from headwater.ops.aggregate import Aggregation, FinalAggregateKernel, PartialAggregateKernel, state_schema
from headwater.ops.aggregations import aggregation_type
from headwater.ops.backend import to_host, use_backend
from headwater.ops.device.arrays.sketches import NONE, Sketches, column_of, number_buckets, sketches_of, tally
from headwater.ops.device.column import joined, to_arrow, to_device
from headwater.ops.device.device_kernel import DeviceKernel, device_kernel
from headwater.ops.device.operators import aggregate as device_aggregate
from headwater.ops.device.operators.partition import hash_partition
from headwater.ops.device.table import to_arrow as table_to_arrow
from headwater.ops.device.table import to_device as table_to_device
from headwater.ops.kernel import Context
from headwater.ops.quantiles import SKETCH, bucket_numbers
from headwater.planner.options import PlanOptions
from headwater.session import explain

RNG = np.random.default_rng(11)
ODD = np.array(
    [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 5e-324, -5e-324, 1.797e308, -1.797e308, -1.0, 2.0**-1022]
)
VALUES = {
    "floats": np.concatenate(
        [RNG.standard_cauchy(3000), ODD, RNG.integers(0, 1 << 64, 999, np.uint64).view(float)]
    ),
    "singles": np.concatenate([RNG.normal(size=2500), [1e-45, 3e38, np.inf, np.nan]]).astype(np.float32),
    "integers": np.concatenate(
        [RNG.integers(-(2**63), 2**63 - 1, 3000), [2**63 - 1, -(2**63), 0, 2**53 + 1]]
    ),
    "unsigned": np.concatenate(
        [RNG.integers(0, 2**64 - 1, 3000, np.uint64), np.array([2**64 - 1, 0], np.uint64)]
    ),
    "bytes": RNG.integers(-128, 128, 2500).astype(np.int8),
    "constant": np.full(2049, 7.5),
    "one": np.array([3.0]),
    "none": np.zeros(0),
}


def there(xp, array):
    return xp.asarray(array)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("nulls", [0.0, 0.4, 1.0])
def test_buckets(xp, kind, nulls):
    values = VALUES[kind]
    valid = RNG.random(len(values)) >= nulls if nulls else None
    with np.errstate(invalid="ignore"):
        expected = bucket_numbers(values, 6)
    if valid is not None:
        expected[~valid] = NONE
    known = expected[expected != NONE]
    for module in (xp, np):
        mask = None if valid is None else there(module, valid)
        buckets, low, high = number_buckets(there(module, values), mask, 6, module)
        assert (to_host(buckets) == expected).all()
        if len(known):
            assert (low, high) == (known.min(), known.max())
        else:
            assert low > high


# (groups, how far apart buckets are): a table, a table of the buckets there are, and a sort
SHAPES = {"table": (5, 300), "far apart": (5, 12_000), "sorted": (900, 700), "wide keys": (2000, 1 << 22)}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_tallies(xp, shape, weighted):
    groups, spread = SHAPES[shape]
    codes = RNG.integers(0, groups, 5000).astype(np.int32)
    kinds = RNG.integers(-spread, spread, 20 if shape == "far apart" else 4000)
    buckets = RNG.choice(kinds, 5000).astype(np.int32)
    codes[1000:1200], buckets[1000:1200] = 3, kinds[0]  # whole warps of one pair
    buckets[RNG.random(5000) < 0.1] = NONE
    weights = RNG.integers(1, 1 << 40, 5000) if weighted else None
    known = buckets[buckets != NONE]
    ends = int(known.min()), int(known.max())
    expected = tally(codes, (buckets, *ends), weights, groups + 1, np)
    found = tally(
        there(xp, codes),
        (there(xp, buckets), *ends),
        None if weights is None else there(xp, weights),
        groups + 1,
        xp,
    )
    for name in ("starts", "buckets", "rows"):
        one, other = to_host(getattr(found, name)), getattr(expected, name)
        assert one.dtype == other.dtype
        assert (one == other).all(), name
    total = len(known) if weights is None else weights[buckets != NONE].sum()
    assert expected.rows.sum() == total


def random_sketches(xp, groups):
    codes, buckets = RNG.integers(0, groups, 400).astype(np.int32), RNG.integers(-9, 9, 400).astype(np.int32)
    return tally(there(xp, codes), (there(xp, buckets), -9, 8), None, groups, xp)


def test_columns_of_sketches_move_as_others_do(xp):
    ours = column_of(random_sketches(xp, 70))
    plain = to_arrow(ours)
    assert plain.type == SKETCH
    rows = RNG.integers(0, 70, 33)
    taken = ours.take(there(xp, rows))
    assert to_arrow(taken).equals(plain.take(pa.array(rows)))
    assert sketches_of(taken, xp).to_arrow().equals(to_arrow(taken))
    back = to_device(plain, xp)
    assert to_arrow(back.slice(5, 40)).equals(plain[5:40])
    assert isinstance(joined([ours, back], xp).dictionary, Sketches)
    for pair in ([ours, back.slice(60, 70)], [back.slice(3, 9), back], [taken, ours]):
        both = joined(pair, xp)
        assert to_arrow(both).equals(pa.concat_arrays([to_arrow(part) for part in pair]))
    assert ours.nbytes > ours.slice(0, 7).nbytes > 28
    table = pa.table({"k": RNG.integers(0, 9, 70), "s": plain})
    moved, offsets = hash_partition(table_to_device(table, xp), ["k"], 4, xp)
    again, bounds = hash_partition(table_to_device(table, np), ["k"], 4, np)
    assert table_to_arrow(moved).equals(table_to_arrow(again))
    assert (offsets == bounds).all()


NAMES = ("f", "i", "dec", "span", "none")
WANTED = (
    *(
        Aggregation(f"{name}{q}", "approx_quantile", name, (("q", q),))
        for name in NAMES
        for q in (0.0, 0.3, 1.0)
    ),
    Aggregation("fine", "approx_quantile", "f", (("accuracy", 0.001), ("q", 0.5))),
    Aggregation("rows", "count", None),
    Aggregation("mean", "max", "f"),
)


def rows_of(rows, groups):
    rng = np.random.default_rng([rows, groups])

    def column(values, type=None):
        return pa.array(values, type, mask=rng.random(rows) < 0.2, from_pandas=False)

    odd = rng.choice(ODD, rows)
    return pa.table(
        {
            "k": column(rng.integers(0, groups, rows)),
            "f": column(np.where(rng.random(rows) < 0.1, odd, rng.lognormal(0, 2, rows))),
            "i": column(rng.integers(-(2**62), 2**62, rows)),
            "dec": column(
                [decimal.Decimal(int(v)) / 1000 for v in rng.integers(-(10**9), 10**9, rows)],
                pa.decimal128(15, 3),
            ),
            "span": column(rng.integers(0, 2**40, rows), pa.duration("ms")),
            "none": pa.nulls(rows, pa.int64()),
        }
    )


def kernels(schema, keys):
    fields = [schema.field(key) for key in keys]
    for a in WANTED:
        type = None if a.column is None else schema.field(a.column).type
        fields.append(pa.field(a.name, aggregation_type(a.function, type, dict(a.options))))
    return (
        PartialAggregateKernel(keys, WANTED, state_schema(schema, keys, WANTED)),
        FinalAggregateKernel(keys, WANTED, pa.schema(fields)),
    )


def on_host(kernel, tables):
    return pa.concat_tables(kernel.run([iter(tables)], Context())).combine_chunks()


def on_device(kernel, tables, xp):
    lowered = device_kernel(kernel, [tables[0].schema])
    assert isinstance(lowered, DeviceKernel), lowered
    with use_backend(xp.__name__):
        found = list(lowered.run([(table_to_device(table, xp) for table in tables)], Context()))
    return pa.concat_tables([table_to_arrow(part) for part in found]).combine_chunks()


def assert_same(found, expected):
    """Equal, where NaN equals NaN."""
    assert found.schema == expected.schema
    assert found.num_rows == expected.num_rows
    assert repr(found.to_pylist()) == repr(expected.to_pylist())


@pytest.mark.parametrize(("keys", "groups"), [((), 1), (("k",), 30), (("k",), 900)])
def test_either_side_goes_on_from_the_other(xp, keys, groups, monkeypatch):
    monkeypatch.setattr(device_aggregate, "UNIT_ROWS", 700)
    monkeypatch.setattr(device_aggregate, "_FIRST_MERGE", 40)
    table = rows_of(2200, groups)
    partial, final = kernels(table.schema, keys)
    expected = on_host(final, [on_host(partial, [table])])
    host = on_host(partial, [table])
    states = on_device(partial, [table.slice(0, 900), table.slice(900)], xp)
    assert_same(on_host(final, [states]), expected)
    assert_same(on_device(final, [states, host], xp), on_host(final, [states, host]))
    assert_same(on_device(final, [on_device(partial, [table], np)], np), expected)
    if groups < 100:  # all merged
        assert_same(states, host)


@pytest.mark.parametrize("module", ["device", "twin"])
def test_states_beyond_the_device_are_merged_by_parts(xp, module, monkeypatch, tmp_path):
    xp = xp if module == "device" else np
    monkeypatch.setattr(device_aggregate, "_MOST_STATES", 60_000)
    table = rows_of(3000, 90)
    partial, final = kernels(table.schema, ("k",))
    states = [on_host(partial, [table.slice(start, 1000)]) for start in range(0, 3000, 1000)]
    context = Context(spill_root=tmp_path)
    lowered = device_kernel(final, [states[0].schema])
    read = []
    monkeypatch.setattr(type(lowered), "_by_parts", counted(type(lowered)._by_parts, read))
    with use_backend(xp.__name__):
        found = [
            table_to_arrow(part) for part in lowered.run([(table_to_device(s, xp) for s in states)], context)
        ]
    assert len(read) >= 1  # though without their sketches they have room
    assert_same(pa.concat_tables(found), on_host(final, states))


def counted(function, calls):
    def call(*args):
        calls.append(args)
        return function(*args)

    return call


def test_of_nothing(xp):
    table = rows_of(0, 1)
    partial, final = kernels(table.schema, ())
    states = partial.schema.empty_table()
    assert_same(on_device(final, [states], xp), on_host(final, [states]))


def test_in_a_session_it_is_on_the_device(xp, monkeypatch):
    monkeypatch.setenv("HEADWATER_BACKEND", "cupy")
    rows = hw.from_arrow(rows_of(4000, 20), partitions=3)
    ask = rows.group_by("k").agg(
        m=col("f").approx_median(), q=col("i").approx_quantile(0.9), spread=col("i").std(), n=hw.count()
    )
    lists = rows.agg(q=col("f").approx_quantile([0.1, 0.9]))
    said = explain({"ask": ask, "lists": lists}, PlanOptions(device="gpu"))
    assert said.count("partial aggregate [gpu]") == 2
    assert said.count("final aggregate [gpu]") == 1
    assert "final aggregate: 'q' is list<item: double>" in said  # which is the host's
    tables = {}
    for device in ("cpu", "gpu"):
        with hw.Session("inline", device=device, journal=False) as session:
            tables[device] = [
                ask.sort("k").select("k", "m", "q", "n").compute(session),
                lists.compute(session),
            ]
    for found, expected in zip(tables["gpu"], tables["cpu"]):
        assert_same(found, expected)
