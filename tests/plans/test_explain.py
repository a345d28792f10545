"""What `explain` shows: four sections, shared parts once, each stage with sizes, inputs and exchange."""

from __future__ import annotations

import json

import pytest

from headwater.ops.aggregate import Aggregate, Aggregation
from headwater.ops.expressions import col
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.limit import Limit
from headwater.ops.map_batches import MapBatches
from headwater.ops.union import Union
from headwater.planner.explain import explain_dict, explain_json, explain_text
from headwater.planner.optimizer import optimize
from headwater.planner.options import PlanOptions
from headwater.planner.physical import build_plan

EXPECTED = """\
== Logical plan ==
rows:
  Limit 5
    [1] Join inner on [zone]
      Filter col('fare') > 0
        Scan rides
      Scan zones
count:
  Aggregate n=count()
    [1] Join inner on [zone] (see above)

== Optimized plan ==
rows:
  Limit 5
    [1] Join inner on [zone]
      Scan rides where col('fare') > 0
      Scan zones
count:
  Aggregate n=count()
    [1] Join inner on [zone] (see above)

== Rules ==
+ predicate_pushdown: col('fare') > 0: into Scan rides
- limit_pushdown: Limit 5: Join inner on [zone] is shared
+ common_subplans: Join inner on [zone]: computed once for 2 consumers
+ broadcast_join: Join inner on [zone]: the right side is about 7.8 KiB, at most 32.0 MiB
+ map_side_combine: Aggregate n=count(): states are exchanged in place of rows

== Physical plan ==
Stage 0: scan zones
    1 partition, 260 rows, 7.8 KiB
    reads zones: 3 of 3 columns
Stage 1: filtered scan rides > broadcast join
    16 partitions, about 3,333,333 rows, 426.9 MiB
    reads rides: 5 of 5 columns where col('fare') > 0
    broadcast from stage 0
Stage 2: limit
    16 partitions, about 80 rows, 10.5 KiB
    narrow from stage 1
    exchange: single
Stage 3: limit -> output 'rows'
    1 partition, about 5 rows, 671 B
    shuffle from stage 2
Stage 4: partial aggregate
    16 partitions, 16 rows, 128 B
    narrow from stage 1
    exchange: single
Stage 5: final aggregate -> output 'count'
    1 partition, 1 row, 8 B
    shuffle from stage 4
Exchanges: 2, about 18.4 KiB in all
"""


@pytest.fixture
def explained(rides, zones):
    joined = Join(Filter(rides, col("fare") > 0), zones, ("zone",), ("zone",))
    roots = {"rows": Limit(joined, 5), "count": Aggregate(joined, (), (Aggregation("n", "count", None),))}
    after, trace = optimize(roots, PlanOptions())
    return roots, after, build_plan(after, PlanOptions(), trace)


def test_the_whole_text(explained):
    assert explain_text(*explained) == EXPECTED


def test_the_same_as_data(explained):
    data = json.loads(explain_json(*explained))
    assert data == explain_dict(*explained)
    assert data["outputs"] == {"rows": 3, "count": 5}
    assert data["stages"][1]["reads"] == {"broadcast": [0]}
    assert data["stages"][2]["exchange"] == "single"
    assert {
        "rule": "predicate_pushdown",
        "fired": True,
        "detail": "col('fare') > 0: into Scan rides",
    } in data["rules"]


def test_plans_of_thousands_of_operators_and_branches_can_be_shown(rides):
    node = rides
    for _ in range(2000):
        node = MapBatches(node, len, node.schema)
    many = Union((node, *(Filter(rides, col("id") > i) for i in range(1000))))
    plan = build_plan({"out": many}, PlanOptions())
    text = explain_text({"out": many}, {"out": many}, plan)
    assert text.count("MapBatches") == 4000
    assert "reads 992 more sources" in text
