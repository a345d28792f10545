"""Floats of 32 bits below 2**-126 are numbers like others on a device: as keys, in comparisons, sums and hashes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import to_host
from headwater.ops.device.arrays.grouping import group
from headwater.ops.device.arrays.row_hash import hash_segments
from headwater.ops.device.arrays.word_order import row_order
from headwater.ops.device.column import to_device
from headwater.ops.device.fused.fusion import lower_expressions
from headwater.ops.device.table import to_arrow
from headwater.ops.device.table import to_device as table_to_device
from headwater.ops.expressions import col
from headwater.ops.ordering import SortKey

TINY = np.float32(1e-45) * np.arange(-6, 6, dtype=np.float32)
VALUES = np.random.default_rng(0).choice(np.concatenate([TINY, np.float32([1, -1])]), 3000)


@pytest.fixture
def there(xp):
    return table_to_device(pa.table({"x": VALUES}), xp)


def test_groups(xp):
    found = group([to_device(pa.array(VALUES), xp)], len(VALUES), xp)
    kinds, first = np.unique(VALUES + np.float32(0), return_index=True)
    assert found.count == len(kinds)
    np.testing.assert_array_equal(to_host(found.first_rows), np.sort(first))


def test_order(xp, there):
    np.testing.assert_array_equal(
        to_host(row_order(there, [SortKey("x")], xp)), np.argsort(VALUES, kind="stable")
    )


def test_segments(xp, there):
    host = hash_segments([to_device(pa.array(VALUES), np)], 97, np)
    np.testing.assert_array_equal(to_host(hash_segments([there.column("x")], 97, xp)), host)


def test_expressions(xp, there):
    exprs = [col("x") > 0, col("x") == 0, col("x") * 3, col("x") + col("x"), col("x").cast("float64") / 7]
    plan = lower_expressions(exprs, there.schema)
    assert not isinstance(plan, str)
    rows = to_arrow(there)
    for expr, column in zip(exprs, plan.run(there, xp)):
        host = np.asarray(expr.evaluate(rows))
        np.testing.assert_array_equal(to_host(column.values).view(np.uint8), host.view(np.uint8), str(expr))
