"""Any expression: types are as inferred, folding and statistics lose nothing, decimals are exact."""

import decimal
import pickle
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.ops.expressions import col, lit, when
from headwater.ops.expressions.analysis import (
    ColumnStatistics,
    can_match,
    conjunction,
    fold_constants,
    null_rejecting,
    simple_predicates,
    substitute,
)
from headwater.ops.expressions.expr import Expr, evaluate_column

SCHEMA = pa.schema(
    {"i": pa.int64(), "k": pa.int8(), "f": pa.float64(), "g": pa.float32(), "s": pa.string(), "p": pa.bool_()}
)
INTEGERS = st.integers(-3, 3)
FLOATS = st.sampled_from([-1.5, -0.0, 0.0, 0.1, 2.0, float("inf"), float("nan")])
CELLS = {
    "i": INTEGERS,
    "k": INTEGERS,
    "f": FLOATS,
    "g": FLOATS,
    "s": st.sampled_from(["", "a", "b", "東京", "ba"]),
    "p": st.booleans(),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 7))
    columns = [
        pa.array(
            draw(st.lists(st.none() | CELLS[f.name], min_size=rows, max_size=rows)), f.type, from_pandas=False
        )
        for f in SCHEMA
    ]
    table = pa.table(columns, schema=SCHEMA)
    cut = draw(st.integers(0, rows))
    return pa.concat_tables([table.slice(0, cut), table.slice(cut)])


numbers = st.deferred(
    lambda: (
        st.sampled_from([col("i"), col("k"), col("f"), col("g")])
        | INTEGERS.map(lit)
        | st.sampled_from([0.1, 0.5, None]).map(lit)
        | st.builds(lambda a, b: a + b, numbers, numbers)
        | st.builds(lambda a, b: a * b, numbers, numbers)
        | st.builds(lambda a, b: a // b, numbers, numbers)
        | st.builds(lambda a, b: a / b, numbers, numbers)
        | st.builds(lambda a, b: a.fill_null(b), numbers, numbers)
        | st.builds(lambda c, a, b: when(c).then(a).otherwise(b), predicates, numbers, numbers)
        | st.builds(lambda a: a.cast("float64"), numbers)
        | st.builds(lambda a: a.abs(), numbers)
    )
)
comparisons = st.sampled_from(["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"])
simple = (
    st.builds(
        lambda name, op, v: getattr(col(name), op)(v), st.sampled_from("ikfg"), comparisons, INTEGERS | FLOATS
    )
    | st.builds(lambda op, v: getattr(col("s"), op)(v), comparisons, CELLS["s"])
    | st.builds(
        lambda name, vs: col(name).is_in(vs),
        st.sampled_from("ikfg"),
        st.lists(INTEGERS | st.none(), max_size=3),
    )
    | st.builds(lambda vs: col("g").is_in(vs), st.lists(FLOATS, max_size=3))
    | st.builds(lambda name: col(name).is_null(), st.sampled_from("ikfgsp"))
    | st.builds(lambda name: col(name).is_not_null(), st.sampled_from("ikfgsp"))
    | st.builds(lambda a, b: col(a) < col(b), st.sampled_from("ikfg"), st.sampled_from("ikfg"))
    | st.sampled_from([col("p"), lit(True), lit(False), lit(None) & lit(True)])
)
predicates = st.deferred(
    lambda: (
        simple
        | st.builds(lambda a, b: a & b, predicates, predicates)
        | st.builds(lambda a, b: a | b, predicates, predicates)
        | st.builds(lambda a: ~a, predicates)
        | st.builds(lambda a, b: a < b, numbers, numbers)
        | st.builds(lambda a: a.fill_null(False), predicates)
        | st.builds(lambda c, a: when(c).then(a), simple, predicates)
    )
)


def rows(expr: Expr, table: pa.Table) -> list[str]:
    column = evaluate_column(expr, table)
    assert column.type == expr.infer(table.schema)
    return [repr(value) for value in column.to_pylist()]  # NaN equals itself as text


@settings(deadline=None, max_examples=60)
@given(tables(), numbers | predicates)
def test_values_depend_on_rows_alone(table: pa.Table, expr: Expr) -> None:
    whole = rows(expr, table)
    assert len(whole) == table.num_rows
    assert rows(expr, table.combine_chunks()) == whole
    one_by_one = [row for i in range(table.num_rows) for row in rows(expr, table.slice(i, 1))]
    assert one_by_one == whole
    assert rows(pickle.loads(pickle.dumps(expr)), table) == whole


@settings(deadline=None, max_examples=80)
@given(tables(), numbers | predicates)
def test_folding_changes_neither_type_nor_values(table: pa.Table, expr: Expr) -> None:
    folded = fold_constants(expr, SCHEMA)
    assert folded.infer(SCHEMA) == expr.infer(SCHEMA)
    assert rows(folded, table) == rows(expr, table)
    assert fold_constants(folded, SCHEMA).token == folded.token


@settings(deadline=None, max_examples=25)
@given(tables(), numbers, numbers)
def test_substitution_is_projection(table: pa.Table, inner: Expr, outer: Expr) -> None:
    projected = table.set_column(0, "i", evaluate_column(inner, table))
    assert rows(substitute(outer, {"i": inner}), table) == rows(outer, projected)


def statistics(table: pa.Table, with_types: bool) -> dict[str, ColumnStatistics]:
    found = {}
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_floating(field.type):  # as Parquet does, without NaN
            column = column.filter(pc.invert(pc.fill_null(pc.is_nan(column), False)))
        bounds = pc.min_max(column).as_py()
        nulls = table[field.name].null_count
        found[field.name] = ColumnStatistics(
            bounds["min"], bounds["max"], nulls, table.num_rows, field.type if with_types else None
        )
    return found


@settings(deadline=None, max_examples=150)
@given(tables(), predicates, st.booleans())
def test_what_statistics_rule_out_has_no_rows(table: pa.Table, predicate: Expr, with_types: bool) -> None:
    kept = pc.sum(evaluate_column(predicate, table).cast(pa.int64())).as_py() or 0
    if not can_match(predicate, statistics(table, with_types)):
        assert kept == 0


@settings(deadline=None, max_examples=80)
@given(tables(), simple)
def test_statistics_are_sharp_for_one_row(table: pa.Table, predicate: Expr) -> None:
    """Where the bounds are the value, a comparison with a constant is decided by them."""
    for i in range(table.num_rows):
        row = table.slice(i, 1)
        floats = [row[name][0].as_py() for name in "fg"]
        if any(value is None or value != value for value in floats):
            continue
        kept = bool(evaluate_column(predicate, row)[0].as_py())
        assert can_match(predicate, statistics(row, True)) or not kept
        if simple_predicates(predicate) and not {"f", "g"} & predicate.columns():
            assert can_match(predicate, statistics(row, True)) == kept


@settings(deadline=None, max_examples=150)
@given(tables(), predicates, st.sets(st.sampled_from("ikfgsp"), min_size=1))
def test_null_rejecting_predicates_reject_nulls(table: pa.Table, predicate: Expr, names: set[str]) -> None:
    for name in names:
        index = table.schema.get_field_index(name)
        table = table.set_column(index, SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type))
    if null_rejecting(predicate, names):
        assert not any(evaluate_column(predicate, table).to_pylist())


@settings(deadline=None, max_examples=100)
@given(tables(), st.lists(predicates, min_size=1, max_size=4))
def test_conjunction_is_filtering_in_turn(table: pa.Table, parts: list[Expr]) -> None:
    joined = conjunction(parts)
    assert joined is not None
    left = table
    for part in parts:
        left = left.filter(evaluate_column(part, left))
    assert repr(table.filter(evaluate_column(joined, table)).to_pylist()) == repr(left.to_pylist())


@st.composite
def decimal_columns(draw: st.DrawFn) -> pa.Array:
    precision = draw(st.sampled_from([3, 9, 15, 18, 30, 38]))
    scale = draw(st.integers(0, min(precision, 12)))
    top = 10 ** draw(st.integers(1, precision)) - 1
    with decimal.localcontext(prec=100):
        cells = draw(
            st.lists(
                st.none() | st.integers(-top, top).map(lambda n: Decimal(n).scaleb(-scale)),
                min_size=3,
                max_size=3,
            )
        )
        return pa.array(cells, pa.decimal128(precision, scale))


@settings(deadline=None, max_examples=80)
@given(decimal_columns(), decimal_columns())
def test_decimal_arithmetic_is_exact_or_null(a: pa.Array, b: pa.Array) -> None:
    table = pa.table({"a": a, "b": b})
    operations = {
        "add": (col("a") + col("b"), lambda x, y: x + y),
        "subtract": (col("a") - col("b"), lambda x, y: x - y),
        "multiply": (col("a") * col("b"), lambda x, y: x * y),
        "divide": (col("a") / col("b"), lambda x, y: x / y),
        "floor": (col("a") // col("b"), lambda x, y: (x / y).to_integral_value(decimal.ROUND_FLOOR)),
        "modulo": (col("a") % col("b"), lambda x, y: x - y * (x / y).to_integral_value(decimal.ROUND_FLOOR)),
    }
    with decimal.localcontext(prec=200):
        for name, (expr, exact) in operations.items():
            got = evaluate_column(expr, table)
            assert got.type == expr.infer(table.schema)
            for x, y, z in zip(a.to_pylist(), b.to_pylist(), got.to_pylist()):
                if x is None or y is None or (y == 0 and name in ("divide", "floor", "modulo")):
                    assert z is None
                    continue
                step = Decimal(1).scaleb(-got.type.scale)
                cut = exact(x, y).quantize(step, decimal.ROUND_DOWN)
                if z is None:
                    assert len(cut.as_tuple().digits) > got.type.precision
                else:
                    assert z == cut, (name, x, y)
