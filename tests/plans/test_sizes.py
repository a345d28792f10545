"""Estimates: exact where metadata tells, sensible in direction elsewhere."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.aggregate import Aggregate, Aggregation, state_schema
from headwater.ops.distinct import Distinct
from headwater.ops.expressions import col, lit
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.limit import Limit
from headwater.ops.node import Node
from headwater.ops.quantiles import bucket_numbers, expected_bytes, mantissa_bits
from headwater.ops.sample import Sample
from headwater.ops.scan import Scan
from headwater.ops.union import Union
from headwater.planner.plan import Estimate
from headwater.planner.selectivity import selectivity
from headwater.planner.sizes import estimate, state_bytes
from headwater.planner.widths import row_width, type_width


def size(node: Node) -> Estimate:
    splits = node.source.splits() if isinstance(node, Scan) else ()
    return estimate(node, [size(child) for child in node.inputs], splits)


def test_a_scan_of_counted_splits_is_exact(rides):
    assert size(rides) == Estimate(10_000_000, 1 << 30, exact=True)


def test_a_scan_of_fewer_columns_takes_fewer_bytes(rides):
    pruned = size(Scan(rides.source, ("id", "fare")))
    assert pruned.rows == 10_000_000
    assert pruned.bytes < size(rides).bytes / 2


def test_uncounted_rows_are_guessed_from_bytes(scan):
    node = scan("lines", {"x": "int64", "y": "int64"}, 2, counted=False, split_bytes=1600)
    assert size(node) == Estimate(200, 3200, exact=False)


def test_limits_and_totals_and_unions(rides):
    assert (size(Limit(rides, 7)).rows, size(Limit(rides, 7)).exact) == (7, True)
    assert size(Aggregate(rides, (), (Aggregation("n", "count", None),))).rows == 1
    both = size(Union((rides, rides)))
    assert (both.rows, both.exact) == (20_000_000, True)
    assert not size(Filter(rides, col("id") > 1)).exact


def test_groups_are_no_more_than_rows_and_than_the_keys_allow(rides, scan):
    assert 1 <= size(Aggregate(rides, ("zone",), ())).rows <= 10_000_000
    flags = scan("flags", {"a": "bool", "b": "bool"}, split_rows=1_000_000, split_bytes=1 << 20)
    assert size(Aggregate(flags, ("a", "b"), ())).rows == 9
    assert size(Distinct(flags)).rows == 9


def test_sketches_of_quantiles_grow_with_their_groups_up_to_a_bound(scan):
    node = scan("n", {"k": "int8", "x": "float64"}, split_rows=1_000_000)
    median, fine = ((("accuracy", accuracy), ("q", 0.5)) for accuracy in (0.01, 0.001))

    def per_group(rows: float, *aggregations: Aggregation) -> float:
        aggregate = Aggregate(node, ("k",), aggregations)
        states = state_schema(node.schema, aggregate.keys, aggregations)
        return state_bytes(aggregate, states, 100, 100 * rows) / 100

    half = Aggregation("m", "approx_quantile", "x", median)
    rest = 1 + 8 + 8  # key and extremes
    assert per_group(4, half) == rest + 4 * 12
    assert per_group(640, half) == per_group(1e9, half) == rest + 640 * 12
    assert per_group(1e9, Aggregation("m", "approx_quantile", "x", fine)) == rest + 8 * 640 * 12
    quarter = Aggregation("n", "approx_quantile", "x", (("accuracy", 0.01), ("q", 0.25)))
    assert per_group(1e9, half, quarter) == per_group(1e9, half)  # which read the same state
    total = Aggregation("t", "sum", "x")
    assert per_group(4, half, total) == per_group(4, half) + row_width(
        state_schema(node.schema, (), (total,))
    )
    nothing = Aggregate(node, ("k",), (half,))
    assert state_bytes(nothing, state_schema(node.schema, ("k",), (half,)), 0, 0) == 0


def test_a_real_sketch_is_about_as_large_as_is_expected():
    rng = np.random.default_rng(0)
    values = np.exp(rng.uniform(0, np.log(1000), 100_000))  # spans a factor of 1000
    for accuracy in (0.05, 0.01, 0.001):
        buckets = len(np.unique(bucket_numbers(values, mantissa_bits({"accuracy": accuracy}))))
        assert 12 * buckets == pytest.approx(expected_bytes(len(values), accuracy), rel=0.05)


def test_joins(rides, zones):
    inner, semi = (size(Join(rides, zones, ("zone",), ("zone",), how)) for how in ("inner", "semi"))
    assert inner.rows == 10_000_000
    assert inner.bytes > size(rides).bytes
    assert semi.rows < inner.rows


def test_nothing_comes_of_nothing(scan):
    empty = scan("empty", {"x": "int64"})
    for node in (
        Filter(empty, col("x") > 1),
        Distinct(empty),
        Limit(empty, 3),
        Sample(empty, 0, 0.5, 1, "s"),
    ):
        assert (size(node).rows, size(node).bytes) == (0, 0)
    assert size(Join(empty, empty, ("x",), ("x",))).rows == 0


@pytest.mark.parametrize(
    ("narrower", "wider"),
    [
        (col("a") == 1, col("a") > 1),
        ((col("a") == 1) & (col("b") == 2), col("a") == 1),
        (col("a") == 1, (col("a") == 1) | (col("b") == 2)),
        (col("a").is_null(), ~col("a").is_null()),
        (lit(False), col("a") == 1),
    ],
)
def test_narrower_predicates_keep_less(narrower, wider):
    assert 0 <= selectivity(narrower) < selectivity(wider) <= 1


@pytest.mark.parametrize(
    "type", [pa.int8(), pa.float64(), pa.decimal128(10, 2), pa.timestamp("us"), pa.list_(pa.int32(), 3)]
)
def test_fixed_widths_are_what_arrow_stores(type):
    values = pa.array([None] * 64, type)
    bitmap = 8 + (24 if pa.types.is_fixed_size_list(type) else 0)
    assert type_width(type) * 64 == values.nbytes - bitmap


def test_a_row_of_nothing_still_takes_a_byte():
    assert row_width(pa.schema([])) == 1
