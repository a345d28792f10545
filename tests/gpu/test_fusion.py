"""Fused expressions: each function in a kernel against the host's evaluation, on nulls, NaN and extremes."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headwater.errors import HeadwaterError
from headwater.ops.device import lowerings  # noqa: F401  (registers the operators)
from headwater.ops.device.column import to_arrow as column_to_arrow
from headwater.ops.device.device_kernel import DeviceKernel, device_kernel
from headwater.ops.device.fused.emitter import RULES
from headwater.ops.device.fused.fusion import FusedPlan, lower_expression, lower_expressions
from headwater.ops.device.fused.words import Tables
from headwater.ops.device.operators.filter_project import fused
from headwater.ops.device.table import to_device
from headwater.ops.expressions import coalesce, col, concat_str, greatest, hash_unit, least, lit, when
from headwater.ops.expressions.call import FUNCTIONS, call
from headwater.ops.expressions.expr import Expr, evaluate_column
from headwater.ops.filter import FilterKernel
from headwater.ops.kernel import Context
from headwater.ops.project import ProjectKernel

#: rows of the tables: several blocks and a part of one
ROWS = 2_500
#: a device's functions are within two units in the last place of what is right, and the host's within one
ULPS = 3
NUMBERS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f32", "f64", "b")


def numbers(rows: int = ROWS, seed: int = 0, nulls: float = 0.15) -> pa.Table:
    """A column of every type that a kernel knows; extremes among them, and small numbers that meet."""
    random = np.random.default_rng(seed)

    def column(values: Any, type: pa.DataType) -> pa.Array:
        return pa.array(values, type, mask=random.random(rows) < nulls)

    columns = {}
    for name in NUMBERS[:8]:
        type = getattr(pa, name.replace("i", "int").replace("u", "uint"))()
        info = np.iinfo(type.to_pandas_dtype())
        small = random.integers(0 if info.min == 0 else -9, 10, rows).astype(info.dtype)
        edges = np.array([info.min, info.max, 0, 1, info.max // 2], info.dtype)
        columns[name] = column(np.where(random.random(rows) < 0.2, random.choice(edges, rows), small), type)
    for name, type in (("f32", pa.float32()), ("f64", pa.float64())):
        dtype = type.to_pandas_dtype()
        odd = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 0.5, 2.5, np.finfo(dtype).max, 1e-30], dtype)
        plain = (random.normal(size=rows) * 10).round(2).astype(dtype)
        columns[name] = column(np.where(random.random(rows) < 0.3, random.choice(odd, rows), plain), type)
    columns["b"] = column(random.random(rows) < 0.5, pa.bool_())
    days = random.integers(-200_000, 200_000, rows)
    columns["date"] = column(days.astype(np.int32), pa.date32())
    micros = days * 86_400_000_000 + random.integers(0, 86_400_000_000, rows)
    for unit, ticks in (("s", 10**6), ("ms", 10**3), ("us", 1)):
        columns[f"ts_{unit}"] = column(micros // ticks, pa.timestamp(unit))
    columns["ts_ns"] = column(micros % 2**52 * 1000, pa.timestamp("ns"))
    columns["utc"] = column(micros, pa.timestamp("us", tz="UTC"))
    columns["span"] = column(random.integers(-(10**12), 10**12, rows), pa.duration("us"))
    columns["span_s"] = column(random.integers(-(10**6), 10**6, rows), pa.duration("s"))
    columns["time"] = column(random.integers(0, 86_400_000_000, rows), pa.time64("us"))
    for name, digits, scale in (("d5", 5, 2), ("d9", 9, 3), ("d18", 18, 4), ("d3", 3, 0)):
        unscaled = random.integers(-(10**digits) + 1, 10**digits, rows)
        unscaled[random.random(rows) < 0.2] = 0
        values = [Decimal(int(n)).scaleb(-scale) for n in unscaled]
        columns[name] = column(values, pa.decimal128(digits, scale))
    words = np.array(["", "a", "b", "B", "ab", "Émile", "日本", " a ", "12", "zz"], object)
    columns["s"] = column(random.choice(words, rows), pa.string())
    columns["t"] = column(random.choice(words[3:], rows), pa.string())
    return pa.table(columns)


TABLE = numbers()


def same(found: pa.Array, wanted: pa.Array, what: object, ulps: int = 0) -> None:
    """Require equal columns: types, nulls and values; floats up to some units in the last place, NaN as NaN."""
    assert found.type == wanted.type, what
    if not pa.types.is_floating(wanted.type):
        if not found.equals(wanted):
            rows = [i for i, (a, b) in enumerate(zip(found.to_pylist(), wanted.to_pylist())) if a != b]
            raise AssertionError(f"{what}: row {rows[0]} is {found[rows[0]]!r}, not {wanted[rows[0]]!r}")
        return
    assert found.is_null().equals(wanted.is_null()), what
    a, b = (x.fill_null(0).to_numpy(zero_copy_only=False) for x in (found, wanted))
    with np.errstate(all="ignore"):
        close = (np.isnan(a) & np.isnan(b)) | (a == b) & (np.signbit(a) == np.signbit(b))
        if ulps:
            close |= np.abs(a - b) <= ulps * np.spacing(np.abs(b))
    if not close.all():
        row = int(np.flatnonzero(~close)[0])
        raise AssertionError(f"{what}: row {row} is {a[row]!r}, not {b[row]!r}")


def flat(value: pa.ChunkedArray | pa.Array) -> pa.Array:
    return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value


def check(
    exprs: Sequence[Expr], table: pa.Table, xp: ModuleType, ulps: int = 0, host: bool = True
) -> FusedPlan:
    """Require that a kernel of all expressions computes what the host does of each."""
    plan = lower_expressions(exprs, table.schema)
    assert isinstance(plan, FusedPlan), plan
    for namespace in (xp, np) if host else (xp,):
        results = plan.run(to_device(table, namespace), namespace)
        for expr, column in zip(exprs, results):
            wanted = flat(evaluate_column(expr, table))
            assert wanted.type == expr.infer(table.schema)
            same(column_to_arrow(column), wanted, expr, ulps)
            if namespace is xp and column.valid is not None:
                assert not bool((~column.valid & (column.values != 0)).any()), f"{expr}: nulls aren't 0"
    return plan


PAIRS = [
    (a, b)
    for a, b in [("i8", "i8"), ("i8", "u8"), ("i16", "i64"), ("u16", "i32"), ("u32", "i32"), ("u64", "u64")]
    + [("i64", "i64"), ("i32", "f32"), ("f32", "f32"), ("f64", "f64"), ("f32", "f64"), ("i64", "f64")]
    + [("u64", "i64"), ("b", "i8"), ("b", "b")]
]
B, C, D = col("b"), col("i8") > 2, col("f64") < 1
DAY, HOUR = dt.timedelta(days=1), dt.timedelta(hours=1)
DECIMALS = [(a, b) for a in ("d5", "d3") for b in ("d5", "d9", "d3")]
FUSED: dict[str, list[Expr]] = {
    "arithmetic": [
        call(f, col(a), col(b))
        for f in ("add", "subtract", "multiply", "divide", "floor_divide", "modulo")
        for a, b in PAIRS
    ]
    + [call(f, col(a)) for f in ("negate", "abs") for a in (*NUMBERS[:10], "d5", "span")]
    + [col("i8") ** 2, col("i64") ** 3, col("u16") ** 0, 7 - col("u8"), col("f32") * 0.1, col("i64") % 7]
    + [col("i16") // 0, col("f64") // 0, col("f32") % 0.3, 1 / col("i8"), col("i32") + lit(None)],
    "decimals": [
        call(f, col(a), col(b))
        for f in ("add", "subtract", "multiply", "divide", "floor_divide", "modulo")
        for a, b in DECIMALS
    ]
    + [col("d5") * 2, 1 - col("d5"), col("d5") / col("f64"), col("d5") + col("i8"), col("d5") % 3]
    + [col("d5") // Decimal("0.5"), col("d5") / 0, col("d5") * Decimal("1.5"), col("d5") * 0.5]
    + [call(f, col(n)) for f in ("floor", "ceil", "round", "sqrt", "sign") for n in ("d5", "d9", "d18", "d3")]
    + [call("round", col(n), decimals=d) for n in ("d5", "d9") for d in (1, 2, -1, 4)],
    "comparison": [
        call(f, col(a), col(b))
        for f in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
        for a, b in [*PAIRS[6:], ("i8", "u8"), ("d5", "d9"), ("d5", "i32"), ("date", "ts_us")]
        + [("ts_s", "ts_ms"), ("span", "span_s"), ("s", "t"), ("d5", "f64")]
    ]
    + [call("less", col("u64"), lit(-1)), col("u64") == 5, col("i8") == lit(300), col("i8") < 300]
    + [col("f32") < 0.1, col("d5") < 0.07, col("d5") == Decimal("1.234"), col("d9") > 5, lit("b") <= col("s")]
    + [
        col("date") >= dt.date(1990, 1, 1),
        col("ts_us") < "2000-01-01",
        col("s") < "b",
        col("time") < dt.time(12),
    ]
    + [col("utc") < dt.datetime(2000, 1, 1, tzinfo=dt.UTC), col("span") > DAY, col("s") == lit(None)],
    "logic": [B & C, B | C, B ^ C, ~B, (B & C) | D, ~(B & D), B & lit(None), B | lit(None), lit(None) & B]
    + [col("i8") & col("i16"), col("u8") | col("u8"), col("i32") ^ col("i64"), ~col("i16"), ~col("u8")]
    + [col(n).is_in([1, 2, 3]) for n in NUMBERS[:10]]
    + [col("i32").is_in(list(range(-20, 20, 2))), col("f64").is_in([0.0, float("nan"), 2.5, None])]
    + [col("f64").is_in([i / 2 for i in range(40)]), col("b").is_in([True]), col("i8").is_in([])]
    + [
        col("date").is_in([dt.date(1970, 1, 1)]),
        col("d5").is_in([Decimal("1.25"), 0]),
        col("i8").is_in([None]),
    ]
    + [call(f, col(n)) for f in ("is_null", "is_not_null") for n in ("i8", "f64", "s", "d5", "ts_us")]
    + [call(f, col(n)) for f in ("is_nan", "is_not_nan", "is_finite") for n in ("i8", "f32", "f64", "d5")],
    "choices": [
        f(*map(col, names))
        for f in (least, greatest, coalesce)
        for names in [("i8", "i8"), ("i8", "u8", "i32"), ("f32", "f64"), ("f64", "f32", "i8"), ("b", "b")]
        + [("date", "ts_us"), ("s", "t"), ("d5", "d9"), ("ts_s", "ts_us")]
    ]
    + [
        least(col("f64"), lit(2.5)),
        greatest(lit(0), col("i8")),
        least("s", lit("b")),
        coalesce("s", "t", lit("?")),
    ]
    + [
        col("s").fill_null("none"),
        col("s").fill_null(col("t")),
        col("f64").fill_null(0),
        col("f64").fill_nan(0.0),
    ]
    + [
        col("f32").fill_nan(col("f64")),
        col("f32").fill_nan(None),
        col("i8").fill_nan(3),
        col("i8").clip(-2, 5),
    ]
    + [
        col("f64").clip(-1.5, col("f32")),
        col("s").clip("a", "b"),
        col("s").clip(col("t")),
        col("d5").clip(0, 5),
    ]
    + [when(B).then(1).otherwise(2), when(B).then(col("i8")).when(C).then(col("f32")), when(B).then("p")]
    + [
        when(col("s") == "a").then(col("t")).otherwise("x"),
        when(lit(None)).then(col("i8")).otherwise(col("i16")),
    ]
    + [when(B).then(None).otherwise(col("s")), when(B).then(col("s").str.upper()).otherwise(col("t"))]
    + [when(B).then(col("d5")).otherwise(col("d3")), when(B).then("p").when(D).then("q").otherwise(None)],
    "rounding": [
        call(f, col(n))
        for f in ("floor", "ceil", "round", "sign", "sqrt")
        for n in ("f64", "f32", "i8", "u64", "b")
    ]
    + [call("round", col("f32"), decimals=-1), call("round", col("i8"), decimals=1)],
    "times": [col("date") + 3 * DAY, DAY + col("date"), col("date") - 3 * DAY, col("date") + 3 * HOUR]
    + [
        col("date") + col("span"),
        col("date") - col("date"),
        col("ts_us") - col("ts_s"),
        col("ts_us") - col("date"),
    ]
    + [col("date") - col("ts_ms"), col("ts_us") + col("span"), col("ts_s") + col("span"), col("ts_s") + HOUR]
    + [col("ts_us") - col("span_s"), col("utc") - col("utc"), col("utc") + DAY, col("span") + col("span_s")]
    + [
        col("span") * col("i8"),
        col("span") * col("f64"),
        col("f32") * col("span_s"),
        col("span") / col("span_s"),
    ]
    + [col("span") / col("f64"), col("span") / col("i8"), col("span") / 0, col("date") + lit(None)]
    + [col("ts_us") - dt.datetime(2000, 1, 1), col("date") - dt.date(2000, 1, 1), col("span") / HOUR],
    "calendar": [
        call(f"dt.{part}", col(n))
        for part in ("year", "month", "day", "day_of_year", "week", "quarter", "weekday", "date")
        for n in ("date", "ts_s", "utc")
    ]
    + [
        call(f"dt.{part}", col(n))
        for part in ("hour", "minute", "second", "millisecond", "microsecond", "nanosecond")
        for n in ("ts_s", "ts_ns", "time")
    ]
    + [
        col("ts_us").dt.truncate(e)
        for e in ("year", "quarter", "month", "week", "day", "hour", "minute", "second")
    ]
    + [col("utc").dt.truncate(e) for e in ("15m", "6h", "3d", "3w", "5mo", "7y", "5q", "500ms", "7s", "10us")]
    + [col("date").dt.truncate(e) for e in ("year", "month", "week", "7mo", "2w")]
    + [col("ts_us").dt.epoch(u) for u in ("s", "ms", "us")]
    + [col("date").dt.epoch(), col("ts_s").dt.epoch("us")]
    + [col("span").dt.total_seconds(), col("date").dt.days_between(col("ts_us"))],
    "casts": [
        col(n).cast(type, strict=False)
        for n in ("i8", "u16", "i64", "u64", "f32", "f64", "b", "d5", "d18")
        for type in (
            "bool",
            "int8",
            "uint32",
            "int64",
            "float32",
            "float64",
            "decimal128(5,2)",
            "decimal128(12,0)",
        )
        if not (n.startswith("f") and type.startswith("decimal"))
    ]
    + [
        col("date").cast("timestamp[ns]", strict=False),
        col("utc").cast("date"),
        col("ts_us").cast("timestamp[s]"),
    ]
    + [
        col("ts_s").cast("timestamp[ns]", strict=False),
        col("span").cast("duration[s]"),
        col("time").cast("time32[s]"),
    ]
    + [
        col("ts_us").cast("int64"),
        col("i64").cast("timestamp[s]"),
        col("date").cast("int32"),
        col("i32").cast("date"),
    ],
    "strings": [
        col("s"),
        col("s").str.upper(),
        col("s").str.len() + col("i8"),
        col("s").str.contains("b"),
        col("s") + "x",
    ]
    + [
        call(f"str.{f}", col("s"))
        for f in ("lower", "title", "capitalize", "reverse", "strip", "lstrip", "rstrip")
    ]
    + [
        col("s").str.split(",").list.len(),
        col("s").str.slice(0, 1) == col("t").str.slice(0, 1),
        col("s").is_in(["a"]),
    ]
    + [
        col("s").str.extract("(b)"),
        col("s").str.starts_with("a") & B,
        col("s").cast("int32", strict=False) * 2,
    ]
    + [concat_str("s", lit("-")), col("s").fill_null("?").str.len(), lit("word"), when(B).then(col("s"))]
    + [col("s").str.to_date(strict=False), coalesce(col("s").str.extract("(a)"), col("t"))],
    "hashes": [hash_unit("i8"), hash_unit("i32", "f64", seed=3), hash_unit("f32", "b", "date", "ts_us")]
    + [hash_unit("s"), hash_unit("u64", seed=-1), hash_unit(col("i8") + 1)],
}


@pytest.mark.parametrize("group", FUSED)
def test_as_on_the_host(xp: ModuleType, group: str) -> None:
    check(FUSED[group], TABLE, xp, host=False)


def test_elementary_functions_up_to_the_last_digit(xp: ModuleType) -> None:
    names = (
        "exp",
        "expm1",
        "log10",
        "log2",
        "log1p",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "tanh",
        "log",
    )
    exprs = [call(f, col(n)) for f in names for n in ("f64", "f32", "i8", "d5")]
    exprs += [call("log", col("f64"), base=2.0), call("log", col("i8"), base=10.0)]
    check(exprs, TABLE, xp, ulps=ULPS, host=False)
    check([call("power", col(a), col(b)) for a, b in PAIRS], TABLE, xp, ulps=ULPS, host=False)


@pytest.mark.parametrize("rows", [0, 1, 300])
@pytest.mark.parametrize("nulls", [0.0, 1.0])
def test_few_rows_without_nulls_and_of_nulls(xp: ModuleType, rows: int, nulls: float) -> None:
    exprs = [
        *FUSED["choices"][::4],
        *FUSED["logic"][:12],
        *FUSED["strings"],
        col("i8") // col("i8"),
        lit(3),
        lit(None, "int8"),
    ]
    check(exprs, numbers(rows, seed=rows, nulls=nulls), xp)


LEAVES: dict[str, list[Expr]] = {
    "number": [*map(col, NUMBERS[:10]), col("d3"), col("d5")],
    "bool": [col("b")],
    "text": [col("s"), col("t")],
    "time": [col("date"), col("ts_us"), col("ts_s")],
}
CONSTANTS: dict[str, list[Expr]] = {
    "number": [lit(0), lit(1), lit(-3), lit(2.5), lit(100), lit(Decimal("1.5"))],
    "bool": [lit(True), lit(False)],
    "text": [lit("a"), lit("B"), lit("")],
    "time": [lit(dt.date(2000, 2, 29)), lit(dt.datetime(1999, 12, 31, 23, 59, 59))],
}


def random_tree(random: np.random.Generator, kind: str, depth: int) -> Expr:
    """An expression of numbers, booleans, strings or times, of functions whose values are exact."""

    def part(kind: str) -> Expr:
        return random_tree(random, kind, depth - 1)

    def pick(items: Sequence[Any]) -> Any:
        return items[int(random.integers(len(items)))]

    if depth == 0 or random.random() < 0.1:
        return pick(LEAVES[kind]) if random.random() < 0.7 else pick(CONSTANTS[kind])
    if kind == "number":
        made = [
            lambda: call(
                pick(["add", "subtract", "multiply", "divide", "floor_divide", "modulo"]),
                part(kind),
                part(kind),
            ),
            lambda: call(pick(["least", "greatest", "coalesce", "fill_null"]), part(kind), part(kind)),
            lambda: call(pick(["floor", "ceil", "sign", "sqrt", "abs", "negate"]), part(kind)),
            lambda: (
                when(part("bool")).then(part(kind)).when(part("bool")).then(part(kind)).otherwise(part(kind))
            ),
            lambda: part(kind).cast(pick(["int16", "float32", "int64", "uint8"]), strict=False),
            lambda: part("text").str.len(),
            lambda: call(pick(["dt.year", "dt.week", "dt.weekday", "dt.epoch"]), part("time")),
            lambda: part("time").dt.days_between(part("time")),
        ]
    elif kind == "time":
        made = [
            lambda: part(kind).dt.truncate(pick(["month", "week", "3d", "year"])),
            lambda: call(pick(["least", "greatest", "coalesce"]), part(kind), part(kind)),
            lambda: when(part("bool")).then(part(kind)).otherwise(part(kind)),
            lambda: part(kind) + pick([DAY, HOUR]),
            lambda: part(kind).cast("date"),
        ]
    elif kind == "bool":
        made = [
            lambda: call(pick(["and", "or", "xor"]), part(kind), part(kind)),
            lambda: call(
                pick(["equal", "less", "greater_equal"]),
                *[part(k) for k in [pick(["number", "text", "time"])] * 2],
            ),
            lambda: call(pick(["is_null", "is_not_null"]), part(pick(["number", "bool", "text", "time"]))),
            lambda: ~part(kind),
            lambda: part("number").is_in([0, 1, 2, 100]),
        ]
    else:
        made = [
            lambda: call(pick(["str.upper", "str.reverse", "str.lower"]), part(kind)),
            lambda: when(part("bool")).then(part(kind)).otherwise(part(kind)),
            lambda: call(pick(["coalesce", "least", "greatest"]), part(kind), part(kind)),
        ]
    return pick(made)()


@pytest.mark.parametrize("seed", range(2))
def test_random_trees(xp: ModuleType, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = numbers(1_500, seed + 10)
    exprs: list[Expr] = []
    while len(exprs) < 35:
        expr = random_tree(random, ["number", "bool", "text", "time"][int(random.integers(4))], 4)
        try:
            expr.infer(table.schema)
            evaluate_column(expr, table)
        except HeadwaterError:
            continue
        plan = lower_expression(expr, table.schema)
        if isinstance(plan, str):
            assert "digits" in plan or "decimal" in plan, plan
            continue
        exprs.append(expr)
    check(exprs, table, xp, host=False)


@pytest.mark.parametrize("seed", range(2))
def test_random_filters_and_projections(xp: ModuleType, seed: int) -> None:
    random = np.random.default_rng(seed + 50)
    table = numbers(2_100, seed + 20)

    def trees(kinds: Sequence[str]) -> list[Expr]:
        found: list[Expr] = []
        while len(found) < len(kinds):
            expr = random_tree(random, kinds[len(found)], 3)
            try:
                evaluate_column(expr, table)
            except HeadwaterError:
                continue
            found += [expr] if isinstance(lower_expression(expr, table.schema), FusedPlan) else []
        return found

    first, last = trees(["bool", "bool"])
    made = {f"c{i}": expr for i, expr in enumerate(trees(["number", "bool", "text", "time"] * 4))}
    later = {**made, "i16": col("i16"), "last": last}
    schema = pa.schema([(name, expr.infer(table.schema)) for name, expr in later.items()])
    after = {"again": call("coalesce", col("c2"), col("c6")), **{name: col(name) for name in [*made, "i16"]}}
    ends = pa.schema([(name, expr.infer(schema)) for name, expr in after.items()])
    host = [
        FilterKernel(first | (col("i8") > 0)),
        ProjectKernel(tuple(later.items()), schema),
        FilterKernel(col("last") | (col("i16") > 0)),
        ProjectKernel(tuple(after.items()), ends),
    ]
    stream, lowered, source = iter([table]), None, table.schema
    for kernel in host:
        stream = kernel.run([stream], Context())
        step = device_kernel(kernel, [source])
        assert isinstance(step, DeviceKernel), step
        lowered = step if lowered is None else fused(lowered, step)
        assert isinstance(lowered, DeviceKernel), lowered
        source = kernel.schema if isinstance(kernel, ProjectKernel) else source
    assert lowered is not None
    (found,) = lowered.run([iter([to_device(table, xp)])], Context())
    (wanted,) = stream
    assert 0 < found.rows < table.num_rows
    for field, column, other in zip(ends, found.columns, wanted.columns):
        same(column_to_arrow(column), flat(other), after[field.name], 0)


STRICT = [
    col("i32").cast("int8"),
    col("f64").cast("int64"),
    col("u64").cast("int64"),
    col("d5").cast("decimal128(3,2)"),
    col("i64").cast("decimal128(4,2)"),
    col("ts_s").cast("timestamp[ns]"),
    col("s").cast("int32"),
    col("s").str.to_date(),
    col("f32").round(2),
]


@pytest.mark.parametrize("expr", STRICT, ids=str)
def test_what_raises_on_the_host_raises_the_same(xp: ModuleType, expr: Expr) -> None:
    plan = lower_expression(expr, TABLE.schema)
    assert isinstance(plan, FusedPlan), plan
    with pytest.raises(HeadwaterError) as wanted:
        expr.evaluate(TABLE.slice(0, 500))
    with pytest.raises(HeadwaterError) as found:
        plan.run(to_device(TABLE.slice(0, 500), xp), xp)
    assert type(found.value) is type(wanted.value)
    assert str(found.value) == str(wanted.value)


def test_words_and_values_that_no_row_has_do_not_raise(xp: ModuleType) -> None:
    rows = pa.table({"s": ["1", "x", None, "22"], "n": [1, 1000, None, -1]})
    table = to_device(rows, xp)
    plan = lower_expressions([col("s").cast("int8") + 1, col("n").cast("int8")], rows.schema)
    assert isinstance(plan, FusedPlan)
    with pytest.raises(HeadwaterError):
        plan.run(table, xp)
    kept = table.take(xp.asarray([0, 2, 3]))
    texts, narrow = plan.run(kept, xp)
    assert column_to_arrow(texts).to_pylist() == [2, None, 23]
    assert column_to_arrow(narrow).to_pylist() == [1, None, -1]


def test_tables_follow_the_dictionary(xp: ModuleType) -> None:
    expr = [col("s").str.upper(), least("s", lit("m")), col("s").str.len()]
    plan = lower_expressions(expr, pa.schema({"s": pa.string()}))
    assert isinstance(plan, FusedPlan)
    tables = Tables(xp)
    for words in (["a", "z", None], ["z", "", "a"], ["a", "z", None]):
        rows = pa.table({"s": pa.array(words, pa.string())})
        results = plan.run(to_device(rows, xp), xp, tables)
        assert [column_to_arrow(c).to_pylist() for c in results] == [
            flat(evaluate_column(e, rows)).to_pylist() for e in expr
        ]


def test_metrics_as_on_the_host(xp: ModuleType) -> None:
    random = np.random.default_rng(5)
    rows = pa.table(
        {
            "y": random.integers(0, 2, 700),
            "p": random.random(700),
            "w": random.choice(["a", "b"], 700),
            "v": random.choice(["b", "c"], 700),
            "hole": pa.array([None, *random.random(699)]),
        }
    )
    names = ("squared_error", "absolute_error", "brier")
    exprs = [call(f"metrics.{name}", col("y"), col("p"), where=name) for name in names]
    exprs += [call("metrics.correct", col("w"), col("v"), where="accuracy")]
    exprs += [call("metrics.indicator", col("w"), lit("a"), where="f1", name="target")]
    exprs += [call("metrics.indicator", col("y"), lit(1), where="f1", name="target")]
    check(exprs, rows, xp)
    check([call("metrics.log_loss", col("y"), col("p"), where="log_loss")], rows, xp, ulps=ULPS)
    for wrong in (
        call("metrics.brier", col("p"), col("p"), where="brier"),
        call("metrics.absolute_error", col("y"), col("hole"), where="absolute_error"),
    ):
        plan = lower_expression(wrong, rows.schema)
        assert isinstance(plan, FusedPlan), plan
        with pytest.raises(HeadwaterError, match=wrong.function.split(".")[1]):
            plan.run(to_device(rows, xp), xp)


#: what has no form in a kernel, by why
REFUSED = {
    "they have no form": [
        col("s").str.split(","),
        col("s").str.split_whitespace(),
        call("metrics.ranked", col("f64"), col("f64"), where="auc"),
    ],
    "casts": [
        col("i8").cast("string"),
        col("f64").cast("decimal128(5,2)"),
        col("ts_us").cast("time64[us]"),
        col("utc").cast("timestamp[us]"),
    ],
    "digits": [
        col("d18") + 1,
        col("d9") * col("d9"),
        least(col("i64"), col("d3")),
        col("i64").cast("decimal128(30,2)"),
    ],
    "computed on the host": [
        concat_str("s", "t"),
        col("s") + col("t"),
        hash_unit("s", "i8"),
        hash_unit("d5"),
        col("date").dt.strftime("%Y"),
        col("i32").round(-1),
        col("f32").log(2.0),
        col("time") + HOUR,
        col("paris").dt.hour(),
        col("date").dt.truncate("hour"),
    ],
}


def test_every_function_is_fused_or_refused_with_a_reason() -> None:
    schema = TABLE.schema.append(pa.field("paris", pa.timestamp("us", tz="Europe/Paris")))
    schema = schema.append(pa.field("list", pa.list_(pa.int8()))).append(pa.field("half", pa.float16()))
    for expr in [part for exprs in REFUSED.values() for part in exprs] + [col("list"), col("half") + 1]:
        why = lower_expression(expr, schema)
        assert isinstance(why, str), expr
        assert "host" in why or "there" in why
    nested = pa.schema({"x": pa.list_(pa.int64()), "r": pa.struct([("f", pa.int8())])})
    for expr in (
        col("x").list.len(),
        col("x").list.get(0),
        col("x").list.contains(1),
        col("r").struct.field("f"),
    ):
        assert isinstance(lower_expression(expr, nested), str)
    looked_up = {name for name in FUNCTIONS if name.split(".")[0] in ("str", "list", "struct")}
    by_the_host = {"concat_str", "dt.strftime", "metrics.ranked"}
    assert set(FUNCTIONS) - set(RULES) - looked_up - by_the_host == {"is_in"}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_generated_sources_compile(arch: str, tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("there is no nvcc here")
    every = [expr for exprs in FUSED.values() for expr in exprs[::6]][:40]
    plan = lower_expressions(every, TABLE.schema)
    assert isinstance(plan, FusedPlan), plan
    source = tmp_path / "fused.cu"
    source.write_text(plan.code(frozenset(TABLE.column_names[::2])))
    options = ["-cubin", f"-arch={arch}", "-std=c++17", "--fmad=false", "-o", str(tmp_path / "fused.cubin")]
    done = subprocess.run([compiler, *options, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]


def test_what_is_too_much_for_a_kernel_is_split_or_refused() -> None:
    names = [f"c{i}" for i in range(300)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    plan = lower_expressions([col(name) + 1 for name in names], schema)
    assert isinstance(plan, FusedPlan), plan
    assert sum(len(part.exprs) for part in plan.parts) == 300
    assert len(plan.parts) > 1
    whole = sum((col(name) for name in names), lit(0))
    assert "more columns" in str(lower_expression(whole, schema))
