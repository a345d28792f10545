"""Sizes: how many rows and bytes each node is expected to give, exact where metadata tells.

Estimates decide numbers of partitions and which joins are broadcast. They depend on the data's
metadata and the plan alone, so two runs plan alike. Where nothing is known they err upwards: a
partition too many costs little, one too large costs memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow as pa

from ..ops.aggregate import Aggregate, shared_states
from ..ops.distinct import Distinct
from ..ops.filter import Filter
from ..ops.join import Join
from ..ops.limit import Limit
from ..ops.map_batches import MapBatches
from ..ops.node import Node
from ..ops.project import Project
from ..ops.quantiles import ACCURACY, SKETCH, expected_bytes
from ..ops.sample import Sample
from ..ops.scan import Scan
from ..ops.sort import TopK
from ..ops.source import Split
from ..ops.transform import Transform
from ..ops.union import Union
from .plan import Estimate
from .selectivity import selectivity
from .widths import row_width

#: groups of an aggregation, and distinct rows, for each input row, where key types don't bound them
GROUPS_PER_ROW = 0.25
DISTINCT_PER_ROW = 0.5
#: left rows of a semi or anti join that stay
MATCHING = 0.5


def estimate(node: Node, inputs: Sequence[Estimate], splits: Sequence[Split] = ()) -> Estimate:
    """Estimate what a node gives.

    Args:
        node: the operator.
        inputs: the estimates of its inputs.
        splits: for a Scan, the splits it reads.

    Returns:
        Expected rows and bytes in memory.
    """
    if isinstance(node, Scan):
        return _scan(node, splits)
    if isinstance(node, Union):
        rows, size = sum(e.rows for e in inputs), sum(e.bytes for e in inputs)
        return Estimate(rows, size, all(e.exact for e in inputs))
    if isinstance(node, Join):
        return _join(node, *inputs)
    if isinstance(node, Aggregate):
        return _aggregate(node, inputs[0])
    below = inputs[0]
    if isinstance(node, Filter):
        return _scaled(below, selectivity(node.predicate))
    if isinstance(node, Project | MapBatches | Transform):
        return _reshaped(node, below)
    if isinstance(node, Sample):
        return _scaled(below, node.high - node.low)
    if isinstance(node, Limit | TopK):
        return _at_most(below, node.count)
    if isinstance(node, Distinct):
        schema = pa.schema([node.input.schema.field(name) for name in node.key_columns])
        rows = min(below.rows, max(1.0, below.rows * DISTINCT_PER_ROW), _combinations(schema))
        return _scaled(below, rows / below.rows if below.rows else 1.0)
    return below


def state_bytes(node: Aggregate, states: pa.Schema, groups: float, rows: float) -> float:
    """Return how many bytes the states of an aggregation take.

    Args:
        node: the aggregation.
        states: the schema of its states, one for each group.
        groups: how many.
        rows: that are in all of them together.

    Returns:
        Expected bytes; a sketch of quantiles grows with its group.
    """
    sketches = [a for a in shared_states(node.aggregations)[0] if a.function == "approx_quantile"]
    fixed = pa.schema([field for field in states if field.type != SKETCH])
    per_group = rows / groups if groups else 0.0
    size = row_width(fixed)
    for sketch in sketches:
        size += expected_bytes(per_group, dict(sketch.options).get("accuracy", ACCURACY))
    return groups * size


def partition_count(size: float, partition_bytes: int, most: int) -> int:
    """Return into how many partitions an exchange of so many bytes cuts them.

    Example:
        >>> partition_count(0, 64, 100), partition_count(65, 64, 100), partition_count(1e9, 64, 100)
        (1, 2, 100)
    """
    return max(1, min(most, math.ceil(size / partition_bytes)))


def _scan(node: Scan, splits: Sequence[Split]) -> Estimate:
    share = node.source.column_bytes(node.schema.names)
    size = sum(split.bytes for split in splits) * share
    known = [split.rows for split in splits if split.rows is not None]
    exact = len(known) == len(splits)
    rows = float(sum(known))
    if not exact:
        width = row_width(node.source.schema)
        rows += sum(split.bytes for split in splits if split.rows is None) / width
    result = Estimate(rows, size, exact)
    if node.predicate is not None:
        result = _scaled(result, selectivity(node.predicate))
    if node.limit is not None:
        result = _at_most(result, node.limit * max(1, len(splits)), exact=False)
    return result


def _join(node: Join, left: Estimate, right: Estimate) -> Estimate:
    if node.how in ("semi", "anti"):
        return _scaled(left, MATCHING)
    rows = (
        max(left.rows, right.rows) if left.rows and right.rows else 0.0
    )  # a key of one side refers to the other
    if node.how == "left":
        rows = max(rows, left.rows)
    width = _row_bytes(left, node.left.schema)
    added = pa.schema([node.right.schema.field(name) for name, _ in node.right_columns])
    if len(added):
        width += _row_bytes(right, node.right.schema) * row_width(added) / row_width(node.right.schema)
    return Estimate(rows, rows * width)


def _aggregate(node: Aggregate, below: Estimate) -> Estimate:
    if not node.keys:
        return Estimate(1, row_width(node.schema), exact=True)
    keys = pa.schema([node.schema.field(name) for name in node.keys])
    rows = min(below.rows, max(1.0, below.rows * GROUPS_PER_ROW), _combinations(keys))
    return Estimate(rows, rows * row_width(node.schema))


def _reshaped(node: Node, below: Estimate) -> Estimate:
    """The same rows with other columns: bytes in proportion to the types' widths."""
    ratio = row_width(node.schema) / row_width(node.inputs[0].schema)
    return Estimate(below.rows, below.bytes * ratio, below.exact and not isinstance(node, MapBatches))


def _scaled(below: Estimate, share: float) -> Estimate:
    return below if share == 1 else Estimate(below.rows * share, below.bytes * share)


def _at_most(below: Estimate, count: int, exact: bool | None = None) -> Estimate:
    if below.rows <= count:
        return below
    size = below.bytes * count / below.rows
    return Estimate(count, size, below.exact if exact is None else exact)


def _row_bytes(below: Estimate, schema: pa.Schema) -> float:
    return below.bytes / below.rows if below.rows else row_width(schema)


def _combinations(schema: pa.Schema) -> float:
    """How many different rows the types allow: bounded for booleans and bytes only."""
    total = 1.0
    for field in schema:
        if pa.types.is_boolean(field.type):
            total *= 3
        elif pa.types.is_int8(field.type) or pa.types.is_uint8(field.type):
            total *= 257
        else:
            return math.inf
    return total
