"""Random tables through random chains of operators give DuckDB's rows, over 1 to 7 partitions.

Each operator stands twice: as Headwater and as SQL. The chain's bytes must not depend on workers.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headwater as hw
from headwater import Dataset, col
from headwater.planner.optimizer import PHYSICAL_RULES, RULE_NAMES

SCHEMA = pa.schema(
    [
        ("k", pa.int64()),
        ("s", pa.string()),
        ("f", pa.float64()),
        ("d", pa.decimal128(10, 2)),
        ("t", pa.date32()),
        ("b", pa.bool_()),
        ("l", pa.list_(pa.struct([("x", pa.int32()), ("y", pa.string())]))),
    ]
)
#: what every operation keeps; the others come and go
KEPT = ["k", "s", "f", "d", "t", "b"]
VALUES = {
    "k": st.integers(-3, 3),
    "s": st.sampled_from(["", "a", "ab", "Zürich", "東京", "a much longer string than eight bytes", "🙂"]),
    "f": st.sampled_from([0.0, -0.0, 1.5, -2.25, 1e9, math.nan, math.inf, 3.0]),
    "d": st.sampled_from([decimal.Decimal(x) for x in ("0.00", "1.10", "-7.25", "99999999.99")]),
    "t": st.sampled_from(
        [datetime.date(1969, 12, 31), datetime.date(2020, 2, 29), datetime.date(2024, 1, 1)]
    ),
    "b": st.booleans(),
    "l": st.lists(st.sampled_from([None, {"x": 1, "y": "é"}, {"x": None, "y": None}]), max_size=2),
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


def _all_but(columns: list[str], *names: str) -> str:
    return ", ".join(c for c in columns if c not in names)


def add_one_arrow(table: pa.Table) -> pa.Table:
    """A user function of a table."""
    return table.set_column(table.schema.get_field_index("k"), "k", pc.add(table["k"], 1))


def swap_numpy(batch: dict) -> dict:
    """A user function of arrays, that only passes values on."""
    return {
        "k": batch["k"],
        "s": batch["s"],
        "f": batch["f"],
        "d": batch["d"],
        "t": batch["t"],
        "b": batch["b"],
    }


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
        lambda d, o: d.select(*KEPT).sort(*KEPT, nulls_first=True).limit(5),
        lambda c: f"SELECT {_KEPT} FROM {{0}} ORDER BY {_NULLS_FIRST} LIMIT 5",
    ),
    Operation(
        "first row of each key, as sorted",
        lambda d, o: d.select(*KEPT).sort(*KEPT).distinct("b", "d"),
        lambda c: f"SELECT DISTINCT ON (b, d) {_KEPT} FROM {{0}} ORDER BY {_NULLS_LAST}",
    ),
    Operation(
        "first and last as sorted",
        lambda d, o: (
            d.sort(*KEPT)
            .group_by("d", "t")
            .agg(k=col("k").first(), s=col("s").last(), f=col("f").last(), b=col("b").first())
        ),
        lambda c: (
            f"SELECT d, t, first(k ORDER BY {_NULLS_LAST}) AS k, last(s ORDER BY {_NULLS_LAST}) AS s, "
            f"last(f ORDER BY {_NULLS_LAST}) AS f, first(b ORDER BY {_NULLS_LAST}) AS b FROM {{0}} GROUP BY d, t"
        ),
    ),
    Operation(
        "moments",
        lambda d, o: d.group_by("s", "b").agg(
            k=col("k").count(),
            f=(col("k").var() + col("k").std(ddof=0) + col("d").mean()).round(4),
            d=col("d").sum().cast("decimal(10,2)", strict=False),
            t=col("t").max(),
        ),
        lambda c: (
            "SELECT s, b, count(k) AS k, round(var_samp(k) + stddev_pop(k) + avg(d), 4) AS f, "
            "TRY_CAST(sum(d) AS DECIMAL(10, 2)) AS d, max(t) AS t FROM {0} GROUP BY s, b"
        ),
    ),
    Operation(
        "group by floats",
        lambda d, o: d.group_by("f", "d", "b").agg(
            k=col("t").n_unique() * 10 + col("f").n_unique(), s=col("s").min(), t=col("t").min()
        ),
        lambda c: (
            "SELECT f, d, b, count(DISTINCT t) * 10 + count(DISTINCT f) AS k, min(s) AS s, min(t) AS t "
            "FROM {0} GROUP BY f, d, b"
        ),
    ),
    Operation(
        "total",
        lambda d, o: d.select(*KEPT).union(
            d.agg(
                k=col("k").sum(),
                s=col("s").max(),
                f=col("f").min(),
                d=col("d").max(),
                t=col("t").min(),
                b=hw.count() > 3,
            )
        ),
        lambda c: (
            f"SELECT {_KEPT} FROM {{0}} UNION ALL SELECT sum(k)::BIGINT, max(s), min(f), max(d), min(t), "
            "count(*) > 3 FROM {0}"
        ),
    ),
    Operation(
        "many to many join",
        lambda d, o: (
            d.join(o.limit(4).union(o.limit(3)).select("b", "t", r=col("d")), on=["t", "b"])
            .with_columns(d=col("r"))
            .drop("r")
        ),
        lambda c: (
            "SELECT {0}.b, {0}.t, r AS d, {rest} FROM {0} JOIN (SELECT b, t, d AS r FROM (FROM other LIMIT 4) "
            "UNION ALL SELECT b, t, d AS r FROM (FROM other LIMIT 3)) o ON {0}.t = o.t AND {0}.b = o.b"
        ).replace("{rest}", ", ".join("{0}." + x for x in c if x not in ("b", "t", "d"))),
    ),
    Operation(
        "many to many left join",
        lambda d, o: (
            d.join(o.limit(5).select("f", r=col("s")), on="f", how="left", strategy="shuffle")
            .with_columns(s=hw.coalesce(col("r"), col("s")))
            .drop("r")
            .filter(col("s").is_not_null() | (col("f") == 1.5))
        ),
        lambda c: (
            "SELECT * FROM (SELECT coalesce(r, {0}.s) AS s, {rest} FROM {0} LEFT JOIN "
            "(SELECT f, s AS r FROM other LIMIT 5) o ON {0}.f = o.f) WHERE s IS NOT NULL OR f = 1.5"
        ).replace("{rest}", ", ".join("{0}." + x for x in c if x != "s")),
    ),
    Operation(
        "self join",
        lambda d, o: (
            d.join(d.group_by("s", "d").agg(r=col("k").max()), on=["d", "s"], strategy="broadcast")
            .with_columns(k=col("r"))
            .drop("r")
        ),
        lambda c: (
            "SELECT r AS k, {rest} FROM {0} JOIN (SELECT s AS s2, d AS d2, max(k) AS r FROM {0} GROUP BY s, d) "
            "ON d = d2 AND s = s2"
        ).replace("{rest}", _all_but(c, "k")),
    ),
    Operation(
        "casts",
        lambda d, o: d.with_columns(
            k=col("k").cast("string").cast("int32").cast("float64").cast("int64"),
            d=col("d").cast("string").cast("decimal(12,2)").cast("decimal(10,2)"),
            t=col("t").cast("timestamp[us]").cast("date32"),
            b=col("b").cast("int8").cast("bool"),
        ),
        lambda c: "FROM {0}",
    ),
    Operation(
        "fill every null",
        lambda d, o: d.fill_null(
            {"f": 0.5, "d": decimal.Decimal("3.25"), "t": datetime.date(2000, 1, 1), "b": False}
        ),
        lambda c: (
            "SELECT coalesce(f, 0.5) AS f, coalesce(d, 3.25)::DECIMAL(10, 2) AS d, "
            "coalesce(t, DATE '2000-01-01') AS t, coalesce(b, false) AS b, {rest} FROM {0}"
        ).replace("{rest}", _all_but(c, "f", "d", "t", "b")),
    ),
    Operation(
        "map arrow",
        lambda d, o: d.map_batches(add_one_arrow, format="arrow", batch_rows=3),
        lambda c: "SELECT k + 1 AS k, {rest} FROM {0}".replace("{rest}", _all_but(c, "k")),
    ),
    Operation(
        "map numpy",
        lambda d, o: d.filter(col("k").is_not_null() & col("f").is_not_null()).map_batches(
            swap_numpy, schema=pa.schema([SCHEMA.field(name) for name in KEPT]), same_length=True
        ),
        lambda c: f"SELECT {_KEPT} FROM {{0}} WHERE k IS NOT NULL AND f IS NOT NULL",
    ),
    Operation(
        "impute",
        lambda d, o: (
            hw.prep.Impute("s", strategy="most_frequent").fit(d.fill_null({"s": "東京"})).transform(d)
        ),
        lambda c: (
            "SELECT coalesce(s, (SELECT coalesce(s, '東京') AS x FROM {0} GROUP BY x ORDER BY count(*) DESC, x "
            "LIMIT 1)) AS s, {rest} FROM {0}"
        ).replace("{rest}", _all_but(c, "s")),
    ),
    Operation(
        "filter after a rename",
        lambda d, o: d.rename(k="key").filter((col("key") >= 0) | col("b")).rename(key="k"),
        lambda c: "FROM {0} WHERE k >= 0 OR b",
    ),
]
_KEPT = ", ".join(KEPT)
_NULLS_FIRST = ", ".join(f"{name} NULLS FIRST" for name in KEPT)
_NULLS_LAST = ", ".join(f"{name} NULLS LAST" for name in KEPT)


def rows_of(table: pa.Table, columns: list[str]) -> Counter:
    """The rows as a multiset, with one NaN and one zero."""

    def plain(value: object) -> object:
        if isinstance(value, float):
            return "nan" if math.isnan(value) else value + 0.0
        return repr(value) if isinstance(value, list) else value

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


@st.composite
def predicates(draw: st.DrawFn, depth: int = 2) -> tuple[hw.Expr, str]:
    """A predicate over the kept columns, for Headwater and as SQL."""
    if depth and draw(st.booleans()):
        left, right = draw(predicates(depth - 1)), draw(predicates(depth - 1))
        return draw(
            st.sampled_from(
                [
                    (left[0] & right[0], f"({left[1]} AND {right[1]})"),
                    (left[0] | right[0], f"({left[1]} OR {right[1]})"),
                    (~left[0], f"(NOT {left[1]})"),
                ]
            )
        )
    name = draw(st.sampled_from(KEPT))
    value = draw(VALUES[name].filter(lambda v: v == v))
    text = f"'{value}'::DOUBLE" if name == "f" else f"DATE '{value}'" if name == "t" else repr(value)
    text = f"{value}::DECIMAL(10, 2)" if name == "d" else text
    column = col(name)
    known, is_known = (column.is_not_nan(), f"NOT isnan({name})") if name == "f" else (hw.lit(True), "true")
    return draw(
        st.sampled_from(
            [
                ((column < value) & known, f"({name} < {text} AND {is_known})"),
                ((column >= value) & known, f"({name} >= {text} AND {is_known})"),
                ((column == value) & known, f"({name} = {text} AND {is_known})"),
                ((column != value) & known, f"({name} <> {text} AND {is_known})"),
                (column.is_in([value]), f"({name} IN ({text}))"),
                (column.is_null(), f"({name} IS NULL)"),
                (column.is_not_null(), f"({name} IS NOT NULL)"),
            ]
        )
    )


ALL_RULES = RULE_NAMES + PHYSICAL_RULES


@pytest.fixture(scope="module")
def without():
    """Sessions that leave rules out."""
    with ExitStack() as opened:

        @cache
        def session(*rules: str) -> hw.Session:
            options = hw.PlanOptions(256, 128, disabled_rules=frozenset(rules))
            return opened.enter_context(hw.Session("inline", options=options, journal=False))

        yield session


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    table=tables(),
    other=tables(12),
    partitions=st.integers(1, 7),
    start=st.sampled_from(["", "sample", "limit", "filtered limit"]),
    operations=st.lists(st.sampled_from(OPERATIONS), max_size=4),
    rules=st.sampled_from([ALL_RULES, *((rule,) for rule in ALL_RULES)]),
)
def test_every_rule_may_be_left_out(without, table, other, partitions, start, operations, rules):
    dataset = hw.from_arrow(table, partitions=partitions)
    right = hw.from_arrow(other, partitions=1 + partitions % 3)
    if start == "sample":
        dataset = dataset.sample(0.6, seed=partitions)
    elif start:
        dataset = (dataset.filter(col("b")) if start == "filtered limit" else dataset).limit(9)
    for operation in operations:
        dataset = operation.apply(dataset, right)
    optimized, plain = dataset.compute(without()), dataset.compute(without(*rules))
    assert plain.schema == optimized.schema
    assert rows_of(plain, plain.schema.names) == rows_of(optimized, plain.schema.names)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    table=tables(),
    other=tables(12),
    by=st.sampled_from(KEPT),
    steps=st.lists(st.tuples(st.sampled_from(OPERATIONS), predicates()), min_size=1, max_size=3),
)
def test_predicates_reach_parquet_statistics_through_any_operators(
    without, tmp_path_factory, table, other, by, steps
):
    folder = tmp_path_factory.mktemp("tables")
    table, other = table.sort_by(by), other.sort_by(by)
    pq.write_table(table, folder / "table.parquet", row_group_size=4)
    pq.write_table(other, folder / "other.parquet", row_group_size=3)
    dataset = hw.read_parquet(str(folder / "table.parquet"), partition_bytes=1)
    right = hw.read_parquet(str(folder / "other.parquet"), partition_bytes=1)
    done = []
    for operation, (predicate, sql) in steps:
        dataset = operation.apply(dataset, right).filter(predicate)
        done += [operation, Operation("filter", lambda d, o: d, lambda c, sql=sql: f"FROM {{0}} WHERE {sql}")]
    result, expected = dataset.compute(without()), oracle(table, other, done)
    assert rows_of(result, result.schema.names) == rows_of(expected, result.schema.names)


@settings(max_examples=40, deadline=None)
@given(
    table=tables(),
    partitions=st.integers(1, 7),
    descending=st.booleans(),
    nulls_first=st.booleans(),
    count=st.none() | st.integers(0, 12),
)
def test_sorted_rows_stand_in_duckdbs_order(sessions, table, partitions, descending, nulls_first, count):
    numbered = table.append_column("i", pa.array(range(table.num_rows), pa.int64()))
    dataset = hw.from_arrow(numbered, partitions=partitions).sort(
        "f", "s", "t", descending=descending, nulls_first=nulls_first
    )
    dataset = dataset if count is None else dataset.limit(count)
    order = f"{'DESC' if descending else 'ASC'} NULLS {'FIRST' if nulls_first else 'LAST'}"
    expected = duckdb.sql(
        f"SELECT i FROM numbered ORDER BY f {order}, s {order}, t {order}, i LIMIT {count or (count is None) * 99}"
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


def test_a_sample_of_sorted_rows_is_the_same_whoever_else_reads_them():
    rides = hw.range(9000, partitions=3).with_columns(x=col("id") * 7919 % 9000, y=hw.lit("text"))
    clean = rides.filter(col("id") % 3 > 0)
    drawn = clean.sort("x").sample(0.4, seed=1)
    with hw.Session("inline", options=hw.PlanOptions(20_000), journal=False) as session:
        alone = drawn.compute(session)
        with session.run({"drawn": drawn, "clean": clean}) as result:
            assert result.table("drawn").equals(alone)
