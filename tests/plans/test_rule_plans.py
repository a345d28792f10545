"""Each rule alone: the plan before, the plan after, and what the rule says it did or refused."""

from __future__ import annotations

import pytest

from headwater.ops.aggregate import Aggregate, Aggregation
from headwater.ops.distinct import Distinct
from headwater.ops.expressions import col, lit
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.limit import Limit
from headwater.ops.map_batches import MapBatches
from headwater.ops.node import plan_text
from headwater.ops.project import Project
from headwater.ops.repartition import Repartition
from headwater.ops.sample import Sample
from headwater.ops.sort import Sort, SortKey, TopK
from headwater.ops.union import Union
from headwater.planner.rules.column_pruning import column_pruning
from headwater.planner.rules.common_subplans import common_subplans
from headwater.planner.rules.constant_folding import constant_folding
from headwater.planner.rules.limit_pushdown import limit_pushdown
from headwater.planner.rules.merge_filters import merge_filters
from headwater.planner.rules.merge_projections import merge_projections
from headwater.planner.rules.outer_join_elimination import outer_join_elimination
from headwater.planner.rules.predicate_pushdown import predicate_pushdown
from headwater.planner.rules.redundant_operators import redundant_operators
from headwater.planner.rules.sort_elimination import sort_elimination
from headwater.planner.rules.top_k import top_k

COUNT = Aggregation("n", "count", None)


def fired(events) -> list[str]:
    return [event.detail for event in events if event.fired]


def refused(events) -> list[str]:
    return [event.detail for event in events if not event.fired]


# --- constant folding ---


def test_constants_are_folded(assert_rule, rides):
    node = Filter(rides, col("id") > lit(2) + lit(3))
    assert_rule(constant_folding, node, "Filter col('id') > 5\n  Scan rides")


def test_a_filter_that_is_always_true_is_dropped(assert_rule, rides):
    assert_rule(constant_folding, Filter(rides, lit(1) < lit(2)), "Scan rides")


# --- merging ---


def test_filters_are_merged_in_the_order_they_apply(assert_rule, rides):
    node = Filter(Filter(Filter(rides, col("fare") > 0), col("tip") > 1), col("id") > 2)
    after = """
        Filter ((col('fare') > 0) & (col('tip') > 1)) & (col('id') > 2)
          Scan rides
    """
    assert fired(assert_rule(merge_filters, node, after)) == ["3 filters become one of 3 terms"]


def test_a_filter_that_may_raise_stays_above_the_one_that_guards_it(assert_rule, rides):
    node = Filter(Filter(rides, col("note").is_not_null()), col("note").cast("int64") > 2)
    events = assert_rule(merge_filters, node, plan_text(node))
    assert "may raise on rows that the filter below drops" in refused(events)[0]


def test_projections_are_merged_by_substitution(assert_rule, rides, select, with_columns):
    rate = select(with_columns(rides, rate=col("tip") / col("fare")), "rate")
    node = Project(rate, (("much", col("rate") > 1),))
    after = """
        Project much=(col('tip') / col('fare')) > 1
          Scan rides
    """
    assert_rule(merge_projections, node, after)


def test_projections_that_would_compute_twice_are_not_merged(assert_rule, rides, select, with_columns):
    rate = with_columns(select(rides, "tip", "fare"), rate=col("tip") / col("fare"))
    node = with_columns(select(rate, "rate"), a=col("rate") + 1, b=col("rate") + 2)
    events = assert_rule(
        merge_projections,
        node,
        """
        Project rate, a=col('rate') + 1, b=col('rate') + 2
          Project rate=col('tip') / col('fare')
            Scan rides
        """,
    )
    assert "'rate' is used 3 times" in refused(events)[0]


def test_a_literal_keeps_its_type_when_it_is_inlined(rides, with_columns):
    node = with_columns(with_columns(rides, one=lit(1)), two=col("zone") + col("one"))
    roots, _ = merge_projections({"out": node})
    assert roots["out"].schema == node.schema
    assert str(node.schema.field("two").type) == "int64"


# --- predicate pushdown ---


def test_into_the_scan_through_a_projection(assert_rule, rides, with_columns):
    node = Filter(with_columns(rides, rate=col("tip") / col("fare")), (col("rate") > 1) & (col("id") < 9))
    after = """
        Project id, zone, fare, tip, note, rate=col('tip') / col('fare')
          Scan rides where ((col('tip') / col('fare')) > 1) & (col('id') < 9)
    """
    events = assert_rule(predicate_pushdown, node, after)
    assert fired(events)[0] == "col('rate') > 1: through Project into Scan rides"


def test_to_both_sides_of_an_inner_join(assert_rule, rides, zones):
    join = Join(rides, zones, ("zone",), ("zone",))
    predicate = (col("fare") > 1) & (col("people") > 2) & (col("zone") < 7) & (col("fare") < col("people"))
    after = """
        Filter col('fare') < col('people')
          Join inner on [zone]
            Scan rides where (col('fare') > 1) & (col('zone') < 7)
            Scan zones where (col('people') > 2) & (col('zone') < 7)
    """
    events = assert_rule(predicate_pushdown, Filter(join, predicate), after)
    assert refused(events) == [
        "col('fare') < col('people'): stays, as it needs columns of both sides of Join"
    ]


def test_a_suffixed_column_goes_right_under_its_own_name(assert_rule, rides, zones):
    join = Join(rides, zones, ("id",), ("people",))
    after = """
        Join inner on [id=people]
          Scan rides
          Scan zones where col('zone') > 3
    """
    assert_rule(predicate_pushdown, Filter(join, col("zone_right") > 3), after)


@pytest.mark.parametrize("how", ["left", "semi", "anti"])
def test_other_joins_take_left_predicates_only(assert_rule, rides, zones, how):
    node = Filter(Join(rides, zones, ("zone",), ("zone",), how), col("fare") > 1)
    after = f"""
        Join {how} on [zone]
          Scan rides where col('fare') > 1
          Scan zones
    """
    assert_rule(predicate_pushdown, node, after)


def test_the_right_side_of_a_left_join_is_left_alone(assert_rule, rides, zones):
    node = Filter(Join(rides, zones, ("zone",), ("zone",), "left"), col("people").is_null())
    events = assert_rule(predicate_pushdown, node, plan_text(node))
    assert "a left Join keeps left rows without a match" in refused(events)[0]


def test_into_every_branch_of_a_union(assert_rule, scan):
    columns = {"x": "int64"}
    node = Filter(Union((scan("a", columns), Limit(scan("b", columns), 5))), col("x") > 1)
    after = """
        Union of 2
          Scan a where col('x') > 1
          Filter col('x') > 1
            Limit 5
              Scan b
    """
    events = assert_rule(predicate_pushdown, node, after)
    assert fired(events) == [
        "col('x') > 1: through Union into Scan a",
        "col('x') > 1: moved below Union; no further, as Limit counts rows before the filter",
    ]


def test_through_sort_hash_repartition_and_distinct_and_key_columns_of_aggregate(assert_rule, rides):
    node = Repartition(Distinct(Sort(rides, (SortKey("id"),)), ("zone",)), "hash", None, ("zone",))
    node = Filter(Aggregate(node, ("zone",), (COUNT,)), (col("zone") > 1) & (col("n") > 2))
    after = """
        Filter col('n') > 2
          Aggregate by [zone] n=count()
            Repartition hash by [zone]
              Distinct by [zone]
                Sort by [id]
                  Scan rides where col('zone') > 1
    """
    events = assert_rule(predicate_pushdown, node, after)
    assert refused(events) == ["col('n') > 2: stays, as n is computed by Aggregate"]


def test_a_false_filter_stays_above_a_global_aggregate(assert_rule, rides):
    node = Filter(Aggregate(rides, (), (COUNT,)), lit(False))
    assert_rule(predicate_pushdown, node, plan_text(node))


@pytest.mark.parametrize(
    ("barrier", "reason"),
    [
        (lambda n: Limit(n, 5), "Limit counts rows"),
        (lambda n: TopK(n, (SortKey("id"),), 5), "TopK counts rows"),
        (lambda n: Sample(n, 0, 0.5, 1, "s"), "Sample draws by row position"),
        (lambda n: MapBatches(n, len, n.schema), "user function"),
        (lambda n: Distinct(n, ("zone",)), "Distinct doesn't keep rows apart by fare"),
        (lambda n: Repartition(n, "count", 4), "Repartition by count"),
    ],
)
def test_barriers_refuse_and_say_why(assert_rule, rides, barrier, reason):
    node = Filter(barrier(rides), col("fare") > 1)
    assert reason in refused(assert_rule(predicate_pushdown, node, plan_text(node)))[0]


def test_nothing_is_pushed_below_a_shared_node(rides, with_columns):
    shared = with_columns(rides, rate=col("tip") / col("fare"))
    roots = {"some": Filter(shared, col("fare") > 1), "all": shared}
    after, events = predicate_pushdown(roots)
    assert plan_text(after["some"]) == plan_text(roots["some"])
    assert after["some"].inputs[0] is after["all"]
    assert "is shared by 2 consumers" in refused(events)[0]


def test_a_shared_scan_of_a_binary_format_gets_the_predicate_in_a_copy(rides):
    after, _ = predicate_pushdown({"some": Filter(rides, col("fare") > 1), "all": rides})
    assert plan_text(after["some"]) == "Scan rides where col('fare') > 1"
    assert plan_text(after["all"]) == "Scan rides"


def test_a_shared_scan_of_text_is_parsed_once(scan):
    lines = scan("lines", {"x": "int64"}, kind="csv")
    after, events = predicate_pushdown({"some": Filter(lines, col("x") > 1), "all": lines})
    assert plan_text(after["some"]) == "Filter col('x') > 1\n  Scan lines"
    assert "read once for 2 consumers" in refused(events)[0]


def test_a_predicate_that_may_raise_does_not_pass_what_drops_rows(assert_rule, rides, zones):
    join = Join(rides, zones, ("zone",), ("zone",))
    node = Filter(join, col("note").cast("int64") > 1)
    assert "may raise" in refused(assert_rule(predicate_pushdown, node, plan_text(node)))[0]


def test_a_predicate_stays_above_its_guard_also_where_a_projection_hides_the_cast(assert_rule, rides, select):
    guarded = Filter(rides, col("note").is_not_null())
    parsed = Project(guarded, (("number", col("note").cast("int64")),))
    after = """
        Project number=col('note').cast('int64')
          Filter col('note').cast('int64') > 1
            Scan rides where col('note').is_not_null()
    """
    assert_rule(predicate_pushdown, Filter(parsed, col("number") > 1), after)
    again, _ = predicate_pushdown(predicate_pushdown({"out": Filter(parsed, col("number") > 1)})[0])
    assert plan_text(again["out"]).splitlines()[-1].strip() == "Scan rides where col('note').is_not_null()"


# --- outer joins ---


def test_a_left_join_whose_padding_is_filtered_away_is_inner(assert_rule, rides, zones):
    join = Join(rides, zones, ("zone",), ("zone",), "left")
    after = """
        Filter col('people') > 3
          Join inner on [zone]
            Scan rides
            Scan zones
    """
    assert_rule(outer_join_elimination, Filter(join, col("people") > 3), after)


def test_a_filter_for_the_padding_keeps_the_left_join(assert_rule, rides, zones):
    node = Filter(Join(rides, zones, ("zone",), ("zone",), "left"), col("people").is_null())
    assert_rule(outer_join_elimination, node, plan_text(node))


# --- column pruning ---


def test_the_scan_reads_what_is_used(assert_rule, rides):
    node = Aggregate(Filter(rides, col("fare") > 0), ("zone",), (Aggregation("t", "sum", "tip"),))
    after = """
        Aggregate by [zone] t=sum(tip)
          Filter col('fare') > 0
            Scan rides columns=[zone, fare, tip]
    """
    events = assert_rule(column_pruning, node, after)
    assert fired(events) == ["Scan rides: 3 of 5 columns"]


def test_a_count_reads_the_narrowest_column(assert_rule, rides):
    node = Aggregate(rides, (), (COUNT,))
    assert_rule(column_pruning, node, "Aggregate n=count()\n  Scan rides columns=[zone]")


def test_unused_expressions_and_aggregations_are_dropped(assert_rule, rides, select, with_columns):
    twice = with_columns(rides, twice=col("tip") * 2, note=col("note"))
    totals = Aggregate(twice, ("zone",), (Aggregation("t", "sum", "twice"), Aggregation("f", "max", "fare")))
    after = """
        Project zone, f
          Aggregate by [zone] f=max(fare)
            Project zone, fare
              Scan rides columns=[zone, fare]
    """
    assert_rule(column_pruning, select(totals, "zone", "f"), after)


def test_exchanges_carry_no_column_that_only_a_filter_below_used(assert_rule, rides, zones, select):
    join = Join(Filter(rides, col("fare") > 0), zones, ("zone",), ("zone",))
    after = """
        Project id, name
          Join inner on [zone]
            Project id, zone
              Filter col('fare') > 0
                Scan rides columns=[id, zone, fare]
            Scan zones columns=[zone, name]
    """
    assert_rule(column_pruning, select(join, "id", "name"), after)


def test_a_left_column_stays_where_a_suffix_depends_on_it(assert_rule, rides, zones, select):
    join = Join(rides, zones, ("id",), ("people",))
    after = """
        Project zone_right
          Join inner on [id=people]
            Scan rides columns=[id, zone]
            Scan zones columns=[zone, people]
    """
    assert_rule(column_pruning, select(join, "zone_right"), after)


def test_branches_of_a_union_keep_equal_schemas(assert_rule, scan, select):
    columns = {"x": "int64", "y": "int64"}
    branches = Union((scan("a", columns), Filter(scan("b", columns), col("y") > 1)))
    after = """
        Project x
          Union of 2
            Scan a columns=[x]
            Project x
              Filter col('y') > 1
                Scan b
    """
    assert_rule(column_pruning, select(branches, "x"), after)


def test_what_may_use_every_column_gets_every_column(assert_rule, rides, select):
    for node in (MapBatches(rides, len, rides.schema), Distinct(rides)):
        root = select(node, "id")
        assert_rule(column_pruning, root, plan_text(root))


def test_a_shared_node_gives_the_union_of_what_its_consumers_use(scan, select):
    lines = scan("lines", {"x": "int64", "y": "int64", "z": "int64"}, kind="csv")
    after, _ = column_pruning({"x": select(lines, "x"), "y": select(lines, "y")})
    assert plan_text(after["x"]) == "Project x\n  Scan lines columns=[x, y]"
    assert after["x"].inputs[0] is after["y"].inputs[0]


def test_consumers_that_read_a_source_again_read_their_own_columns(rides, select):
    after, _ = column_pruning({"a": select(rides, "id"), "b": select(rides, "fare")})
    assert plan_text(after["a"]) == "Project id\n  Scan rides columns=[id]"
    assert plan_text(after["b"]) == "Project fare\n  Scan rides columns=[fare]"


# --- limits and sorts ---


def test_a_limit_goes_below_projections_and_bounds_the_scan(assert_rule, rides, with_columns):
    node = Limit(Limit(with_columns(rides, id=col("id") + 1), 20), 10)
    after = """
        Project id=col('id') + 1, zone, fare, tip, note
          Limit 10
            Scan rides limit=10
    """
    assert_rule(limit_pushdown, node, after)


def test_a_limit_bounds_every_branch_of_a_union(assert_rule, scan):
    columns = {"x": "int64"}
    node = Limit(Union((scan("a", columns), Filter(scan("b", columns), col("x") > 1))), 3)
    after = """
        Limit 3
          Union of 2
            Scan a limit=3
            Filter col('x') > 1
              Scan b
    """
    assert "stays above Filter" in refused(assert_rule(limit_pushdown, node, after))[0]


def test_two_limits_of_one_scan_bound_a_copy_each(rides):
    after, _ = limit_pushdown({"five": Limit(rides, 5), "nine": Limit(rides, 9), "all": rides})
    assert plan_text(after["five"]) == "Limit 5\n  Scan rides limit=5"
    assert plan_text(after["nine"]) == "Limit 9\n  Scan rides limit=9"
    assert plan_text(after["all"]) == "Scan rides"


def test_a_limit_over_a_sort_is_top_k(assert_rule, rides):
    assert_rule(top_k, Limit(Sort(rides, (SortKey("id"),)), 3), "TopK 3 by [id]\n  Scan rides")


def test_a_large_limit_over_a_sort_stays(assert_rule, rides):
    node = Limit(Sort(rides, (SortKey("id"),)), 5_000_000)
    assert "may not fit in memory" in refused(assert_rule(top_k, node, plan_text(node)))[0]


def test_a_sort_that_is_an_output_too_stays(rides):
    ordered = Sort(rides, (SortKey("id"),))
    after, events = top_k({"first": Limit(ordered, 3), "all": ordered})
    assert isinstance(after["first"], Limit)
    assert "is shared" in refused(events)[0]


def test_a_sort_below_an_aggregation_is_not_done(assert_rule, rides):
    node = Aggregate(Filter(Sort(rides, (SortKey("id"),)), col("fare") > 1), ("zone",), (COUNT,))
    after = """
        Aggregate by [zone] n=count()
          Filter col('fare') > 1
            Scan rides
    """
    assert_rule(sort_elimination, node, after)


@pytest.mark.parametrize(
    "above",
    [
        lambda n: Aggregate(n, ("zone",), (Aggregation("f", "first", "fare"),)),
        lambda n: Distinct(n, ("zone",)),
        lambda n: Sort(n, (SortKey("fare"),)),
        lambda n: Limit(n, 3),
        lambda n: MapBatches(n, len, n.schema),
        lambda n: Sample(n, 0, 0.5, 1, "s"),
    ],
)
def test_a_sort_whose_order_can_be_seen_stays(assert_rule, rides, above):
    node = above(Sort(rides, (SortKey("id"),)))
    assert_rule(sort_elimination, node, plan_text(node))


def test_a_sort_below_a_sort_by_the_same_columns_is_not_done(assert_rule, rides):
    node = Sort(Sort(rides, (SortKey("id", True),)), (SortKey("fare"), SortKey("id")))
    assert_rule(sort_elimination, node, "Sort by [fare, id]\n  Scan rides")


# --- redundant operators ---


def test_what_gives_back_its_input_is_dropped(assert_rule, rides, select):
    node = select(Union((Distinct(Distinct(rides, ("id",)), ("id", "zone")),)), *rides.schema.names)
    assert_rule(redundant_operators, node, "Distinct by [id]\n  Scan rides")


def test_groups_are_distinct_and_a_total_is_one_row(assert_rule, rides):
    node = Distinct(Aggregate(rides, ("zone",), (COUNT,)))
    assert_rule(redundant_operators, node, "Aggregate by [zone] n=count()\n  Scan rides")
    node = Limit(Aggregate(rides, (), (COUNT,)), 4)
    assert_rule(redundant_operators, node, "Aggregate n=count()\n  Scan rides")


def test_nested_unions_are_flattened_in_order(assert_rule, scan):
    a, b, c, d = (scan(name, {"x": "int64"}) for name in "abcd")
    node = Union((Union((a, Union((b, c)))), d))
    assert_rule(redundant_operators, node, "Union of 4\n  Scan a\n  Scan b\n  Scan c\n  Scan d")


# --- sharing ---


def test_equal_subplans_become_one(rides, zones):
    def build():
        return Aggregate(Join(rides, zones, ("zone",), ("zone",)), ("name",), (COUNT,))

    after, events = common_subplans({"a": Limit(build(), 1), "b": Limit(build(), 2)})
    assert after["a"].inputs[0] is after["b"].inputs[0]
    assert fired(events) == ["Aggregate by [name] n=count(): computed once for 2 consumers"]
