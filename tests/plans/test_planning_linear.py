"""Planning work grows linearly: twice the plan takes about twice the function calls, never four times."""

from __future__ import annotations

import sys

import pytest

from headwater.ops.aggregate import Aggregate, Aggregation
from headwater.ops.expressions import col
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.map_batches import MapBatches
from headwater.ops.sample import Sample
from headwater.ops.sort import Sort, SortKey
from headwater.ops.union import Union
from headwater.planner.explain import explain_text
from headwater.planner.optimizer import optimize
from headwater.planner.options import PlanOptions
from headwater.planner.physical import build_plan
from headwater.planner.spec import check_physical


def calls(function) -> int:
    """Count the Python and C functions that a function calls."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def plan(roots):
    after, trace = optimize(roots, PlanOptions())
    built = build_plan(after, PlanOptions(), trace)
    check_physical(built)
    explain_text(roots, after, built)
    return built


def chain(rides, n, step):
    node = rides
    for i in range(n):
        node = step(node, i)
    return {"out": node}


SHAPES = {
    "filters": lambda r, z, n: chain(r, n, lambda x, i: Filter(x, col("fare") > i)),
    "functions": lambda r, z, n: chain(r, n, lambda x, i: MapBatches(x, len, x.schema)),
    "samples": lambda r, z, n: chain(r, n, lambda x, i: Sample(Filter(x, col("fare") > i), 0, 0.9, i, "s")),
    "joins": lambda r, z, n: chain(
        r, n, lambda x, i: Join(x, Filter(z, col("people") > i), ("zone",), ("zone",), "semi")
    ),
    "nested unions": lambda r, z, n: chain(r, n, lambda x, i: Union((x, Filter(r, col("fare") > i)))),
    "branches": lambda r, z, n: {"out": Union(tuple(Filter(r, col("fare") > i) for i in range(n)))},
    "outputs": lambda r, z, n: {f"out{i}": Filter(r, col("fare") > i) for i in range(n)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_operators_take_about_twice_the_work(rides, zones, shape):
    small, large = (calls(lambda n=n: plan(SHAPES[shape](rides, zones, n))) for n in (60, 120))
    assert large < 2.5 * small


def test_work_for_each_split_is_a_handful_of_calls(scan):
    def build(partitions):
        node = scan("big", {"k": "int64", "x": "double"}, partitions, split_rows=1000, split_bytes=1 << 20)
        totals = Aggregate(node, ("k",), (Aggregation("t", "sum", "x"),))
        return {"out": Sort(totals, (SortKey("t"),))}

    small, large = build(1_000), build(10_000)
    assert (calls(lambda: plan(large)) - calls(lambda: plan(small))) / 9_000 < 20


def test_two_thousand_operators_plan_without_deep_recursion(rides):
    deep = chain(rides, 2_000, lambda x, i: MapBatches(x, len, x.schema))
    built = plan(deep)
    assert sum(stage.label.count("map") for stage in built.stages) == 2_000
