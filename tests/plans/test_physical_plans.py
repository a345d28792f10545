"""Physical plans as text: where stages are cut, what is fused, which exchanges are made and spared."""

from __future__ import annotations

import pytest

from headwater.errors import PlanError
from headwater.ops.aggregate import Aggregate, Aggregation
from headwater.ops.distinct import Distinct
from headwater.ops.expressions import col, lit
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.limit import Limit
from headwater.ops.map_batches import MapBatches
from headwater.ops.node import Node
from headwater.ops.persist import Persist
from headwater.ops.project import Project
from headwater.ops.repartition import Repartition
from headwater.ops.sample import Sample
from headwater.ops.scan import Scan
from headwater.ops.sort import Sort, SortKey, TopK
from headwater.ops.union import Union
from headwater.ops.write import Write
from headwater.planner.options import PlanOptions
from headwater.planner.physical import build_plan
from headwater.planner.plan import BlockLeaf, ScanLeaf, UnionStep, all_leaves
from headwater.planner.spec import check_physical
from headwater.planner.stages import MAX_DEPTH

COUNT = Aggregation("n", "count", None)


@pytest.fixture
def plan():
    def build(node: Node | dict[str, Node], **options):
        roots = node if isinstance(node, dict) else {"out": node}
        built = build_plan(roots, PlanOptions(**options))
        check_physical(built)
        return built

    return build


def labels(built) -> list[str]:
    return [stage.label for stage in built.stages]


def decisions(built, rule: str) -> list[tuple[bool, str]]:
    return [(event.fired, event.detail) for event in built.trace if event.rule == rule]


def test_narrow_operators_are_fused_into_one_stage(plan, assert_stages, rides, with_columns):
    node = with_columns(Filter(rides, col("fare") > 0), rate=col("tip") / col("fare"))
    node = Sample(MapBatches(node, len, node.schema), 0, 0.5, 1, "s")
    assert_stages(
        plan(node),
        """
        Stage 0: scan rides > filter > project > map len > sample -> output 'out'
            16 partitions, about 1,666,667 rows, 199.1 MiB
            reads rides: 5 of 5 columns
        Exchanges: 0, about 0 B in all
        """,
    )


def test_an_aggregation_exchanges_states(plan, assert_stages, rides):
    node = Aggregate(rides, ("zone",), (COUNT, Aggregation("m", "mean", "fare")))
    assert_stages(
        plan(node, partition_bytes=32 << 20),
        """
        Stage 0: scan rides > partial aggregate
            16 partitions, about 2,500,000 rows, 66.8 MiB
            reads rides: 5 of 5 columns
            exchange: hash [zone] into 3
        Stage 1: final aggregate -> output 'out'
            3 partitions, about 2,500,000 rows, 47.7 MiB
            shuffle from stage 0
        Exchanges: 1, about 66.8 MiB in all
        """,
    )


def test_a_small_result_takes_one_partition_and_more_operators_stay_in_it(plan, rides):
    node = Sort(Aggregate(rides, ("zone",), (COUNT,)), (SortKey("n", True),))
    assert labels(plan(node, partition_bytes=1 << 30)) == [
        "scan rides > partial aggregate",
        "final aggregate > sort",
    ]


def test_sketches_of_many_large_groups_are_exchanged_into_many_partitions(plan, scan):
    node = scan(
        "trips", {"a": "int8", "b": "int8", "x": "float64"}, 16, split_bytes=1 << 30, split_rows=60_000_000
    )
    median = Aggregation("m", "approx_quantile", "x", (("accuracy", 0.01), ("q", 0.5)))
    counts = [plan(Aggregate(node, ("a", "b"), (of,))).stages[1].partitions for of in (COUNT, median)]
    assert counts == [1, 8]  # 66,049 groups of 640 buckets, 12 bytes each
    few = Aggregate(node, ("a",), (median,))
    assert plan(few).stages[1].partitions == 1


def test_a_global_aggregation_is_one_row_in_one_partition(plan, rides):
    built = plan(Aggregate(rides, (), (COUNT,)))
    assert [stage.partitions for stage in built.stages] == [16, 1]
    assert built.stages[1].estimate.rows == 1


def test_a_sort_of_a_scan_samples_its_keys_then_cuts_by_ranges_then_sorts(plan, assert_stages, rides):
    assert_stages(
        plan(Sort(rides, (SortKey("fare", True), SortKey("id"))), partition_bytes=256 << 20),
        """
        Stage 0: scan rides
            16 partitions, 10,000,000 rows, 409.6 MiB
            reads rides: 2 of 5 columns
            sample: [fare desc, id]
        Stage 1: scan rides
            16 partitions, 10,000,000 rows, 1.0 GiB
            reads rides: 5 of 5 columns
            exchange: range [fare desc, id] into 4, boundaries from stage 0
        Stage 2: sort -> output 'out'
            4 partitions, 10,000,000 rows, 1.0 GiB
            shuffle from stage 1
        Exchanges: 1, about 1.0 GiB in all
        """,
    )


def test_a_sort_by_most_of_a_row_keeps_blocks_while_it_samples(plan, assert_stages, rides):
    keys = tuple(SortKey(name) for name in rides.schema.names)
    assert_stages(
        plan(Sort(rides, keys), partition_bytes=256 << 20),
        f"""
        Stage 0: scan rides
            16 partitions, 10,000,000 rows, 1.0 GiB
            reads rides: 5 of 5 columns
            sample: [{", ".join(rides.schema.names)}]
        Stage 1: exchange
            16 partitions, 10,000,000 rows, 1.0 GiB
            narrow from stage 0
            exchange: range [{", ".join(rides.schema.names)}] into 4, boundaries from stage 0
        Stage 2: sort -> output 'out'
            4 partitions, 10,000,000 rows, 1.0 GiB
            shuffle from stage 1
        Exchanges: 1, about 1.0 GiB in all
        """,
    )


def test_two_sorts_of_a_shared_node_sample_their_own_keys(plan, rides):
    shared = Filter(rides, col("fare") > 0)
    built = plan(
        {"a": Sort(shared, (SortKey("id"),)), "b": Sort(shared, (SortKey("fare"),))}, partition_bytes=1 << 26
    )
    assert sorted(str(stage.sample[0]) for stage in built.stages if stage.sample) == ["fare", "id"]
    whole = built.stages[0]
    for stage in built.stages:
        if isinstance(stage.operator, BlockLeaf):  # rows are cut by either order from the same blocks
            assert stage.operator.stage == whole.id
    (other,) = [stage for stage in built.stages if stage.sample and stage is not whole]
    assert other.schema.names == [key.column for key in other.sample]  # and no more is written for the second


def test_limits_and_top_k_work_on_both_sides_of_one_gathering(plan, rides):
    assert labels(plan(Limit(rides, 5))) == ["scan rides > limit", "limit"]
    assert labels(plan(TopK(rides, (SortKey("id"),), 5))) == ["scan rides > top k", "top k"]


def test_a_limit_reads_only_the_splits_it_needs(plan, rides):
    bounded = Scan(rides.source, None, None, 1_000_000)
    built = plan(Limit(bounded, 1_000_000))
    assert built.stages[0].partitions == 2
    assert decisions(built, "split_pruning") == [(True, "Scan rides: 2 of 16 splits, by limit 1000000")]


def test_a_limit_reads_all_splits_where_rows_are_not_counted(plan, scan):
    node = scan("lines", {"x": "int64"}, 4, counted=False, split_bytes=100)
    assert plan(Limit(Scan(node.source, None, None, 3), 3)).stages[0].partitions == 4


def test_a_small_right_side_is_broadcast(plan, assert_stages, rides, zones):
    assert_stages(
        plan(Join(rides, zones, ("zone",), ("zone",), "left")),
        """
        Stage 0: scan zones
            1 partition, 260 rows, 7.8 KiB
            reads zones: 3 of 3 columns
        Stage 1: scan rides > left broadcast join -> output 'out'
            16 partitions, about 10,000,000 rows, 1.3 GiB
            reads rides: 5 of 5 columns
            broadcast from stage 0
        Exchanges: 0, about 7.8 KiB in all
        """,
    )


def test_a_large_right_side_is_shuffled_with_the_left(plan, assert_stages, rides, zones):
    built = plan(Join(zones, rides, ("zone",), ("zone",)), partition_bytes=512 << 20)
    assert_stages(
        built,
        """
        Stage 0: scan zones
            1 partition, 260 rows, 7.8 KiB
            reads zones: 3 of 3 columns
            exchange: hash [zone] into 3
        Stage 1: scan rides
            16 partitions, 10,000,000 rows, 1.0 GiB
            reads rides: 5 of 5 columns
            exchange: hash [zone] into 3
        Stage 2: join -> output 'out'
            3 partitions, about 10,000,000 rows, 1.2 GiB
            shuffle from stages 0, 1
        Exchanges: 2, about 1.0 GiB in all
        """,
    )
    ((made, why),) = decisions(built, "broadcast_join")
    assert not made
    assert "more than 32.0 MiB" in why
    assert "the left side would fit" in why


@pytest.mark.parametrize(("strategy", "exchanges"), [("shuffle", 2), ("broadcast", 0)])
def test_the_user_may_overrule_the_choice(plan, rides, zones, strategy, exchanges):
    built = plan(Join(rides, zones, ("zone",), ("zone",), strategy=strategy))
    assert sum(stage.exchange is not None for stage in built.stages) == exchanges


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_join_with_an_aggregation_by_its_key_moves_the_other_side_only(plan, rides, scan, side):
    totals = Aggregate(rides, ("zone",), (COUNT,))
    other = scan("other", {"zone": "int32", "x": "int64"}, 8, split_bytes=8 << 20, split_rows=1_000_000)
    inputs = (totals, other) if side == "left" else (other, totals)
    built = plan(Join(*inputs, ("zone",), ("zone",)), partition_bytes=10 << 20, broadcast_bytes=0)
    assert [s.exchange.partitioner.describe() for s in built.stages if s.exchange] == [
        "hash [zone] into 3",
        "hash [zone] into 3",
    ]
    assert decisions(built, "exchange_elimination") == [
        (True, f"Join inner on [zone]: the {side} side lies right")
    ]


def test_too_few_partitions_are_not_used_to_spare_an_exchange(plan, rides, scan):
    few = Repartition(rides, "hash", 2, ("zone",))
    other = scan("other", {"zone": "int32", "x": "int64"}, 8, split_bytes=64 << 20, split_rows=8_000_000)
    built = plan(Join(few, other, ("zone",), ("zone",)), partition_bytes=64 << 20, broadcast_bytes=0)
    assert [s.exchange.count for s in built.stages if s.exchange] == [2, 24, 24]
    assert not decisions(built, "exchange_elimination")


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_aggregation_is_exchanged_into_the_partitions_that_a_join_needs(plan, rides, scan, side):
    totals = Aggregate(rides, ("zone",), (COUNT,))
    renamed = Filter(Project(totals, (("area", col("zone")),)), col("area") > 0)
    other = scan("other", {"zone": "int32", "x": "int64"}, 8, split_bytes=64 << 20, split_rows=8_000_000)
    inputs, on = (
        ((renamed, other), ("area", "zone")) if side == "left" else ((other, renamed), ("zone", "area"))
    )
    built = plan(Join(*inputs, *((key,) for key in on)), partition_bytes=350 << 20, broadcast_bytes=0)
    assert [s.exchange.partitioner.describe() for s in built.stages if s.exchange] == [
        "hash [zone] into 2"
    ] * 2
    assert built.stages[-1].partitions == 2
    ((made, why),) = decisions(built, "exchange_elimination")
    assert made
    assert why.endswith("hash [zone] into 2, as is wanted above")


def test_an_aggregation_is_exchanged_into_the_partitions_that_are_asked_for(plan, assert_stages, rides):
    totals = Aggregate(rides, ("zone", "id"), (COUNT,))
    assert_stages(
        plan(Repartition(totals, "hash", 8, ("id", "zone")), partition_bytes=1 << 30),
        """
        Stage 0: scan rides > partial aggregate
            16 partitions, about 2,500,000 rows, 47.7 MiB
            reads rides: 5 of 5 columns
            exchange: hash [id, zone] into 8
        Stage 1: final aggregate -> output 'out'
            8 partitions, about 2,500,000 rows, 47.7 MiB
            shuffle from stage 0
        Exchanges: 1, about 47.7 MiB in all
        """,
    )
    built = plan(
        Repartition(Distinct(rides, ("zone", "id")), "hash", 8, ("id", "zone")), partition_bytes=1 << 30
    )
    assert [s.exchange.partitioner.describe() for s in built.stages if s.exchange] == [
        "hash [id, zone] into 8"
    ]


def test_an_iteration_over_persisted_and_partitioned_rows_has_one_exchange(plan, scan):
    columns = {"source": "int64", "target": "int64"}
    links = scan("links", columns, 8, split_bytes=64 << 20, split_rows=4_000_000)
    links = Persist(Repartition(links, "hash", 7, ("source",)))
    ranks: Node = scan(
        "ranks", {"page": "int64", "rank": "double"}, 1, split_bytes=8 << 20, split_rows=500_000
    )
    for _ in range(3):
        given = Join(links, ranks, ("source",), ("page",), strategy="shuffle")
        got = Aggregate(given, ("target",), (Aggregation("got", "sum", "rank"),))
        ranks = Project(got, (("page", col("target")), ("rank", lit(0.15) + col("got"))))
    built = plan(ranks, partition_bytes=64 << 20)
    exchanges = [s.exchange.partitioner.describe() for s in built.stages if s.exchange]
    iterations = [s for s in built.stages if s.label.startswith("join")]
    assert exchanges[:4] == ["hash [source] into 7", "hash [page] into 7", *["hash [target] into 7"] * 2]
    assert len(exchanges) == 5
    assert len(iterations) == 3
    assert {built.stages[s.parents[0]].storage is not None for s in iterations} == {True}


@pytest.mark.parametrize("what", ["limit", "sample", "read twice", "other keys", "global", "an output"])
def test_an_aggregation_stays_as_it_is_where_its_partitions_count(plan, rides, what):
    totals: Node = Aggregate(rides, () if what == "global" else ("zone",), (COUNT,))
    above: Node = Limit(totals, 10) if what == "limit" else totals
    above = Sample(totals, 0.0, 0.5, 1, "s") if what == "sample" else above
    keys = ("n",) if what in ("global", "other keys") else ("zone",)
    moved = Repartition(above, "hash", 8, keys)
    roots = {"out": moved, "as it is": totals} if what == "an output" else moved
    roots = Union((moved, Repartition(totals, "hash", 9, keys))) if what == "read twice" else roots
    built = plan(roots, partition_bytes=1 << 30)
    assert not decisions(built, "exchange_elimination")
    assert next(s.exchange.count for s in built.stages if s.exchange) == 1


def test_exchanges_are_spared_where_rows_lie_right(plan, assert_stages, rides):
    node = Repartition(rides, "hash", 8, ("zone",))
    joined = Join(Aggregate(node, ("zone", "id"), (COUNT,)), Distinct(node, ("zone",)), ("zone",), ("zone",))
    built = plan(joined)
    assert_stages(
        built,
        """
        Stage 0: scan rides
            16 partitions, 10,000,000 rows, 1.0 GiB
            reads rides: 5 of 5 columns
            exchange: hash [zone] into 8
        Stage 1: partial aggregate > final aggregate > join -> output 'out'
            8 partitions, about 5,000,000 rows, 564.7 MiB
            shuffle from stage 0
        Exchanges: 1, about 1.0 GiB in all
        """,
    )
    assert len(decisions(built, "exchange_elimination")) == 3


def test_a_projection_that_renames_the_key_keeps_what_is_known(plan, rides):
    totals = Aggregate(rides, ("zone",), (COUNT,))
    renamed = Project(totals, (("area", col("zone")), ("n", col("n"))))
    spared = plan(Aggregate(renamed, ("area",), (Aggregation("t", "sum", "n"),)), partition_bytes=1 << 20)
    lost = plan(
        Aggregate(Project(totals, (("area", col("zone") + 1), ("n", col("n")))), ("area",), (COUNT,)),
        partition_bytes=1 << 20,
    )
    assert [len(spared.stages), len(lost.stages)] == [2, 3]


def test_no_exchange_is_spared_by_a_wider_hash(plan, rides):
    node = Repartition(rides, "hash", 8, ("zone", "id"))
    built = plan(Aggregate(node, ("zone",), (COUNT,)), partition_bytes=1 << 20)
    assert not decisions(built, "exchange_elimination")
    assert len(built.stages) == 3


def test_a_rule_of_the_physical_plan_can_be_disabled(plan, rides):
    node = Aggregate(Repartition(rides, "hash", 8, ("zone",)), ("zone",), (COUNT,))
    built = plan(node, disabled_rules=frozenset({"exchange_elimination", "map_side_combine"}))
    assert labels(built) == ["scan rides", "exchange", "partial aggregate > final aggregate"]


def test_a_union_is_part_of_the_stage(plan, assert_stages, rides, scan):
    other = scan("other", rides.schema.empty_table(), 3)
    node = Filter(Union((rides, Filter(other, col("id") > 1))), col("fare") > 0)
    built = plan(node)
    (stage,) = built.stages
    assert stage.label == "union of 2 (scan rides | scan other > filter) > filter"
    assert stage.partitions == 19
    union = stage.operator.inputs[0]
    assert isinstance(union, UnionStep)
    assert union.locate(15) == (union.branches[0][0], 15)
    assert union.locate(16) == (union.branches[1][0], 0)
    assert [len(stage.splits[leaf.slot]) for leaf in all_leaves(stage.operator)] == [16, 3]


def test_a_union_of_a_node_with_itself_reads_its_blocks_twice(plan, rides):
    shared = Filter(rides, col("fare") > 0)
    built = plan(Union((shared, shared)))
    assert [stage.partitions for stage in built.stages] == [16, 32]
    assert [leaf.stage for leaf in all_leaves(built.stages[1].operator)] == [0, 0]


def test_what_several_outputs_share_is_computed_once(plan, assert_stages, rides):
    shared = Filter(rides, col("fare") > 0)
    built = plan({"rows": shared, "count": Aggregate(shared, (), (COUNT,)), "again": shared})
    assert_stages(
        built,
        """
        Stage 0: scan rides > filter -> output 'rows', 'again'
            16 partitions, about 3,333,333 rows, 341.3 MiB
            reads rides: 5 of 5 columns
        Stage 1: partial aggregate
            16 partitions, 16 rows, 128 B
            narrow from stage 0
            exchange: single
        Stage 2: final aggregate -> output 'count'
            1 partition, 1 row, 8 B
            shuffle from stage 1
        Exchanges: 1, about 128 B in all
        """,
    )


def test_equal_exchanges_of_a_shared_node_are_made_once(plan, rides):
    shared = Filter(rides, col("fare") > 0)
    built = plan(Join(shared, shared, ("id",), ("id",), strategy="shuffle"))
    assert labels(built) == ["scan rides > filter", "exchange", "join"]


def test_an_unfiltered_scan_of_a_binary_format_is_read_again_and_text_is_not(plan, rides, scan):
    def both(node):
        return {"a": Aggregate(node, (), (COUNT,)), "b": Aggregate(node, ("zone",), (COUNT,))}

    again = plan(both(rides))
    assert sum(isinstance(leaf, ScanLeaf) for s in again.stages for leaf in all_leaves(s.operator)) == 2
    once = plan(both(scan("lines", {"zone": "int32"}, 4, kind="csv")))
    assert sum(isinstance(leaf, ScanLeaf) for s in once.stages for leaf in all_leaves(s.operator)) == 1
    assert sum(isinstance(leaf, BlockLeaf) for s in once.stages for leaf in all_leaves(s.operator)) == 2


def test_repartitions(plan, rides):
    def exchange(node, **options):
        return [s.exchange.partitioner.describe() for s in plan(node, **options).stages if s.exchange]

    assert exchange(Repartition(rides, "count", 5)) == ["round robin into 5"]
    assert exchange(Repartition(rides, "count", 1)) == ["single"]
    assert exchange(Repartition(rides, "hash", None, ("id",)), partition_bytes=256 << 20) == [
        "hash [id] into 4"
    ]
    assert exchange(Repartition(rides, "range", 6, ("id",), (SortKey("id"),))) == ["range [id] into 6"]
    twice = Repartition(Repartition(rides, "hash", 8, ("id",)), "hash", 8, ("id",))
    assert exchange(twice) == ["hash [id] into 8"]


def test_a_sink_ends_the_last_stage_and_one_file_gathers(plan, rides, sink):
    (many,) = plan(Write(Filter(rides, col("fare") > 0), sink())).stages
    assert (many.label, many.partitions, many.sink is not None) == (
        "scan rides > filter > write fake",
        16,
        True,
    )
    first, last = plan(Write(rides, sink(single=True))).stages
    assert first.exchange is not None
    assert (last.partitions, last.sink is not None) == (1, True)


def test_written_and_counted_rows_are_computed_once(plan, rides, sink):
    shared = Filter(rides, col("fare") > 0)
    built = plan({"files": Write(shared, sink()), "count": Aggregate(shared, (), (COUNT,))})
    assert labels(built) == ["scan rides > filter", "write fake", "partial aggregate", "final aggregate"]


def test_a_scan_of_which_nothing_is_left_has_one_empty_partition(plan, rides):
    nothing = Scan(rides.source, None, lit(False))
    built = plan(Aggregate(nothing, (), (COUNT,)))
    assert [stage.partitions for stage in built.stages] == [1]
    assert built.stages[0].splits[0][0].rows == 0


def test_long_chains_are_cut_so_that_programs_stay_shallow(plan, rides):
    node: Node = rides
    for _ in range(3 * MAX_DEPTH):
        node = MapBatches(node, len, node.schema)
    built = plan(node)
    assert [stage.label.count("map") for stage in built.stages] == [MAX_DEPTH] * 3


def test_partition_counts_follow_bytes_and_stay_within_bounds(plan, rides):
    def count(**options):
        return plan(Repartition(rides, "hash", None, ("id",)), **options).stages[-1].partitions

    assert count(partition_bytes=2 << 30) == 1
    assert count(partition_bytes=100 << 20) == 11
    assert count(partition_bytes=1, max_partitions=50) == 50


def test_stage_keys_name_content(plan, rides, zones):
    def keys(node, **options):
        return [stage.key for stage in plan(node, **options).stages]

    node = Aggregate(rides, ("zone",), (COUNT,))
    assert keys(node) == keys(Aggregate(rides, ("zone",), (COUNT,)))
    assert set(keys(node)).isdisjoint(keys(Aggregate(rides, ("id",), (COUNT,))))
    assert set(keys(node, partition_bytes=1 << 20)).isdisjoint(keys(node, partition_bytes=2 << 20))


def test_an_unknown_node_is_a_plan_error(plan, rides):
    class Strange(Limit):
        pass

    with pytest.raises(PlanError, match="no physical operator for Strange"):
        plan(Strange(rides, 3))
