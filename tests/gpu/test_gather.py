"""Rows by their numbers, as NumPy and Arrow take them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.backend import to_host
from headwater.ops.device.arrays.gather import take_columns, take_columns_or_null
from headwater.ops.device.column import to_arrow as column_to_arrow
from headwater.ops.device.table import to_arrow, to_device

RANDOM = np.random.default_rng(3)
ROWS = 3_000
TABLE = pa.table(
    {
        "b": pa.array(RANDOM.random(ROWS) < 0.5),
        "h": pa.array(RANDOM.integers(-9, 9, ROWS).astype(np.int16), mask=RANDOM.random(ROWS) < 0.3),
        "i": pa.array(RANDOM.integers(-9, 9, ROWS).astype(np.int32), mask=RANDOM.random(ROWS) < 0.3),
        "d": pa.array(RANDOM.choice([0.0, -0.0, np.nan, 1e308], ROWS)),
        "s": pa.array(RANDOM.choice(np.array(["a", "bb", None], object), ROWS), pa.string()),
        "n": pa.nulls(ROWS, pa.int64()),
    }
)


def bits(table: pa.Table) -> list[object]:
    return [str(c.to_pylist()) if c.type != pa.float64() else c.to_numpy().tobytes() for c in table.columns]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("count", [0, 1, 1_023, 5_001])
def test_of_all_columns(xp: ModuleType, count: int, dtype: type) -> None:
    rows = RANDOM.integers(0, ROWS, count).astype(dtype)
    wanted = TABLE.take(pa.array(rows.astype(np.int64)))
    for there, namespace in ((xp.asarray(rows), xp), (rows, np)):
        found = to_arrow(to_device(TABLE, namespace).take(there))
        assert found.schema == TABLE.schema
        assert bits(found) == bits(wanted)


@pytest.mark.parametrize("source", [0, 1, ROWS])
def test_missing_rows_are_null(xp: ModuleType, source: int) -> None:
    rows = RANDOM.integers(-1, source, 2_501) if source else np.full(2_501, -1)
    table = TABLE.slice(0, source).combine_chunks()
    wanted = [column.take(pa.array(rows, mask=rows < 0)) for column in table.columns]
    for there, namespace in ((xp.asarray(rows), xp), (rows, np)):
        columns = take_columns_or_null(to_device(table, namespace).columns, there, namespace)
        for place, column in enumerate(columns):
            assert not to_host(column.values)[rows < 0].any()
            found = column_to_arrow(column) if source else None
            assert found is None or bits(pa.table({"": found})) == bits(pa.table({"": wanted[place]}))
            assert to_host(column.valid)[rows < 0].sum() == 0


def test_nothing_to_take(xp: ModuleType) -> None:
    assert take_columns([], xp.arange(3), xp) == []
    assert take_columns_or_null([], xp.arange(3), xp) == []
