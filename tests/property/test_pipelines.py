"""Random tables through random chains of operators give DuckDB's rows, over 1 to 7 partitions.

Each operator stands twice: as Headwater and as SQL. The chain's bytes must not depend on workers.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headwater as hw
from headwater import Dataset, col

SCHEMA = pa.schema(
    [
        ("k", pa.int64()),
        ("s", pa.string()),
        ("f", pa.float64()),
        ("d", pa.decimal128(10, 2)),
        ("t", pa.date32()),
        ("b", pa.bool_()),
    ]
)
VALUES = {
    "k": st.integers(-3, 3),
    "s": st.sampled_from(["", "a", "ab", "Zürich", "東京", "a much longer string than eight bytes", "🙂"]),
    "f": st.sampled_from([0.0, -0.0, 1.5, -2.25, 1e9, math.nan, math.inf, 3.0]),
    "d": st.sampled_from([decimal.Decimal(x) for x in ("0.00", "1.10", "-7.25", "99999999.99")]),
    "t": st.sampled_from(
        [datetime.date(1969, 12, 31), datetime.date(2020, 2, 29), datetime.date(2024, 1, 1)]
    ),
    "b": st.booleans(),
}


@st.composite
def tables(draw: st.DrawFn, most: int = 40) -> pa.Table:
    rows = draw(st.integers(0, most))
    columns = {
        name: draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        for name, values in VALUES.items()
    }
    return pa.table(columns, schema=SCHEMA)


@dataclass(frozen=True)
class Operation:
    """One operator, for Headwater and as SQL over the relation ``{0}``."""

    name: str
    apply: Callable[[Dataset, Dataset], Dataset]
    sql: Callable[[list[str]], str]


def _all_but(columns: list[str], name: str) -> str:
    return ", ".join(c for c in columns if c != name)


OPERATIONS = [
    Operation("filter int", lambda d, o: d.filter(col("k") > 0), lambda c: "SELECT * FROM {0} WHERE k > 0"),
    Operation(
        "filter text",
        lambda d, o: d.filter(col("s").is_in(["a", "東京"]) | col("s").is_null()),
        lambda c: "SELECT * FROM {0} WHERE s IN ('a', '東京') OR s IS NULL",
    ),
    Operation(
        "filter float",
        lambda d, o: d.filter((col("f") < 2) & col("f").is_not_nan()),
        lambda c: "SELECT * FROM {0} WHERE f < 2 AND NOT isnan(f)",
    ),
    Operation(
        "filter decimal and date",
        lambda d, o: d.filter((col("d") > decimal.Decimal("1.00")) | (col("t") < datetime.date(2020, 1, 1))),
        lambda c: "SELECT * FROM {0} WHERE d > 1.00 OR t < DATE '2020-01-01'",
    ),
    Operation(
        "compute",
        lambda d, o: d.with_columns(k=col("k") * 2 + 1, n=col("s").str.len()),
        lambda c: "SELECT k * 2 + 1 AS k, {rest}, length(s)::BIGINT AS n FROM {0}".replace(
            "{rest}", _all_but([x for x in c if x != "n"], "k")
        ),
    ),
    Operation(
        "when",
        lambda d, o: d.with_columns(k=hw.when(col("b")).then(col("k")).otherwise(-col("k"))),
        lambda c: "SELECT CASE WHEN b THEN k ELSE -k END AS k, {rest} FROM {0}".replace(
            "{rest}", _all_but(c, "k")
        ),
    ),
    Operation(
        "drop nulls",
        lambda d, o: d.drop_nulls("k", "s"),
        lambda c: "FROM {0} WHERE k IS NOT NULL AND s IS NOT NULL",
    ),
    Operation(
        "fill null",
        lambda d, o: d.fill_null({"k": 7, "s": "none"}),
        lambda c: "SELECT coalesce(k, 7) AS k, coalesce(s, 'none') AS s, {rest} FROM {0}".replace(
            "{rest}", ", ".join(x for x in c if x not in ("k", "s"))
        ),
    ),
    Operation("distinct", lambda d, o: d.distinct(), lambda c: "SELECT DISTINCT * FROM {0}"),
    Operation(
        "union", lambda d, o: d.union(d.filter(col("b"))), lambda c: "FROM {0} UNION ALL FROM {0} WHERE b"
    ),
    Operation("repartition", lambda d, o: d.repartition(3, by="k"), lambda c: "FROM {0}"),
    Operation("spread", lambda d, o: d.repartition(4), lambda c: "FROM {0}"),
    Operation("range", lambda d, o: d.repartition(3, by=["f", "s"], kind="range"), lambda c: "FROM {0}"),
    Operation(
        "inner join",
        lambda d, o: d.join(o.select("k", r=col("s")).distinct(), on="k").with_columns(s=col("r")).drop("r"),
        lambda c: (
            "SELECT {0}.k, r AS s, {rest} FROM {0} JOIN (SELECT DISTINCT k, s AS r FROM other) o ON {0}.k = o.k"
        ).replace("{rest}", ", ".join("{0}." + x for x in c if x not in ("k", "s"))),
    ),
    Operation(
        "left join",
        lambda d, o: (
            d.join(o.group_by("s", "t").agg(r=col("d").max()), on=["s", "t"], how="left", strategy="shuffle")
            .with_columns(d=col("r"))
            .drop("r")
        ),
        lambda c: (
            "SELECT {rest}, r AS d FROM {0} LEFT JOIN (SELECT s, t, max(d) AS r FROM other GROUP BY s, t) o "
            "ON {0}.s = o.s AND {0}.t = o.t"
        ).replace("{rest}", ", ".join("{0}." + x for x in c if x != "d")),
    ),
    Operation(
        "semi join",
        lambda d, o: d.join(o.filter(col("b")), on="f", how="semi"),
        lambda c: "FROM {0} WHERE f IN (SELECT f FROM other WHERE b)",
    ),
    Operation(
        "anti join",
        lambda d, o: d.join(o.filter(col("b")), on=["k", "t"], how="anti", strategy="shuffle"),
        lambda c: "FROM {0} WHERE NOT EXISTS (FROM other o WHERE o.b AND o.k = {0}.k AND o.t = {0}.t)",
    ),
    Operation(
        "aggregate",
        lambda d, o: d.group_by("s", "b", "t").agg(
            k=col("k").sum(), f=col("f").max(), d=col("d").min(), n=hw.count()
        ),
        lambda c: (
            "SELECT s, b, t, sum(k)::BIGINT AS k, max(f) AS f, min(d) AS d, count(*) AS n FROM {0} GROUP BY ALL"
        ),
    ),
    Operation(
        "count distinct",
        lambda d, o: d.group_by("k").agg(
            s=col("s").max(), f=col("f").min(), d=col("d").max(), t=col("t").min(), b=col("t").n_unique() > 1
        ),
        lambda c: (
            "SELECT k, max(s) AS s, min(f) AS f, max(d) AS d, min(t) AS t, count(DISTINCT t) > 1 AS b "
            "FROM {0} GROUP BY k"
        ),
    ),
    Operation("sort", lambda d, o: d.sort("f", "s", descending=[True, False]), lambda c: "FROM {0}"),
    Operation(
        "top",
        lambda d, o: d.sort(*sorted(d.columns), nulls_first=True).limit(5),
        lambda c: "FROM {0} ORDER BY " + ", ".join(f"{x} NULLS FIRST" for x in sorted(c)) + " LIMIT 5",
    ),
]


def rows_of(table: pa.Table, columns: list[str]) -> Counter:
    """The rows as a multiset, with one NaN and one zero."""

    def plain(value: object) -> object:
        if isinstance(value, float):
            return "nan" if math.isnan(value) else value + 0.0
        return value

    lists = [[plain(v) for v in table.column(name).to_pylist()] for name in columns]
    return Counter(zip(*lists)) if lists else Counter()


def oracle(table: pa.Table, other: pa.Table, operations: list[Operation]) -> pa.Table:
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    connection.register("step0", table)
    connection.register("other", other)
    for number, operation in enumerate(operations):
        columns = [row[0] for row in connection.execute(f"DESCRIBE step{number}").fetchall()]
        sql = operation.sql(columns).replace("{0}", f"step{number}")
        connection.execute(f"CREATE TEMP TABLE step{number + 1} AS {sql}")
    return connection.sql(f"FROM step{len(operations)}").to_arrow_table()


@pytest.fixture(scope="module")
def sessions():
    """The same small partitions, so that a few rows are shuffled into several, on one worker and on three."""
    small = hw.PlanOptions(partition_bytes=256, broadcast_bytes=128)
    with (
        hw.Session("inline", workers=1, options=small, journal=False) as one,
        hw.Session("inline", workers=3, options=small, journal=False) as three,
    ):
        yield one, three


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    table=tables(),
    other=tables(12),
    partitions=st.integers(1, 7),
    operations=st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=4),
)
def test_random_chains_give_duckdbs_rows_and_the_same_bytes_on_any_workers(
    sessions, table: pa.Table, other: pa.Table, partitions: int, operations: list[Operation]
):
    dataset = hw.from_arrow(table, partitions=partitions)
    right = hw.from_arrow(other, partitions=1 + partitions % 3)
    for operation in operations:
        dataset = operation.apply(dataset, right)
    one, three = sessions
    with dataset.run(one) as first, dataset.run(three) as second:
        result = first.table("result")
        assert first.digest("result") == second.digest("result")
        assert repr(result.to_pylist()) == repr(second.table("result").to_pylist())
    expected = oracle(table, other, operations)
    assert sorted(result.schema.names) == sorted(expected.schema.names)
    assert rows_of(result, result.schema.names) == rows_of(expected, result.schema.names)


@settings(max_examples=40, deadline=None)
@given(table=tables(), partitions=st.integers(1, 7), descending=st.booleans(), nulls_first=st.booleans())
def test_sorted_rows_stand_in_duckdbs_order(sessions, table, partitions, descending, nulls_first):
    numbered = table.append_column("i", pa.array(range(table.num_rows), pa.int64()))
    dataset = hw.from_arrow(numbered, partitions=partitions).sort(
        "f", "s", "t", descending=descending, nulls_first=nulls_first
    )
    order = f"{'DESC' if descending else 'ASC'} NULLS {'FIRST' if nulls_first else 'LAST'}"
    expected = duckdb.sql(
        f"SELECT i FROM numbered ORDER BY f {order}, s {order}, t {order}, i"
    ).to_arrow_table()
    assert dataset.compute(sessions[0]).column("i").to_pylist() == expected.column("i").to_pylist()


@settings(max_examples=40, deadline=None)
@given(
    table=tables(), partitions=st.integers(1, 7), seed=st.integers(0, 5), by=st.sampled_from([None, "k", "s"])
)
def test_a_split_is_complementary_and_keeps_equal_keys_together(sessions, table, partitions, seed, by):
    numbered = table.append_column("i", pa.array(range(table.num_rows), pa.int64()))
    train, test = hw.from_arrow(numbered, partitions=partitions).split(0.7, 0.3, by=by, seed=seed)
    left = train.select("i", "k", "s").compute(sessions[0])
    right = test.filter(col("i") >= 0).compute(sessions[0])
    assert sorted(left.column("i").to_pylist() + right.column("i").to_pylist()) == list(range(table.num_rows))
    if by is not None:
        assert not set(left.column(by).to_pylist()) & set(right.column(by).to_pylist())
