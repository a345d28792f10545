"""Approximate quantiles: within their accuracy of NumPy's, the same however rows are cut; errors say what to do."""

from __future__ import annotations

import datetime
import decimal
import warnings

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import headwater as hw
from headwater import col
from headwater.errors import ParameterError, TypeMismatchError
from headwater.ops.aggregate import Aggregation, FinalAggregateKernel, PartialAggregateKernel, state_schema
from headwater.ops.aggregations import AGGREGATIONS, aggregation_type
from headwater.ops.grouping import Groups, group
from headwater.ops.kernel import MORSEL_ROWS, Context
from headwater.ops.quantiles import (
    bucket_numbers,
    centres,
    mantissa_bits,
    most_buckets,
    sketch_array,
    sketch_parts,
    tally,
)

QS = (0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0)
#: the most that numbers without leading bits may be off, for each unit of accuracy
TINY = 2.3e-308
RNG = np.random.default_rng(5)
N = 5003
VALUES = {
    "lognormal": RNG.lognormal(0, 3, N),
    "normal": RNG.normal(0, 1, N),
    "far from zero": RNG.normal(1e9, 1, N),
    "heavy tails": RNG.standard_cauchy(N) ** 3,
    "every exponent": RNG.integers(0, 1 << 63, N, dtype=np.uint64).view(np.float64),
    "subnormal": RNG.integers(-(1 << 52), 1 << 52, N) * 5e-324,
    "least": np.array([5e-324, -5e-324, 0.0]),
    "constant": np.full(N, np.pi),
    "simple": RNG.integers(-64, 65, N) / 8,
    "zeros": np.where(RNG.random(N) < 0.5, 0.0, -0.0),
    "infinite": RNG.choice([-np.inf, np.inf, 1.0, -1.0], N),
    "extremes": np.array([np.finfo(float).max, np.finfo(float).tiny, -np.finfo(float).max]),
    "one": np.array([-2.5]),
    "float32": RNG.normal(0, 1e-39, N).astype(np.float32),
    "half": RNG.normal(0, 1e4, N).astype(np.float16),
    "small integers": RNG.integers(-128, 128, N).astype(np.int8),
    "integers": RNG.integers(-(2**63), 2**63 - 1, N, endpoint=True),
    "unsigned": RNG.integers(0, 2**64 - 1, N, dtype=np.uint64, endpoint=True),
    "integers of one exponent": RNG.integers(10**6, 10**6 + 5000, N),
    "ends of integers": np.array([-(2**63), 2**63 - 1, 2**63 - 2, 0, -(2**63) + 1]),
}


def aggregation(q, accuracy=0.01, name="a", column="x"):
    return Aggregation(name, "approx_quantile", column, (("accuracy", accuracy), ("q", q)))


def kernels(table, keys, aggregations):
    keys, aggregations = tuple(keys), tuple(aggregations)
    fields = [table.schema.field(key) for key in keys]
    for a in aggregations:
        type = aggregation_type(a.function, table.schema.field(a.column).type, dict(a.options))
        fields.append(pa.field(a.name, type))
    states = state_schema(table.schema, keys, aggregations)
    return PartialAggregateKernel(keys, aggregations, states), FinalAggregateKernel(
        keys, aggregations, pa.schema(fields)
    )


def run(kernel, tables, memory=1 << 30):
    return pa.concat_tables(kernel.run([iter(tables)], Context(memory_bytes=memory))).combine_chunks()


def exact(values, q):
    return np.quantile(values, q, method="lower")


@pytest.mark.parametrize("accuracy", [0.01, 0.25, 0.001, 1e-5])
@pytest.mark.parametrize("kind", VALUES)
def test_the_error_is_within_the_accuracy(kind, accuracy):
    values = VALUES[kind]
    values = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    table = pa.table({"x": values})
    partial, final = kernels(table, (), [aggregation(QS, accuracy)])
    found = run(final, [run(partial, [table])])["a"].chunk(0)
    assert found.type == pa.list_(table.schema.field("x").type)
    found = found.flatten().to_numpy()
    assert found[0] == values.min()
    assert found[-1] == values.max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for q, answer in zip(QS, found):
            wanted = exact(values, q)
            assert values.min() <= answer <= values.max()
            if float(wanted) != float(answer):  # infinities have no distance
                distance = abs(int(answer) - int(wanted)) if values.dtype.kind in "iu" else None
                off = abs(float(answer) - float(wanted)) if distance is None else distance
                assert off <= accuracy * (abs(float(wanted)) + TINY), (q, wanted, answer)


@pytest.mark.parametrize("unit", [1, 1.0, 0.125])
def test_small_integers_and_numbers_of_few_bits_are_exact(unit):
    values = RNG.integers(-100, 101, 999) * unit
    table = pa.table({"x": values})
    partial, final = kernels(table, (), [aggregation(QS)])
    found = run(final, [run(partial, [table])])["a"][0].as_py()
    assert found == [exact(values, q) for q in QS]


def test_groups_are_those_of_pandas_and_duckdb():
    rows = 20_000
    table = pa.table(
        {
            "k": RNG.integers(0, 300, rows),
            "x": pa.array(RNG.lognormal(0, 2, rows) * RNG.choice([-1, 1], rows), mask=RNG.random(rows) < 0.2),
        }
    )
    wanted = [aggregation(q, name=f"q{q}") for q in (0.1, 0.5, 0.99)]
    partial, final = kernels(table, ("k",), wanted)
    states = run(partial, [table])
    assert states.schema.names == ["k", "q0.1#sketch", "q0.1#min", "q0.1#max"]  # one state for all three
    found = run(final, [states]).to_pandas().set_index("k").sort_index()
    for q in (0.1, 0.5, 0.99):
        expected = table.to_pandas().groupby("k").x.quantile(q, interpolation="lower")
        np.testing.assert_allclose(found[f"q{q}"], expected, rtol=0.01)
    t = table  # noqa: F841  (DuckDB reads it by its name)
    frame = duckdb.sql("select k, count(x) n, quantile_disc(x, 0.5) m from t group by k order by k").df()
    odd = frame[frame.n % 2 == 1].set_index("k").m  # of an even number the definitions differ
    np.testing.assert_allclose(found["q0.5"][odd.index], odd, rtol=0.01)


def test_nulls_and_nan_are_as_in_min_and_max():
    table = pa.table(
        {
            "k": ["none", "none", "nan", "nan", "some", "some", "some", "one"],
            "x": pa.array([None, None, np.nan, np.nan, np.nan, 3.0, -1.0, 7.0], from_pandas=False),
        }
    )
    partial, final = kernels(table, ("k",), [aggregation(QS)])
    found = dict(zip(*run(final, [run(partial, [table])]).to_pydict().values()))
    assert found["none"] is None
    assert found["one"] == [7.0] * len(QS)
    assert np.isnan(found["nan"]).all()
    assert found["some"][0] == -1.0
    assert found["some"][4] == pytest.approx(3, rel=0.01)
    assert np.isnan(found["some"][-1])


def test_types_of_answers():
    day = datetime.timedelta(days=1)
    table = hw.from_arrow(
        {
            "price": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-7.25")], pa.decimal128(9, 2)),
            "wide": pa.array([decimal.Decimal(10) ** 30, None, decimal.Decimal(1)], pa.decimal128(38, 0)),
            "stay": pa.array([day, 9 * day, 4 * day], pa.duration("s")),
            "f": pa.array([1, 2, 3], pa.float32()),
        }
    )
    found = table.agg(
        *(col(name).approx_quantile(1).alias(name) for name in ("price", "wide", "stay", "f")),
        days=col("stay").approx_median(),
    ).compute(hw.Session("inline"))
    assert found.schema.types[:4] == [pa.float64(), pa.float64(), pa.duration("s"), pa.float32()]
    assert found.to_pylist()[0] | {"days": None} == {
        "price": 1.1,
        "wide": 1e30,
        "stay": 9 * day,
        "f": 3.0,
        "days": None,
    }
    assert abs(found["days"][0].as_py() / day - 4) <= 0.04


def test_nothing_has_no_quantiles():
    empty = hw.from_arrow({"x": pa.array([], pa.float64()), "k": pa.array([], pa.int64())})
    session = hw.Session("inline")
    answers = empty.agg(m=col("x").approx_median(), l=col("x").approx_quantile([0.1, 0.9])).compute(session)
    assert answers.to_pylist() == [{"m": None, "l": None}]
    assert empty.group_by("k").agg(m=hw.approx_median("x")).compute(session).num_rows == 0


def mixed(rows, groups=50):
    return pa.table(
        {
            "k": RNG.integers(0, groups, rows),
            "x": pa.array(RNG.standard_cauchy(rows), mask=RNG.random(rows) < 0.1),
            "y": RNG.integers(-(10**6), 10**6, rows),
        }
    )


@pytest.mark.parametrize("groups", [1, 50, 3 * MORSEL_ROWS])
def test_the_state_has_the_same_bytes_however_rows_are_cut(groups):
    table = mixed(2 * MORSEL_ROWS + 11, groups)
    wanted = [aggregation(0.3), aggregation(0.5, 0.001, "b", "y")]
    partial, final = kernels(table, ("k",), wanted)
    whole = run(final, [run(partial, [table])]).sort_by("k")
    codes = group([table["k"]], table.num_rows)
    state = AGGREGATIONS["approx_quantile"].partial(codes, table["x"].combine_chunks(), {})
    for parts in (2, 7):
        cuts = np.array_split(RNG.permutation(table.num_rows), parts)
        pieces = [run(partial, [table.take(cut)]) for cut in cuts]
        assert run(final, pieces[::-1]).sort_by("k").equals(whole)
        numbers = {
            key: number for number, key in enumerate(table["k"].take(pa.array(codes.first_rows)).to_pylist())
        }
        merged = pa.concat_tables(pieces).combine_chunks()
        owners = np.array([numbers[key] for key in merged["k"].to_pylist()])
        again = AGGREGATIONS["approx_quantile"].merge(
            Groups(owners, codes.count),
            tuple(merged[f"a#{part}"].chunk(0) for part in ("sketch", "min", "max")),
        )
        assert all(one.equals(other) for one, other in zip(again, state))


def test_states_that_spill_give_the_same_answers():
    table = mixed(40_000, 3000)
    partial, final = kernels(table, ("k",), [aggregation(QS), aggregation(0.5, name="b")])
    pieces = [run(partial, [table.slice(start, 5000)]) for start in range(0, 40_000, 5000)]
    context = Context(memory_bytes=1 << 18)
    spilled = pa.concat_tables(final.run([iter(pieces)], context)).combine_chunks()
    assert any("spill" in name for name in context.metrics)
    assert spilled.equals(run(final, pieces))


def test_partitions_make_no_difference():
    rows = hw.from_arrow(mixed(3000))
    session = hw.Session("inline")
    ask = {
        "m": col("x").approx_median(),
        "q": col("y").approx_quantile([0.25, 0.75]),
        "wide": col("x").approx_quantile(0.75) - col("x").approx_quantile(0.25),
        "rows": hw.count(),
    }
    one = rows.group_by("k").agg(**ask).sort("k").compute(session)
    many = rows.repartition(7).group_by("k").agg(**ask).sort("k").compute(session)
    assert many.equals(one)
    whole = rows.agg(**ask).compute(session)
    assert rows.repartition(5).agg(**ask).compute(session).equals(whole)


def test_the_plan_names_the_quantile_and_its_key_depends_on_it():
    rows = hw.from_arrow({"x": [1.0]})
    plans = [
        rows.agg(m=col("x").approx_quantile(q, accuracy=a))
        for q, a in ((0.5, 0.01), (0.9, 0.01), (0.5, 0.02), ([0.5], 0.01))
    ]
    assert "m=approx_quantile(x, q=0.9)" in str(plans[1])
    assert len({str(plan.node.key) for plan in plans}) == 4
    assert rows.agg(m=col("x").approx_median()).node.key == plans[0].node.key
    assert rows.agg(m=col("x").approx_quantile(np.float32(0.5))).node.key == plans[0].node.key


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: x.approx_quantile(1.5), ParameterError, "a number from 0 to 1"),
        (lambda x: x.approx_quantile([]), ParameterError, "a number from 0 to 1"),
        (lambda x: x.approx_quantile([0.5, "0.9"]), ParameterError, "a number from 0 to 1"),
        (lambda x: x.approx_quantile(float("nan")), ParameterError, "a number from 0 to 1"),
        (lambda x: x.approx_quantile(True), ParameterError, "a number from 0 to 1"),
        (lambda x: x.approx_median(accuracy=0.3), ParameterError, "from 0.00001 to 0.25"),
        (lambda x: x.approx_median(accuracy=None), ParameterError, "from 0.00001 to 0.25"),
        (lambda x: x.cast("string").approx_median(), TypeMismatchError, "numbers or durations"),
        (lambda x: x.cast("timestamp[us]").approx_median(), TypeMismatchError, "duration since one of them"),
        (lambda x: (x > 1).approx_median(), TypeMismatchError, "Cast it first"),
    ],
)
def test_errors_say_what_to_write(call, error, says):
    with pytest.raises(error, match=says):
        hw.from_arrow({"x": [1, 2]}).agg(m=call(col("x")))


@pytest.mark.parametrize("bits", [1, 6, 16])
def test_buckets_ascend_and_hold_what_they_round_to(bits):
    values = np.unique(VALUES["every exponent"])  # NaN last
    values = np.concatenate([-values[~np.isnan(values)][::-1], values])
    buckets = bucket_numbers(values, bits)
    assert (np.diff(buckets) >= 0).all()
    again = bucket_numbers(centres(buckets, bits, np), bits)
    assert (again == buckets).all()
    assert np.abs(buckets).max() <= most_buckets(2.0 ** -(bits + 1)) // 2
    assert mantissa_bits({"accuracy": 2.0 ** -(bits + 1)}) == bits


@pytest.mark.parametrize(
    ("groups", "buckets"), [(1, 10), (1, 1 << 20), (9, 1 << 20), (5000, 3), (5000, 1 << 20)]
)
def test_tallies_are_those_of_a_dictionary(groups, buckets):
    codes = RNG.integers(0, groups, 2000)
    numbers = RNG.integers(-buckets, buckets, 2000).astype(np.int32)
    rows = RNG.integers(1, 1 << 40, 2000)
    for counts in (None, rows):
        parts = tally(codes, numbers, counts, groups + 1)  # the last group is empty
        weights = np.ones(2000, np.int64) if counts is None else counts
        frame = pd.DataFrame({"code": codes, "bucket": numbers, "rows": weights})
        expected = frame.groupby(["code", "bucket"]).rows.sum()
        owners = np.repeat(np.arange(groups + 1), np.diff(parts[0]))
        assert list(zip(owners, parts[1])) == list(expected.index)
        assert (parts[2] == expected.to_numpy()).all()
        assert all((one == other).all() for one, other in zip(sketch_parts(sketch_array(*parts)), parts))
        assert (sketch_parts(sketch_array(*parts)[1:])[1] == parts[1][parts[0][1] :]).all()
