"""DeviceProject against ProjectKernel."""

from __future__ import annotations

import pickle
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import use_backend
from headwater.ops.device import lowerings  # noqa: F401  (registers the operators)
from headwater.ops.device.device_kernel import DeviceKernel, device_kernel
from headwater.ops.device.operators.project import DeviceProject
from headwater.ops.device.table import DeviceTable, to_arrow, to_device
from headwater.ops.expressions import Expr, col, lit, when
from headwater.ops.kernel import Context
from headwater.ops.project import ProjectKernel

TABLE = pa.table(
    {
        "x": pa.array([1, None, 3, -4] * 300, pa.int32()),
        "y": [1.5, float("nan"), None, -0.0] * 300,
        "s": ["b", None, "a", "b"] * 300,
        "big": pa.array([None] * 1_200, pa.decimal128(30, 2)),
    }
)


def projection(source: pa.Schema, **exprs: Expr) -> ProjectKernel:
    schema = pa.schema([(name, expr.infer(source)) for name, expr in exprs.items()])
    return ProjectKernel(tuple(exprs.items()), schema)


def ran(kernel: DeviceKernel, tables: list[pa.Table], xp: ModuleType) -> list[DeviceTable]:
    with use_backend(xp.__name__):
        return list(kernel.run([iter([to_device(table, xp) for table in tables])], Context()))


def test_as_on_the_host_in_both_namespaces(xp: ModuleType) -> None:
    rows = TABLE.drop(["big"])
    kernel = projection(
        rows.schema,
        x=col("x"),
        doubled=col("x") * 2,
        ratio=col("y") / col("x"),
        renamed=col("s").alias("t"),
        loud=col("s").str.upper(),
        one=lit(1, "int8"),
        none=lit(None, "string"),
        kind=when(col("x") > 0).then("+").otherwise(col("s")),
    )
    tables = [rows.slice(0, 700), rows.slice(0, 0), rows.slice(700)]
    wanted = pa.concat_tables(kernel.run([iter(tables)], Context()))
    lowered = device_kernel(kernel, [rows.schema])
    assert isinstance(lowered, DeviceProject), lowered
    lowered = pickle.loads(pickle.dumps(lowered))
    for namespace in (xp, np):
        results = ran(lowered, tables, namespace)
        assert [table.rows for table in results] == [700, 0, 500]
        found = pa.concat_tables([to_arrow(table) for table in results])
        assert found.schema == wanted.schema
        assert str(found.to_pydict()) == str(wanted.to_pydict())


def test_what_passes_through_is_not_copied(xp: ModuleType) -> None:
    rows = TABLE.drop(["big"])
    lowered = device_kernel(projection(rows.schema, s=col("s"), z=col("x").alias("q")), [rows.schema])
    assert isinstance(lowered, DeviceProject)
    table = to_device(rows, xp)
    with use_backend(xp.__name__):
        (result,) = lowered.run([iter([table])], Context())
    assert result.columns[0] is table.column("s")
    assert result.columns[1] is table.column("x")


def test_none_and_only_constant_columns_keep_the_rows(xp: ModuleType) -> None:
    rows = TABLE.select(["x"])
    for exprs in ({}, {"one": lit(1)}):
        lowered = device_kernel(projection(rows.schema, **exprs), [rows.schema])
        assert isinstance(lowered, DeviceProject)
        assert [table.rows for table in ran(lowered, [rows], xp)] == [1_200]


@pytest.mark.parametrize(
    ("expr", "why"),
    [
        (col("big"), "decimal128"),
        (col("big") + 1, "decimal128"),
        (col("x").cast("string"), "made on the host"),
    ],
)
def test_refused_with_a_reason(expr: Expr, why: str) -> None:
    lowered = device_kernel(projection(TABLE.schema, out=expr), [TABLE.schema])
    assert isinstance(lowered, str)
    assert why in lowered


def test_more_results_than_one_kernel_has(xp: ModuleType) -> None:
    rows = TABLE.select(["x"])
    kernel = projection(rows.schema, **{f"c{i}": col("x") + i for i in range(70)})
    lowered = device_kernel(kernel, [rows.schema])
    assert isinstance(lowered, DeviceProject), lowered
    (found,) = ran(lowered, [rows], xp)
    (wanted,) = kernel.run([iter([rows])], Context())
    assert to_arrow(found).equals(wanted.combine_chunks())
