"""Estimates: exact where metadata tells, sensible in direction elsewhere."""

from __future__ import annotations

import pyarrow as pa
import pytest

from headwater.ops.aggregate import Aggregate, Aggregation
from headwater.ops.distinct import Distinct
from headwater.ops.expressions import col, lit
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.limit import Limit
from headwater.ops.node import Node
from headwater.ops.sample import Sample
from headwater.ops.scan import Scan
from headwater.ops.union import Union
from headwater.planner.plan import Estimate
from headwater.planner.selectivity import selectivity
from headwater.planner.sizes import estimate
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
