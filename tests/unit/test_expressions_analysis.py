"""Analysis of expressions: conjuncts, substitution, folding, null rejection, statistics."""

# ruff: noqa: SIM300 (constants on the left are what is tested)

import datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from headwater.ops.expressions import coalesce, col, lit, when
from headwater.ops.expressions.analysis import (
    ColumnStatistics,
    SimplePredicate,
    can_match,
    conjunction,
    conjuncts,
    fold_constants,
    is_deterministic_cheap,
    is_trivial,
    may_raise,
    null_rejecting,
    simple_predicates,
    substitute,
)
from headwater.ops.expressions.expr import Expr

SCHEMA = pa.schema({"x": pa.int64(), "i8": pa.int8(), "f": pa.float64(), "s": pa.string(), "p": pa.bool_()})
X, P = col("x"), col("p")


def test_conjuncts_and_conjunction_are_inverse() -> None:
    parts = [X > 1, P, col("s") == "a"]
    joined = conjunction(parts)
    assert joined is not None
    assert [part.token for part in conjuncts(joined)] == [part.token for part in parts]
    assert conjunction([]) is None
    assert len(conjuncts((X > 1) | P)) == 1


def test_substitution_keeps_types() -> None:
    mapping = {"x": lit(1).alias("one"), "s": (col("i8") + 1).alias("t")}
    put = substitute(col("i8") + X, mapping)
    assert put.infer(SCHEMA) == pa.int64()  # as with an int64 column, not int8 as with a bare 1
    assert str(substitute(col("s") * 2, mapping)) == "(col('i8') + 1) * 2"
    assert substitute(X, {}) is X


def test_trivial_and_cheap() -> None:
    assert is_trivial(X.alias("y"))
    assert is_trivial(lit(1))
    assert not is_trivial(X + 1)
    assert is_deterministic_cheap(X + 1)
    assert not is_deterministic_cheap(col("s").str.contains("a"))
    assert may_raise(col("s").cast("int64"))
    assert not may_raise(col("s").cast("int64", strict=False))
    assert may_raise(X.cast("float64"))
    assert not may_raise(X.cast("float64"), SCHEMA)
    assert may_raise(col("s").str.to_date())


@pytest.mark.parametrize(
    ("expr", "folded"),
    [
        (X > lit(2) * 3, "col('x') > 6"),
        ((X > 1) & True, "col('x') > 1"),
        (True & P, "col('p')"),
        ((X > 1) & False, "False"),
        ((X > 1) | True, "True"),
        ((X > 1) | False, "col('x') > 1"),
        (~~P, "col('p')"),
        (when(lit(True)).then(X).otherwise(0), "col('x')"),
        (when(lit(False)).then(X).when(P).then(1).otherwise(2), "when(col('p')).then(1).otherwise(2)"),
        (when(lit(True)).then(col("i8")).otherwise(X), "col('i8').cast('int64')"),
        (when(lit(False)).then(1).otherwise(col("i8")), "col('i8')"),
        (X.cast("int64"), "col('x')"),
        (col("i8").cast("int32").cast("float64"), "col('i8').cast('float64')"),
        (col("f").cast("int32").cast("float64"), "col('f').cast('int32').cast('float64')"),
        (lit("oops").cast("int64") + X, "lit('oops').cast('int64') + col('x')"),
        ((X & 1) | 0, "(col('x') & 1) | 0"),
    ],
    ids=str,
)
def test_folding(expr: Expr, folded: str) -> None:
    result = fold_constants(expr, SCHEMA)
    if "oops" not in str(expr):
        assert result.infer(SCHEMA) == expr.infer(SCHEMA)
    assert str(result).replace("lit('oops')", "'oops'") == folded.replace("lit('oops')", "'oops'")


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (X > 0, True),
        (col("f") == X + 1, True),
        (X.is_null(), False),
        (X.is_not_null(), True),
        (~X.is_null(), True),
        (~(X > 0), True),
        (X.is_in([1, None]), True),
        ((X > 0) & P, True),
        ((X > 0) | P, False),
        ((X > 0) | (col("f") > 0), True),
        (X.fill_null(0) == 0, False),
        ((X > 0).fill_null(False), True),
        ((X > 0).fill_null(True), False),
        (coalesce(X > 0, P), False),
        (X.cast("string").str.contains("1"), True),
        (when(P).then(X > 0), True),
        (when(P).then(True).otherwise(X > 0), False),
        (P, False),
        (lit(None) & P, True),
        (lit(False), True),
    ],
    ids=str,
)
def test_null_rejecting(expr: Expr, expected: bool) -> None:
    assert null_rejecting(expr, ["x", "f"]) is expected


def test_simple_predicates_turn_the_column_left() -> None:
    found = simple_predicates(
        (5 > X) & (col("s") == "a") & X.is_in([1, 2]) & P.is_null() & (col("f") > X) & ~P
    )
    assert found == [
        SimplePredicate("x", "<", pa.scalar(5)),
        SimplePredicate("s", "==", pa.scalar("a")),
        SimplePredicate("x", "in", pa.scalar([1, 2])),
        SimplePredicate("p", "is_null", None),
    ]


def stats(
    low: object, high: object, nulls: int | None = 0, type: pa.DataType | None = None
) -> ColumnStatistics:
    return ColumnStatistics(low, high, nulls, 10, type)


DAY = stats(datetime.date(2024, 1, 1), datetime.date(2024, 1, 31))


@pytest.mark.parametrize(
    ("expr", "column", "expected"),
    [
        (X > 10, stats(1, 10), False),
        (X >= 10, stats(1, 10), True),
        (10 < X, stats(1, 10), False),
        (X == 0, stats(1, 10), False),
        (X != 3, stats(3, 3), False),
        (~(X == 3), stats(3, 3), False),
        (~(X > 0), stats(1, 10), False),
        (X.between(11, 20), stats(1, 10), False),
        (X.is_in([0, 11]), stats(1, 10), False),
        (X.is_in([0, 5]), stats(1, 10), True),
        (X.is_in([]), stats(1, 10), False),
        (X.is_null(), stats(1, 10), False),
        (X.is_null(), stats(1, 10, None), True),
        (X.is_not_null(), stats(None, None, 10), False),
        (X > 0, stats(None, None, 10), False),
        (X > 0, stats(None, None), True),
        ((X > 10) | (X < 1), stats(1, 10), False),
        ((X > 10) | (col("other") < 1), stats(1, 10), True),
        ((X > 10) & (col("other") < 1), stats(1, 10), False),
        (X + 1 > 100, stats(1, 10), True),
        (lit(None) == X, stats(1, 10), False),
        (lit(False) & (X > 0), stats(1, 10), False),
        (X > 1.5, stats(0.0, 1.0, type=pa.float64()), False),
        (X > 1.5, stats(0.0, 1.0), True),  # might be float32, whose literal rounds
        (X != 1.0, stats(1.0, 1.0, type=pa.float64()), True),  # NaN isn't in the bounds
        (~(X <= 1.0), stats(0.0, 1.0, type=pa.float64()), True),
        (X == 0.1, stats(*[pa.scalar(0.1, pa.float32())] * 2), True),
        (X >= 1.0, stats(float("nan"), float("nan"), type=pa.float64()), True),
        (X > "2024-02-01", DAY, False),
        (datetime.datetime(2024, 1, 31) <= X, DAY, True),
        (datetime.datetime(2024, 1, 31) < X, DAY, False),
        (X < 0.05, stats(Decimal("0.05"), Decimal("0.10")), False),
        (X == "b", stats("c", "d"), False),
        (X == 5, stats("c", "d"), True),
        (X, stats(False, False), False),
        (~X, stats(True, True), False),
    ],
    ids=str,
)
def test_can_match(expr: Expr, column: ColumnStatistics, expected: bool) -> None:
    assert can_match(expr, {"x": column}) is expected
