"""Partial aggregation of scattered keys: fewer states, the same sums, and the same bits however rows arrive."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.aggregate import (
    Aggregation,
    FinalAggregateKernel,
    PartialAggregateKernel,
    state_schema,
)
from headwater.ops.kernel import MORSEL_ROWS, Context
from headwater.ops.morsels import slices

ROWS = 5 * MORSEL_ROWS + 77
AGGREGATIONS = (Aggregation("total", "sum", "x"), Aggregation("rows", "count", None))


def rows_of(keys: np.ndarray, **more: pa.Array) -> pa.Table:
    return pa.table({"k": keys, "x": np.random.default_rng(1).random(len(keys)), **more})


def states_of(table: pa.Table, cut: int = MORSEL_ROWS) -> list[pa.Table]:
    kernel = PartialAggregateKernel(("k",), AGGREGATIONS, state_schema(table.schema, ["k"], AGGREGATIONS))
    return list(kernel.run([slices(table, cut)], Context()))


def finished(states: list[pa.Table]) -> pa.Table:
    schema = pa.schema([("k", pa.int64()), ("total", pa.float64()), ("rows", pa.int64())])
    return pa.concat_tables(FinalAggregateKernel(("k",), AGGREGATIONS, schema).run([states], Context()))


KEYS = {
    "scattered": lambda draw: draw.integers(0, ROWS // 2, ROWS),
    "all different": lambda draw: draw.permutation(ROWS),
    "few": lambda draw: draw.integers(0, 1000, ROWS),
    "different at first, then few": lambda draw: np.minimum(np.arange(ROWS), 2 * MORSEL_ROWS),
}


@pytest.mark.parametrize("kind", KEYS)
def test_sums_are_right_and_do_not_depend_on_how_rows_arrive(kind: str):
    keys = KEYS[kind](np.random.default_rng(0))
    table = rows_of(keys)
    states = states_of(table)
    found = finished(states)
    groups = found["k"].to_numpy()
    assert len(np.unique(groups)) == len(groups) == len(np.unique(keys))
    expected = np.bincount(keys, weights=table["x"].to_numpy())
    np.testing.assert_allclose(found["total"].to_numpy(), expected[groups], rtol=1e-12)
    assert (found["rows"].to_numpy() == np.bincount(keys)[groups]).all()
    again = states_of(table, cut=100_003)
    assert len(again) == len(states)
    assert all(one.equals(other) for one, other in zip(again, states))


@pytest.mark.parametrize("more", [{}, {"text": pa.array(["a"] * ROWS)}], ids=["numbers", "text beside them"])
def test_scattered_keys_leave_one_state_each(more: dict):
    keys = KEYS["scattered"](np.random.default_rng(0))
    assert sum(part.num_rows for part in states_of(rows_of(keys, **more))) == len(np.unique(keys))
