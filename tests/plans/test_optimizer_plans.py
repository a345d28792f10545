"""The whole optimizer: batches together, legal after each; sharing; sampling apart from its consumers."""

from __future__ import annotations

import pytest

from headwater.errors import ParameterError, PlanError
from headwater.ops.aggregate import Aggregate, Aggregation
from headwater.ops.expressions import col
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.limit import Limit
from headwater.ops.node import Node, plan_text
from headwater.ops.project import Project
from headwater.ops.sample import Sample
from headwater.ops.scan import Scan
from headwater.ops.sort import Sort, SortKey
from headwater.ops.write import Write
from headwater.planner import spec
from headwater.planner.optimizer import PHYSICAL_RULES, RULE_NAMES, optimize
from headwater.planner.options import PlanOptions
from headwater.planner.physical import build_plan
from headwater.planner.rewrite import walk

COUNT = Aggregation("n", "count", None)


def optimized(roots: Node | dict[str, Node], **options) -> dict[str, Node]:
    roots = roots if isinstance(roots, dict) else {"out": roots}
    return optimize(roots, PlanOptions(**options), spec.check_rewrite)[0]


@pytest.fixture
def report(rides, zones, select, with_columns) -> Node:
    """A filter and a projection over a join, grouped, sorted, limited: every batch has work."""
    joined = with_columns(Join(rides, zones, ("zone",), ("zone",), "left"), rate=col("tip") / col("fare"))
    kept = Filter(Filter(joined, col("fare") > 0), col("people") > 1000)
    means = Aggregate(select(kept, "name", "rate", "id"), ("name",), (Aggregation("m", "mean", "rate"),))
    return Limit(Sort(select(means, "m", "name"), (SortKey("m", True),)), 5)


def test_all_rules_together(report):
    assert plan_text(optimized(report)["out"]) == (
        "TopK 5 by [m desc]\n"
        "  Project m, name\n"
        "    Aggregate by [name] m=mean(rate)\n"
        "      Project name, rate=col('tip') / col('fare')\n"
        "        Join inner on [zone]\n"
        "          Scan rides columns=[zone, fare, tip] where col('fare') > 0\n"
        "          Scan zones columns=[zone, name] where col('people') > 1000"
    )


def test_optimizing_twice_changes_nothing_more(report):
    once = optimized(report)
    assert plan_text(optimized(once)["out"]) == plan_text(once["out"])


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_each_rule_can_be_disabled(report, rule):
    _, events = optimize({"out": report}, PlanOptions(disabled_rules=frozenset({rule})), spec.check_rewrite)
    assert rule not in {event.rule for event in events}


def test_with_every_rule_disabled_the_plan_stays_as_declared(report):
    disabled = frozenset(RULE_NAMES + PHYSICAL_RULES)
    assert plan_text(optimized(report, disabled_rules=disabled)["out"]) == plan_text(report)


def test_an_unknown_rule_name_is_refused_with_near_matches():
    with pytest.raises(ParameterError, match="Did you mean 'predicate_pushdown'"):
        optimize({}, PlanOptions(disabled_rules=frozenset({"predicate_push_down"})))


def test_equal_parts_of_several_outputs_are_one_object(rides, zones):
    def joined():
        return Filter(Join(rides, zones, ("zone",), ("zone",)), col("fare") < col("people"))

    roots = optimized(
        {"rows": Aggregate(joined(), ("name",), (COUNT,)), "all": Aggregate(joined(), (), (COUNT,))}
    )
    assert sum(isinstance(node, Join) for node in walk(roots)) == 1


# --- sampling ---


@pytest.fixture
def split(rides, zones):
    """Train and test parts of a join, as `Dataset.split` declares them."""
    clean = Filter(Join(rides, zones, ("zone",), ("zone",)), (col("fare") > 0) & (col("people") > 9))
    return clean, Sample(clean, 0, 0.8, 7, clean.key), Sample(clean, 0.8, 1, 7, clean.key)


def below_samples(roots: dict[str, Node]) -> set[str]:
    return {plan_text(node.input) for node in walk(roots) if isinstance(node, Sample)}


def test_a_sample_draws_from_the_same_plan_whoever_else_reads_its_input(split, select):
    clean, train, test = split
    alone = optimized({"train": Aggregate(train, (), (COUNT,))})
    together = optimized(
        {
            "train": select(Filter(train, col("tip") > 1), "tip"),
            "test": Sort(test, (SortKey("id"),)),
            "clean": Aggregate(clean, ("name",), (COUNT,)),
            "joined": Aggregate(clean.input, (), (COUNT,)),
        }
    )
    assert len(below_samples(alone)) == 1
    assert below_samples(alone) == below_samples(together)


def test_what_a_sample_draws_from_is_optimized_as_any_plan(split):
    _, train, _ = split
    (text,) = below_samples(optimized({"train": train}))
    assert "Scan rides where col('fare') > 0" in text
    assert "Scan zones where col('people') > 9" in text


def test_samples_of_samples_and_numbers_of_partitions(split, select):
    _, train, _ = split
    inner = Sample(Filter(train, col("tip") > 1), 0, 0.5, 3, train.key)
    wide = optimized({"out": inner}, partition_bytes=64 << 20, broadcast_bytes=0)
    narrow = optimized({"out": select(inner, "id")}, partition_bytes=64 << 20, broadcast_bytes=0)
    assert below_samples(wide) == below_samples(narrow)
    counts = [
        [s.partitions for s in build_plan(plan, PlanOptions(64 << 20, 0)).stages] for plan in (wide, narrow)
    ]
    assert counts[0] == counts[1]


def test_a_filter_stays_above_a_sample_and_columns_are_pruned_below_one_of_a_scan(rides, select):
    node = select(Filter(Sample(rides, 0, 0.5, 1, rides.key), col("fare") > 1), "id")
    assert plan_text(optimized(node)["out"]) == (
        "Project id\n"
        "  Filter col('fare') > 1\n"
        "    Sample 0 <= u < 0.5, seed=1\n"
        "      Scan rides columns=[id, fare]"
    )


def test_a_limit_above_a_sample_does_not_cut_the_scan(rides):
    (scan,) = [n for n in walk(optimized(Limit(Sample(rides, 0, 0.5, 1, "s"), 5))) if isinstance(n, Scan)]
    assert scan.limit is None


# --- the specification ---


def test_the_specification_refuses_another_schema(rides, select):
    with pytest.raises(PlanError, match="has the schema"):
        spec.check_rewrite("test", {"out": rides}, {"out": select(rides, "id")})


def test_the_specification_refuses_a_write_that_is_read(rides, sink):
    written = Write(rides, sink())
    with pytest.raises(PlanError, match="an output only"):
        spec.check({"out": Project(written, (("path", col("path")),))})


def test_the_specification_refuses_a_sample_that_draws_other_numbers(rides):
    before, after = Sample(rides, 0, 0.5, 1, "s"), Sample(rides, 0, 0.5, 2, "s")
    with pytest.raises(PlanError, match="not declared"):
        spec.check_rewrite("test", {"out": before}, {"out": after})
