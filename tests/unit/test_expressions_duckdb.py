"""Expressions give what DuckDB gives, where SQL and Python mean the same."""

import datetime
import math
from decimal import Decimal

import duckdb
import pyarrow as pa
import pytest

from headwater.ops.expressions import coalesce, col, concat_str, greatest, least, lit, when
from headwater.ops.expressions.expr import Expr, evaluate_column

NAN = float("nan")
TABLE = pa.table(
    {
        "a": pa.array([1, -7, None, 0, 12, 3], pa.int64()),
        "b": pa.array([2, 3, 5, None, -5, 3], pa.int64()),
        "f": pa.array([1.5, NAN, None, -0.25, math.inf, 2.5], pa.float64()),
        "s": pa.array(["héllo wörld", "東京", None, "", "a-b-c 12", "Ab"], pa.string()),
        "d": pa.array([Decimal(x) if x else None for x in ("1.10", "-0.07", "", "0.00", "99.99", "0.05")]),
        "t": pa.array(
            [
                datetime.datetime(2024, 2, 29, 13, 45, 59, 123456),
                datetime.datetime(1969, 12, 31, 23, 59, 59, 999999),
                None,
                datetime.datetime(2000, 1, 1),
                datetime.datetime(2021, 1, 3, 0, 0, 1),
                datetime.datetime(2026, 12, 31, 12),
            ],
            pa.timestamp("us"),
        ),
        "day": pa.array(
            [
                datetime.date(2024, 2, 29),
                datetime.date(1960, 1, 1),
                None,
                datetime.date(2021, 1, 3),
                datetime.date(2000, 12, 31),
                datetime.date(1970, 1, 1),
            ],
            pa.date32(),
        ),
        "p": pa.array([True, False, None, True, False, None]),
        "q": pa.array([True, True, True, False, None, None]),
        "l": pa.array([[1, 2, None], [], None, [5], [7, 7], [None]], pa.list_(pa.int64())),
        "st": pa.array(
            [{"x": 1}, None, {"x": None}, {"x": 4}, {"x": 5}, {"x": 6}], pa.struct({"x": pa.int64()})
        ),
    }
)
DAY = datetime.date(2020, 6, 1)
A, B, F, S, D, T, P, Q = (col(name) for name in ("a", "b", "f", "s", "d", "t", "p", "q"))

CASES: list[tuple[Expr, str]] = [
    (A + B, "a + b"),
    (A - 3, "a - 3"),
    (2 * A, "2 * a"),
    (-A, "-a"),
    (A.abs(), "abs(a)"),
    (A / 4, "a / 4"),
    (F * A, "f * a"),
    (D + 1, "d + 1"),
    (1 - D, "1 - d"),
    (D * D, "d * d"),
    (-D, "-d"),
    (Decimal("0.05") > D, "d < 0.05"),
    (D <= 0.05, "d <= 0.05"),
    (D == A, "d = a"),
    (D.is_in([0.05, 1.1]), "d in (0.05, 1.10)"),
    (A < B, "a < b"),
    (A != 3, "a <> 3"),
    (lit(None) == A, "a = null"),
    (S >= "a", "s >= 'a'"),
    (T > "2000-01-01", "t > '2000-01-01'"),
    (datetime.date(2024, 2, 29) >= T, "t <= date '2024-02-29'"),
    (col("day") >= "2021-01-03", "day >= date '2021-01-03'"),
    (col("day") < datetime.datetime(2021, 1, 3, 12), "day < timestamp '2021-01-03 12:00:00'"),
    (col("day") == DAY, "day = date '2020-06-01'"),
    (P & Q, "p and q"),
    (P | Q, "p or q"),
    (~P, "not p"),
    (A & B, "a & b"),
    (A | B, "a | b"),
    (A ^ B, "xor(a, b)"),
    (A.is_null(), "a is null"),
    (A.is_not_null(), "a is not null"),
    (F.is_nan(), "isnan(f)"),
    (F.is_finite(), "isfinite(f)"),
    (A.fill_null(9), "coalesce(a, 9)"),
    (A.is_in([1, 12, 99]), "a in (1, 12, 99)"),
    (S.is_in(["", "東京"]), "s in ('', '東京')"),
    (A.between(0, 3), "a between 0 and 3"),
    (A.between(0, 3, closed="left"), "a >= 0 and a < 3"),
    (A.cast("string"), "a::varchar"),
    (A.cast("float64"), "a::double"),
    (S.cast("int64", strict=False), "try_cast(s as bigint)"),
    (T.cast("date32"), "t::date"),
    (D.cast("decimal128(10,1)"), "d::decimal(10,1)"),
    (A.cast("decimal128(10,2)"), "a::decimal(10,2)"),
    (when(A > 0).then("+").when(A < 0).then("-"), "case when a > 0 then '+' when a < 0 then '-' end"),
    (when(P).then(A).otherwise(B), "case when p then a else b end"),
    (coalesce("a", "b", lit(0)), "coalesce(a, b, 0)"),
    (least("a", "b"), "least(a, b)"),
    (least("p", "q"), "least(p, q)"),
    (greatest("a", "b", 2), "greatest(a, b, 2)"),
    (F.floor(), "floor(f)"),
    (F.ceil(), "ceil(f)"),
    (A.abs().sqrt(), "sqrt(abs(a))"),
    ((A.abs() + 1).log(), "ln(abs(a) + 1)"),
    ((A.abs() + 1).log10(), "log10(abs(a) + 1)"),
    (A.sign(), "sign(a)"),
    (A.sin(), "sin(a)"),
    (S.str.len(), "length(s)"),
    (S.str.upper(), "upper(s)"),
    (S.str.lower(), "lower(s)"),
    (S.str.strip(), "trim(s)"),
    (S.str.lstrip("hA"), "ltrim(s, 'hA')"),
    (S.str.rstrip("d2"), "rtrim(s, 'd2')"),
    (S.str.starts_with("h"), "starts_with(s, 'h')"),
    (S.str.ends_with("京"), "ends_with(s, '京')"),
    (S.str.contains("[0-9]+"), "regexp_matches(s, '[0-9]+')"),
    (S.str.contains("-", literal=True), "contains(s, '-')"),
    (S.str.like("%b%"), "s like '%b%'"),
    (S.str.like("_京"), "s like '_京'"),
    (S.str.replace("-", "+", literal=True), "replace(s, '-', '+')"),
    (S.str.replace(r"([a-z])-", r"\1_", n=1), r"regexp_replace(s, '([a-z])-', '\1_')"),
    (S.str.slice(1, 3), "substring(s, 2, 3)"),
    (S.str.slice(-2), "right(s, 2)"),
    (S.str.split("-"), "string_split(s, '-')"),
    (S.str.pad_start(4, "*"), "case when length(s) < 4 then lpad(s, 4, '*') else s end"),
    (S.str.pad_end(4, "*"), "case when length(s) < 4 then rpad(s, 4, '*') else s end"),
    (S.str.reverse(), "reverse(s)"),
    (S.str.find("w"), "instr(s, 'w') - 1"),
    (S.str.find("京"), "instr(s, '京') - 1"),
    (S + "!", "s || '!'"),
    (concat_str("s", "a", separator="|"), "s || '|' || a"),
    (concat_str("s", "a", separator="|", skip_nulls=True), "concat_ws('|', s, a)"),
    (T.dt.year(), "year(t)"),
    (T.dt.month(), "month(t)"),
    (T.dt.day(), "day(t)"),
    (T.dt.hour(), "hour(t)"),
    (T.dt.minute(), "minute(t)"),
    (T.dt.second(), "second(t)"),
    (T.dt.quarter(), "quarter(t)"),
    (T.dt.week(), "weekofyear(t)"),
    (T.dt.weekday(), "isodow(t) - 1"),
    (T.dt.day_of_year(), "dayofyear(t)"),
    (T.dt.date(), "t::date"),
    (T.dt.truncate("month"), "date_trunc('month', t)::timestamp"),
    (T.dt.truncate("1w"), "date_trunc('week', t)::timestamp"),
    (T.dt.truncate("15m"), "time_bucket(interval '15 minutes', t)"),
    (T.dt.epoch("us"), "epoch_us(t)"),
    (T.dt.epoch("s"), "floor(epoch_us(t) / 1000000)::bigint"),
    (T.dt.strftime("%Y/%m/%d %H:%M:%S.%f"), "strftime(t, '%Y/%m/%d %H:%M:%S.%f')"),
    (T.dt.strftime("%j %y"), "strftime(t, '%j %y')"),
    (T + datetime.timedelta(hours=30), "t + interval 30 hours"),
    (T - datetime.timedelta(microseconds=1), "t - interval 1 microsecond"),
    ((T - datetime.datetime(2000, 1, 1)).dt.total_seconds(), "(epoch_us(t) - 946684800000000) / 1000000"),
    (col("day").dt.year(), "year(day)"),
    (col("day") + datetime.timedelta(days=40), "(day + 40)::date"),
    (col("day").dt.days_between(DAY), "date_diff('day', day, date '2020-06-01')"),
    (col("l").list.len(), "len(l)"),
    (col("l").list.get(0), "l[1]"),
    (col("l").list.get(-1), "l[-1]"),
    (col("l").list.get(5), "l[6]"),
    (col("l").list.contains(7), "list_contains(l, 7)"),
    (col("st").struct.field("x"), "st.x"),
]


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-300)
    return a == b


def chunked(table: pa.Table, size: int) -> pa.Table:
    return pa.concat_tables([table.slice(i, size) for i in range(0, table.num_rows, size)])


@pytest.mark.parametrize(("expr", "sql"), CASES, ids=[sql for _, sql in CASES])
def test_same_as_duckdb(expr: Expr, sql: str) -> None:
    connection = duckdb.connect()
    connection.register("t0", TABLE)
    expected = [row[0] for row in connection.execute(f"select {sql} from t0").fetchall()]
    type = expr.infer(TABLE.schema)
    for table in (TABLE, chunked(TABLE, 2), chunked(TABLE, 4)):
        value = expr.evaluate(table)
        assert value.type == type
        got = value.to_pylist()
        assert len(got) == len(expected)
        assert all(same(a, b) for a, b in zip(got, expected)), (got, expected)


@pytest.mark.parametrize("expr", [expr for expr, _ in CASES], ids=[sql for _, sql in CASES])
def test_no_rows_and_no_chunks(expr: Expr) -> None:
    type = expr.infer(TABLE.schema)
    for table in (TABLE.slice(0, 0), TABLE.schema.empty_table()):
        column = evaluate_column(expr, table)
        assert (len(column), column.type) == (0, type)


@pytest.mark.parametrize("expr", [expr for expr, _ in CASES], ids=[sql for _, sql in CASES])
def test_all_null_rows(expr: Expr) -> None:
    nulls = pa.table({f.name: pa.nulls(3, f.type) for f in TABLE.schema})
    one, three = (evaluate_column(expr, nulls.slice(0, n)).to_pylist() for n in (1, 3))
    assert one * 3 == three
