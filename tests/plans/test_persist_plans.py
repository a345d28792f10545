"""Persisted subplans: planned alone, so that their stage has one key whoever reads it, and read narrowly."""

from __future__ import annotations

import pyarrow as pa
import pytest

from headwater.errors import ParameterError
from headwater.ops.aggregate import Aggregate, Aggregation
from headwater.ops.expressions import col
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.limit import Limit
from headwater.ops.node import Node
from headwater.ops.persist import Persist
from headwater.ops.project import Project
from headwater.ops.repartition import Repartition
from headwater.ops.sample import Sample
from headwater.ops.scan import Scan
from headwater.ops.sort import Sort, SortKey
from headwater.ops.union import Union
from headwater.ops.write import Write
from headwater.planner import spec
from headwater.planner.explain import explain_dict, explain_text
from headwater.planner.optimizer import PHYSICAL_RULES, RULE_NAMES, optimize
from headwater.planner.options import PlanOptions
from headwater.planner.physical import build_plan
from headwater.planner.plan import PhysicalPlan, Stage, Storage, all_leaves

COUNT = Aggregation("n", "count", None)
EVERY_RULE = PlanOptions()
NO_RULE = PlanOptions(disabled_rules=frozenset(RULE_NAMES + PHYSICAL_RULES))
MANY_PARTITIONS = PlanOptions(partition_bytes=1_000, broadcast_bytes=0)
OPTIONS = pytest.mark.parametrize(
    "options", [EVERY_RULE, NO_RULE, MANY_PARTITIONS], ids=["rules", "none", "small"]
)


def planned(roots: Node | dict[str, Node], options: PlanOptions = EVERY_RULE) -> PhysicalPlan:
    roots = roots if isinstance(roots, dict) else {"out": roots}
    optimized, trace = optimize(roots, options, spec.check_rewrite)
    plan = build_plan(optimized, options, trace)
    spec.check_physical(plan)
    return plan


def kept(plan: PhysicalPlan) -> list[Stage]:
    return [stage for stage in plan.stages if stage.storage is not None]


def by_zone(node: Node) -> Aggregate:
    return Aggregate(node, ("zone",), (COUNT,))


@pytest.fixture
def clean(rides: Scan) -> Filter:
    return Filter(
        Project(rides, (("zone", col("zone")), ("id", col("id")), ("rate", col("tip") / col("fare")))),
        col("rate") > 0.1,
    )


def test_a_stage_is_cut_at_it_and_read_narrowly(clean):
    plan = planned(by_zone(Persist(clean, "memory", 2)))
    (stage,) = kept(plan)
    assert stage.storage == Storage("memory", 2)
    assert stage.exchange is None
    assert stage.sample == ()
    reader = plan.stages[stage.id + 1]
    assert reader.parents == (stage.id,)
    assert reader.partitions == stage.partitions == 16


def test_nothing_is_pushed_into_it(clean):
    persisted = Persist(clean)
    alone = planned(persisted)
    cut = planned(Limit(Filter(Project(persisted, (("id", col("id")),)), col("id") > 10_000), 3))
    assert kept(cut)[0].schema == clean.schema
    assert [str(leaf.predicate) for leaf in all_leaves(kept(cut)[0].operator)] == [
        str(leaf.predicate) for leaf in all_leaves(kept(alone)[0].operator)
    ]
    assert all(leaf.limit is None for leaf in all_leaves(kept(cut)[0].operator))


@OPTIONS
def test_its_key_is_the_same_in_every_plan(options, clean, zones, scan, sink):
    text = scan("notes", {"zone": "int32", "text": "string"}, 4, kind="csv", split_bytes=1_000, split_rows=10)
    joined = Join(clean, Filter(text, col("text") == "x"), ("zone",), ("zone",), "left", "_right", "auto")
    persisted = Persist(joined)
    alone = kept(planned(persisted, options))[0]
    readers: list[Node | dict[str, Node]] = [
        Filter(persisted, col("id") > 3),
        by_zone(persisted),
        Limit(Project(persisted, (("text", col("text")),)), 5),
        Sort(persisted, (SortKey("id"),)),
        Repartition(persisted, "range", 4, (), (SortKey("id"),)),
        Sample(persisted, 0.0, 0.1, 1, "stream"),
        Join(persisted, zones, ("zone",), ("zone",), "inner", "_2", "auto"),
        Join(zones, persisted, ("zone",), ("zone",), "inner", "_2", "auto"),
        Union((persisted, persisted)),
        Write(persisted, sink()),
        Persist(by_zone(persisted)),
        Persist(joined, "memory", 3),
        # others that read parts of what is below it, too
        {"a": by_zone(persisted), "b": by_zone(text), "c": Limit(clean, 1)},
        {"a": persisted, "b": joined},
        {"a": Sample(clean, 0.0, 0.5, 1, "stream"), "b": Filter(persisted, col("zone") == 2)},
    ]
    for reader in readers:
        plan = planned(reader, options)
        assert alone.key in {stage.key for stage in kept(plan)}, reader
        again = next(stage for stage in kept(plan) if stage.key == alone.key)
        assert (again.partitions, again.schema) == (alone.partitions, alone.schema)
        assert again.sample == () or "key_sampling" in options.disabled_rules


def test_other_rows_have_another_key(clean):
    keys = {kept(planned(Persist(Filter(clean, col("id") > n))))[0].key for n in range(3)}
    assert len(keys) == 3


def test_how_it_is_kept_changes_no_key(clean):
    for persisted in (Persist(clean), Persist(clean, "memory"), Persist(clean, "disk", 4)):
        plan = planned(by_zone(persisted))
        assert [stage.key for stage in plan.stages] == [
            s.key for s in planned(by_zone(Persist(clean))).stages
        ]


@pytest.mark.parametrize("swap", [False, True])
def test_of_two_wishes_for_the_same_rows_the_stronger_counts(clean, swap):
    roots = {"a": by_zone(Persist(clean, "disk", 3)), "b": Limit(Persist(clean, "memory", 2), 4)}
    plan = planned(dict(reversed(roots.items())) if swap else roots)
    assert [stage.storage for stage in kept(plan)] == [Storage("memory", 3)]


def test_persisting_what_is_persisted_keeps_it_once(clean):
    plan = planned(Persist(Persist(clean, "memory"), "disk", 2))
    assert [stage.storage for stage in plan.stages] == [Storage("memory", 2)]


def test_a_bare_scan_and_an_exchange_make_a_stage_of_their_own(rides):
    (stage,) = planned(Persist(rides)).stages
    assert stage.storage is not None
    assert stage.partitions == 16
    moved, stage = planned(Persist(Repartition(rides, "hash", 8, ("zone",)))).stages
    assert moved.exchange is not None
    assert moved.storage is None
    assert stage.storage is not None
    assert stage.partitions == 8
    assert stage.exchange is None


def test_how_its_rows_lie_is_remembered(rides):
    hashed = Persist(Repartition(rides, "hash", 8, ("zone",)))
    assert sum(stage.exchange is not None for stage in planned(by_zone(hashed)).stages) == 1


def test_it_is_sorted_by_a_pass_over_its_keys_rather_than_a_copy(rides):
    plan = planned(
        Sort(Filter(Persist(rides), col("fare") > 1), (SortKey("tip"),)), PlanOptions(partition_bytes=1 << 24)
    )
    stage, sampled, cut = plan.stages[:3]
    assert stage.storage is not None
    assert stage.sample == ()
    assert sampled.sample
    assert sampled.schema.names == ["tip"]
    assert sampled.parents == (stage.id,)
    assert cut.exchange.boundaries_from == sampled.id
    assert stage.id in cut.parents


def test_a_sample_of_it_draws_from_the_same_rows(execute, scan):
    table = pa.table({"id": range(1000), "zone": pa.array([i % 7 for i in range(1000)], pa.int32())})
    rows = Filter(scan("rows", table, 5), col("zone") > 1)
    drawn = execute(planned(Sample(rows, 0.0, 0.1, 3, "s"))).output("out")
    again = execute(planned(Sample(Persist(rows), 0.0, 0.1, 3, "s"))).output("out")
    assert 0 < drawn.num_rows < 200
    assert again.equals(drawn)


@OPTIONS
def test_the_rows_are_the_same_with_and_without_it(options, execute, scan):
    table = pa.table({"id": range(500), "zone": pa.array([i % 13 for i in range(500)], pa.int32())})
    names = pa.table({"zone": pa.array(range(5, 40), pa.int32()), "name": [f"z{i}" for i in range(35)]})
    rows, zones = scan("rows", table, 5), scan("names", names, 3)

    def pipeline(keep) -> Node:
        matched = keep(
            Join(keep(Filter(rows, col("id") > 20)), zones, ("zone",), ("zone",), "left", "_r", "auto")
        )
        counted = keep(Aggregate(matched, ("name",), (COUNT,)))
        return Sort(Union((counted, counted)), (SortKey("n"), SortKey("name")))

    plain = execute(planned(pipeline(lambda node: node), options)).output("out")
    persisted = execute(planned(pipeline(Persist), options)).output("out")
    assert plain.num_rows > 0
    assert persisted.equals(plain)


def test_a_long_chain_is_planned_without_recursion(rides):
    node: Node = rides
    for n in range(1000):
        node = Persist(Filter(node, col("id") > n))
    optimized, trace = optimize({"out": node}, EVERY_RULE)
    assert len(kept(build_plan(optimized, EVERY_RULE, trace))) == 1000


def test_explain_tells(clean):
    roots = {"out": by_zone(Persist(clean, "disk", 2))}
    optimized, trace = optimize(roots, EVERY_RULE)
    plan = build_plan(optimized, EVERY_RULE, trace)
    text = explain_text(roots, optimized, plan)
    assert "Persist disk, 2 replicas" in text
    assert "kept: disk, 2 replicas" in text
    assert "Sealed" not in text
    stages = explain_dict(roots, optimized, plan)["stages"]
    assert next(stage["kept"] for stage in stages) == {"level": "disk", "replicas": 2}
    assert all(stage["kept"] is None for stage in stages[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("disc", 1), "write 'disk' or 'memory'. Did you mean 'disk'"),
        (("disk", 0), "2 for a copy on another one"),
        (("disk", True), "whole number"),
        (("disk", "2"), "whole number"),
        ((3, 1), "'disk' or 'memory'"),
    ],
)
def test_wrong_wishes_are_refused(rides, arguments, message):
    with pytest.raises(ParameterError, match=message):
        Persist(rides, *arguments)
