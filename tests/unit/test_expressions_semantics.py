"""Types, NumPy's arithmetic, casts, names, texts and errors of expressions."""

import datetime
import decimal
import functools
import operator
import pickle
import zoneinfo
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import headwater.ops.expressions as hx
from headwater.errors import ColumnNotFoundError, HeadwaterError, ParameterError, TypeMismatchError
from headwater.ops.expressions import col, lit, when
from headwater.ops.expressions.analysis import (
    ColumnStatistics,
    can_match,
    fold_constants,
    null_rejecting,
    substitute,
)
from headwater.ops.expressions.expr import Expr, evaluate_column


def values(expr: Expr, **columns: object) -> list[object]:
    table = pa.table({name: v if isinstance(v, pa.Array) else pa.array(v) for name, v in columns.items()})
    column = evaluate_column(expr, table)
    assert column.type == expr.infer(table.schema)
    return column.to_pylist()


NUMPY_TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]


@pytest.mark.parametrize("right", NUMPY_TYPES)
@pytest.mark.parametrize("left", NUMPY_TYPES)
def test_arithmetic_has_numpys_types_and_values(left: str, right: str) -> None:
    a, b = np.array([3, 7, 120, 5], left), np.array([2, 7, 11, 1], right)
    table = pa.table({"a": a, "b": b})
    for name, function in {
        "+": np.add,
        "-": np.subtract,
        "*": np.multiply,
        "//": np.floor_divide,
        "%": np.mod,
    }.items():
        expected = function(a, b)  # wraps on overflow
        expr = {
            "+": col("a") + col("b"),
            "-": col("a") - col("b"),
            "*": col("a") * col("b"),
            "//": col("a") // col("b"),
            "%": col("a") % col("b"),
        }[name]
        got = expr.evaluate(table)
        assert got.type == pa.from_numpy_dtype(expected.dtype) == expr.infer(table.schema)
        np.testing.assert_array_equal(got.to_numpy(), expected)


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_python_numbers_are_weak_as_in_numpy_2(dtype: str) -> None:
    a = np.array([1, 2, 3], dtype)
    table = pa.table({"a": a})
    for expr, expected in [(col("a") + 5, a + 5), (2 * col("a"), 2 * a), (col("a") * 0.5, a * 0.5)]:
        type = pa.from_numpy_dtype(expected.dtype) if dtype in ("float32", "float64") else None
        if type is None:
            type = pa.from_numpy_dtype(dtype) if "0.5" not in str(expr) else pa.float64()
        assert expr.infer(table.schema) == type
        np.testing.assert_allclose(expr.evaluate(table).to_numpy(), expected.astype(float))


def test_signs_and_zeros_of_floor_division() -> None:
    a = np.array([7, -7, 7, -7, 0, np.iinfo(np.int64).min, 5])
    b = np.array([2, 2, -2, -2, 3, -1, 0])
    quotient, rest = values(col("a") // col("b"), a=a, b=b), values(col("a") % col("b"), a=a, b=b)
    assert quotient == [3, -4, -4, 3, 0, np.iinfo(np.int64).min, None]
    assert rest == [1, 1, -1, -1, 0, 0, None]
    with np.errstate(all="ignore"):
        x, y = np.array([7.5, -7.5, 1.0, np.nan, np.inf]), np.array([2.0, 2.0, 0.0, 1.0, 2.0])
        np.testing.assert_array_equal(values(col("x") // col("y"), x=x, y=y), x // y)
        np.testing.assert_array_equal(values(col("x") % col("y"), x=x, y=y), x % y)


def test_decimals_have_a_sign_whatever_room_they_have() -> None:
    table = pa.table(
        {"a": pa.array([Decimal("0.25"), Decimal("-0.75"), Decimal(0), None], pa.decimal128(2, 2))}
    )
    sign = col("a").sign()
    assert sign.infer(table.schema) == pa.int64()
    assert sign.evaluate(table).to_pylist() == [1, -1, 0, None]


def test_true_division_never_fails() -> None:
    got = values(col("a") / col("b"), a=[1, -1, 0, 3, None], b=[0, 0, 0, 2, 1])
    np.testing.assert_array_equal(np.array(got[:4]), [np.inf, -np.inf, np.nan, 1.5])
    assert got[4] is None
    assert values(col("d") / 0, d=[Decimal("1.5")]) == [None]
    assert values(col("d") // 0, d=[Decimal("1.5")]) == [None]


def test_integers_wrap() -> None:
    assert values(col("a") + 1, a=pa.array([127], pa.int8())) == [-128]
    assert values(col("a") * 2, a=[2**62]) == [-(2**63)]


def test_power_keeps_integers_under_constant_exponents() -> None:
    assert values(col("a") ** 3, a=[2, -2, None]) == [8, -8, None]
    assert values(col("a") ** -1, a=[2, 4]) == [0.5, 0.25]
    assert values(col("a") ** col("b"), a=[2, 2], b=[-1, 3]) == [0.5, 8.0]


def test_large_integers_compare_exactly() -> None:
    big = pa.array([2**64 - 1, 2**53 + 1], pa.uint64())
    assert values(col("u") == col("i"), u=big, i=[-1, 2**53 + 1]) == [False, True]
    assert values(col("u") > -1, u=big) == [True, True]
    assert values(col("i") < 2**64 - 1, i=[5]) == [True]
    assert values(col("i") == 300, i=pa.array([44], pa.int8())) == [False]  # 300 doesn't wrap to 44


def test_float32_meets_the_literal_as_float32() -> None:
    column = pa.array([0.1, 0.3], pa.float32())
    assert values(col("x") == 0.1, x=column) == [True, False]
    assert values(col("x").is_in([0.1]), x=column) == [True, False]
    assert values(col("x") < 1e300, x=column) == [True, True]


def test_nan_equals_nothing() -> None:
    x = pa.array([1.0, np.nan, None], from_pandas=False)
    nan = float("nan")
    assert values(col("x") == nan, x=x) == [False, False, None]
    assert values(col("x") != nan, x=x) == [True, True, None]
    assert values(col("x") == col("x"), x=x) == [True, False, None]
    assert values(col("x").is_in([nan, 1.0]), x=x) == [True, False, None]
    assert values(col("x").fill_nan(0), x=x) == [1.0, 0.0, None]
    clipped = values(col("x").clip(2, 3), x=x)
    assert clipped[0] == 2
    assert np.isnan(clipped[1])
    assert clipped[2] is None
    assert values(col("x").is_in([0.0]), x=[-0.0]) == [True]


def test_kleene_logic_with_constants() -> None:
    p = pa.array([True, False, None])
    assert values(col("p") & None, p=p) == [None, False, None]
    assert values(None | col("p"), p=p) == [True, None, None]
    assert values(col("p") ^ True, p=p) == [False, True, None]


def test_null_column_takes_part() -> None:
    n = pa.nulls(2)
    assert values(col("n") + 1, n=n) == [None, None]
    assert values(col("n") == "x", n=n) == [None, None]
    assert values(col("n") & True, n=n) == [None, None]
    assert values(col("n").fill_null(3), n=n) == [3, 3]
    assert values(col("n").str.upper(), n=n) == [None, None]
    assert values(col("n") < col("n"), n=n) == [None, None]
    assert values(hx.least("n", "n"), n=n) == [None, None]
    assert values(col("n").clip(0, None), n=n) == [None, None]
    assert values(col("n").is_in([]), n=n) == [None, None]
    assert values(col("n").is_in([None]), n=n) == [None, None]
    assert values(col("n").abs() ** 2 % 3 / 1, n=n) == [None, None]


def test_decimals_stay_exact_beyond_38_declared_digits() -> None:
    rows = [Decimal("12345678901.23"), Decimal("-0.07"), None]
    wide = pa.array(rows, pa.decimal128(15, 2))
    expr = col("x") * (1 - col("x")) * (1 + col("x")) * 1
    with decimal.localcontext(prec=80):
        assert values(expr, x=wide) == [None if x is None else x * (1 - x) * (1 + x) for x in rows]
    full = pa.array([Decimal(10**37), Decimal(-1)], pa.decimal128(38, 0))
    assert values(col("x") + col("x"), x=full) == [Decimal(2 * 10**37), Decimal(-2)]
    assert values(col("x") * col("x"), x=full) == [None, Decimal(1)]  # 10**74 has no place
    assert values(col("x") < col("y"), x=full, y=pa.array([Decimal("0.5")] * 2, pa.decimal128(38, 20))) == [
        False,
        True,
    ]


def test_decimal_with_float_is_float64_and_correctly_rounded() -> None:
    cents = [Decimal(n) / 100 for n in range(1000)]
    got = values(col("x").cast("float64"), x=pa.array(cents, pa.decimal128(15, 2)))
    assert got == [n / 100 for n in range(1000)]
    assert values(col("x") * 0.5, x=pa.array([Decimal("0.30")])) == [0.15]


def test_naive_literals_take_the_zone_of_their_column() -> None:
    zone = zoneinfo.ZoneInfo("Europe/Zurich")
    t = pa.array([datetime.datetime(2024, 7, 1, 12, tzinfo=zone)], pa.timestamp("us", tz="Europe/Zurich"))
    assert values(col("t") == "2024-07-01 12:00:00", t=t) == [True]
    assert values(col("t") == datetime.datetime(2024, 7, 1, 12), t=t) == [True]
    assert values(col("t") == datetime.datetime(2024, 7, 1, 10, tzinfo=datetime.UTC), t=t) == [True]
    assert values(col("t").dt.hour(), t=t) == [12]
    assert values(
        col("t").dt.date(), t=pa.array([datetime.datetime(2024, 7, 1, 0, 30, tzinfo=zone)], t.type)
    ) == [datetime.date(2024, 7, 1)]


def test_dates_move_by_days_and_become_timestamps_by_hours() -> None:
    day = pa.array([datetime.date(2024, 2, 28)])
    assert values(col("x") + datetime.timedelta(days=2), x=day) == [datetime.date(2024, 3, 1)]
    assert values(col("x") - datetime.timedelta(hours=1), x=day) == [datetime.datetime(2024, 2, 27, 23)]
    assert values((col("x") - datetime.date(2024, 1, 1)).dt.total_seconds() / 86400, x=day) == [58.0]


@pytest.mark.parametrize(
    ("source", "type", "expected"),
    [
        ([1.9, -1.9, np.nan, 1e20, None], "int64", [1, -1, None, None, None]),
        ([300, -1, 7, None], "uint8", [None, None, 7, None]),
        (
            ["1", " 2", "x", "", "99999999999999999999", "-3", None],
            "int64",
            [1, None, None, None, None, -3, None],
        ),
        (["1.5", "1e3", "x", "-inf", ""], "float64", [1.5, 1000.0, None, -np.inf, None]),
        (["2024-02-29", "2023-02-29", "29.2.2024"], "date32", [datetime.date(2024, 2, 29), None, None]),
        (
            ["2024-01-01 10:00:00", "2024-01-01T10:61"],
            "timestamp[us]",
            [datetime.datetime(2024, 1, 1, 10), None],
        ),
        (["true", "0", "maybe"], "bool", [True, False, None]),
        ([Decimal("1.25"), Decimal("-1.25")], "decimal128(3,1)", [Decimal("1.3"), Decimal("-1.3")]),
        ([Decimal("99.99")], "decimal128(3,1)", [None]),
        ([Decimal("1.99"), Decimal("-1.99")], "int32", [1, -1]),
        ([12345, 1], "decimal128(4,1)", [None, Decimal("1.0")]),
        (
            [datetime.datetime(1969, 12, 31, 23, 59, 59, 1)],
            "timestamp[s]",
            [datetime.datetime(1969, 12, 31, 23, 59, 59)],
        ),
    ],
)
def test_lenient_casts_make_null_what_does_not_fit(source: list, type: str, expected: list) -> None:
    column = pa.array(source, from_pandas=False)
    got = values(col("x").cast(type, strict=False), x=column)
    assert got == expected
    strict = col("x").cast(type)
    if None in [e for e, s in zip(expected, source) if s is not None]:
        with pytest.raises(TypeMismatchError, match="strict=False"):
            strict.evaluate(pa.table({"x": column}))
    else:
        assert values(strict, x=column) == expected


def test_parsing_by_format_rejects_days_that_do_not_exist() -> None:
    texts = ["31/01/2024", "31/02/2024", "29/02/2023", "1/3/2024", "x", None]
    lenient = col("s").str.to_date("%d/%m/%Y", strict=False)
    expected = pd.to_datetime(pd.Series(texts), format="%d/%m/%Y", errors="coerce")
    assert values(lenient, s=texts) == [None if pd.isna(t) else t.date() for t in expected]
    with pytest.raises(TypeMismatchError, match="31/02/2024"):
        values(col("s").str.to_date("%d/%m/%Y"), s=texts[:3])
    assert values(col("s").str.to_datetime("%Y-%m-%d %H:%M:%S.%f"), s=["2024-01-31 10:00:30.25"]) == [
        datetime.datetime(2024, 1, 31, 10, 0, 30, 250000)
    ]


def test_extract_numbers_groups_as_python_does() -> None:
    text = ["k=v1", "(x)[y]=z22", "none", None]
    assert values(col("s").str.extract(r"(?:k|\))([\[\]()y]*)=([a-z])(\d+)", 3), s=text) == [
        "1",
        "22",
        None,
        None,
    ]
    assert values(col("s").str.extract(r"=(?P<letter>\w)\d", "letter"), s=text) == ["v", "z", None, None]
    assert values(col("s").str.extract(r"\d+", 0), s=text) == ["1", "22", None, None]
    with pytest.raises(ParameterError, match="no group 1"):
        col("s").str.extract(r"\d+")


def test_string_functions_of_characters() -> None:
    s = pa.array(["ǆ straße", "a\u0301b", None, "日本語"])
    assert values(col("s").str.len(), s=s) == [8, 3, None, 3]
    assert values(col("s").str.slice(1, 1), s=s) == [" ", "\u0301", None, "本"]
    assert values(col("s").str.count("[aß]"), s=s) == [2, 1, None, 0]
    assert values(col("s").str.split_whitespace(), s=s) == [["ǆ", "straße"], ["a\u0301b"], None, ["日本語"]]
    assert values(col("s").str.zfill(4), s=["-1", "7"]) == ["-001", "0007"]
    assert values(col("s").str.split(",").list.join(";"), s=["a,b", "", None]) == ["a;b", "", None]
    assert values(col("l").list.join("-"), l=pa.array([["a", None, "b"], [None], [], None])) == [
        "a-b",
        "",
        "",
        None,
    ]


def test_hash_unit_is_uniform_and_repeatable() -> None:
    ids = np.arange(20_000)
    draw = np.array(values(hx.hash_unit("id", seed=1), id=ids))
    assert draw.min() >= 0
    assert draw.max() < 1
    histogram = np.histogram(draw, 10, (0, 1))[0]
    assert abs(histogram - 2000).max() < 250
    assert values(hx.hash_unit("id", seed=1), id=ids[::-1]) == draw[::-1].tolist()
    assert abs(np.corrcoef(draw, values(hx.hash_unit("id", seed=2), id=ids))[0, 1]) < 0.03


def test_literals_alone_stand_for_every_row() -> None:
    table = pa.table({"x": [1, 2, 3]})
    for expr, expected in [
        (lit(1) + 2, 3),
        (lit("a").str.upper(), "A"),
        (when(lit(True)).then(1).otherwise(2), 1),
        (lit(7) // 0, None),
        (lit(datetime.date(2024, 1, 31)) + datetime.timedelta(days=1), datetime.date(2024, 2, 1)),
        (lit([1, 2]).list.len(), 2),
        (lit("5").cast("int64"), 5),
        (lit(2**70) - 1, Decimal(2**70 - 1)),
    ]:
        assert evaluate_column(expr, table).to_pylist() == [expected] * 3
        assert expr.infer(table.schema) == evaluate_column(expr, table).type


def test_numpy_and_arrow_scalars_keep_their_types() -> None:
    schema = pa.schema({"x": pa.float32(), "n": pa.int8()})
    assert (col("x") * np.float64(2)).infer(schema) == pa.float64()
    assert (col("n") + np.int32(2)).infer(schema) == pa.int32()
    assert (col("n") + pa.scalar(2, pa.int16())).infer(schema) == pa.int16()
    assert lit(np.datetime64("2024-01-31")).infer(schema) == pa.date32()
    assert lit(5, "decimal128(10,2)").infer(schema) == pa.decimal128(10, 2)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        ((col("fare") > 0) & col("pickup").is_not_null(), "(col('fare') > 0) & col('pickup').is_not_null()"),
        (-(col("a") + 1) * 2, "(-(col('a') + 1)) * 2"),
        (col("s").str.contains("x", literal=True), "col('s').str.contains('x', literal=True)"),
        ((col("a") + 1).sum().alias("t"), "(col('a') + 1).sum().alias('t')"),
        (
            when(col("a") > 0).then("p").otherwise(col("b")),
            "when(col('a') > 0).then('p').otherwise(col('b'))",
        ),
        (col("a").is_in([1, 2]), "col('a').is_in([1, 2])"),
        (col("t").dt.truncate("15m"), "col('t').dt.truncate('15m')"),
        (col("a").cast("decimal128(10,2)", strict=False), "col('a').cast('decimal128(10, 2)', strict=False)"),
        (hx.coalesce("a", lit("x")), "coalesce(col('a'), 'x')"),
        (lit("a").str.upper(), "lit('a').str.upper()"),
        (col("a").clip(0, 1), "col('a').clip(lower=0).clip(upper=1)"),
        (hx.count(), "count()"),
    ],
)
def test_text(expr: Expr, text: str) -> None:
    assert str(expr) == text


def test_tokens_tell_types_apart_and_survive_pickling() -> None:
    exprs = [lit(1), lit(1, "int64"), lit(1, "int32"), lit(1.0), lit(True), lit("1"), lit(None), col("1")]
    exprs += [lit(datetime.date(1970, 1, 2)), lit(datetime.timedelta(days=1)), lit(Decimal("1.0")), lit([1])]
    exprs += [
        col("x").cast("int8"),
        col("x").cast("int8", strict=False),
        col("x").round(1),
        col("x").round(2),
    ]
    assert len({expr.token for expr in exprs}) == len(exprs)
    for expr in [*exprs, when(col("a") > 0).then(1), col("a").var(ddof=0), hx.hash_unit("a", seed=3)]:
        again = pickle.loads(pickle.dumps(expr))
        assert again.token == expr.token
        assert str(again) == str(expr)


def test_output_names() -> None:
    assert (col("a") + col("b")).output_name == "a"
    assert when(col("a") > 0).then(col("b")).otherwise(0).output_name == "b"
    assert lit(1).output_name is None
    assert col("a").sum().output_name == "a"
    assert hx.count().output_name is None
    assert (col("a") > 0).alias("positive").output_name == "positive"


SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "n": pa.int64(),
        "t": pa.timestamp("us"),
        "z": pa.timestamp("us", tz="UTC"),
        "p": pa.bool_(),
    }
)


@pytest.mark.parametrize(
    ("expr", "pattern"),
    [
        (
            col("name") + 1,
            r"col\('name'\) \+ 1: '\+' doesn't take string and int64.*col\('name'\)\.cast\('int64'\)",
        ),
        (col("name") > 5, r"'>' doesn't take string and int64.*cast\('int64'\)"),
        (col("n") == "x", r"'==' doesn't take int64 and string.*cast\('string'\)"),
        ((col("n") > 1) & "x", r"in parentheses"),
        (-col("p"), r"Write ~col\('p'\)"),
        (col("n").str.lower(), r"takes a string, not int64.*cast\('string'\)"),
        (col("name").dt.year(), r"date or timestamp, not string.*str\.to_datetime"),
        (col("name").sqrt(), r"number, not string.*cast\('float64'\)"),
        (col("t") > "yesterday", r"'yesterday' is no timestamp\[us\]; write 2024-01-31"),
        (col("t") > col("z"), r"timestamp\[us\] and timestamp\[us, tz=UTC\]"),
        (when(col("n")).then(1), r"when\(\) takes a boolean condition, not int64"),
        (when(col("p")).then(1).otherwise("x"), r"int64.*string"),
        (col("name").fill_null(0), r"string and int64"),
        (col("n").cast("list<int64>"), r"no way from int64 to list"),
        (col("n").is_in(["a"]), r"int64 and string"),
        (col("n").list.len(), r"list, not int64"),
        (col("n").sum() + 1, r"stands only inside agg"),
    ],
    ids=str,
)
def test_type_errors_name_expression_types_and_remedy(expr: Expr, pattern: str) -> None:
    with pytest.raises(TypeMismatchError, match=pattern):
        expr.infer(SCHEMA)


def test_unknown_columns_are_named_with_near_matches() -> None:
    with pytest.raises(ColumnNotFoundError, match=r"no column 'nam'. Did you mean 'name'"):
        (col("nam") + 1).infer(SCHEMA)


@pytest.mark.parametrize(
    ("build", "pattern"),
    [
        (lambda: bool(col("a") > 0), "Write & for and"),
        (lambda: 0 < col("a") < 5, "Write & for and"),
        (lambda: 1 in col("a"), "is_in"),
        (lambda: col("a").cast("int46"), "Did you mean 'int64'"),
        (lambda: col(5), "column name"),
        (lambda: col("a") + object(), "no constant and no expression"),
        (lambda: col("a").is_in("abc"), r"is_in\(\['abc'\]\)"),
        (lambda: col("a").between(1, 2, closed="neihter"), "'neither'"),
        (lambda: col("t").dt.truncate("15 parsecs"), "write '15m'"),
        (lambda: hx.sum(5), r"sum\('x'\)"),
        (lambda: hx.coalesce(), "at least one"),
        (lambda: lit("x", "int64"), "int64"),
        (lambda: lit([1, "a"]), "no Arrow type"),
        (lambda: when("a"), "condition"),
        (lambda: col("s").str.contains("("), "no regular expression.*literal=True"),
    ],
)
def test_wrong_calls_say_what_to_write(build: object, pattern: str) -> None:
    with pytest.raises(HeadwaterError, match=pattern):
        build()


def test_thousands_of_terms_need_no_recursion() -> None:
    expr = functools.reduce(operator.or_, [col("a") == i for i in range(0, 3000, 2)])
    table = pa.table({"a": [0, 1, 2998, None]})
    assert expr.infer(table.schema) == pa.bool_()
    again = pickle.loads(pickle.dumps(expr))
    assert again.token == expr.token
    assert str(again) == str(expr)
    assert again.evaluate(table).to_pylist() == [True, False, True, None]
    assert fold_constants(expr, table.schema).token == expr.token
    assert not can_match(expr, {"a": ColumnStatistics(3001, 4000)})
    assert null_rejecting(expr, ["a"])
    assert substitute(expr, {"a": col("b")}).columns() == {"b"}


def test_a_shared_term_is_computed_once() -> None:
    expr = col("a")
    for _ in range(200):  # 2**200 additions as a tree
        expr = expr - expr + expr
    assert values(expr, a=[1, None]) == [1, None]


@pytest.mark.parametrize(
    "value",
    [True, False, 0, -1, 2**63 - 1, -(2**63), 0.0, -0.0, 1e308, float("inf"), "", "a\0ü", "x" * 999]
    + [datetime.date(1, 1, 1), datetime.date(1969, 12, 31), datetime.date(9999, 12, 31)],
)
def test_constants_are_the_scalars_that_arrow_makes(value):
    made = lit(value).scalar
    assert made.equals(pa.scalar(value))
    assert made.type == pa.scalar(value).type
