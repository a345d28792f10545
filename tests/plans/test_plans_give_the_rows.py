"""Optimized and unoptimized plans, run by the kernels, give what DuckDB gives for the same query."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from headwater.ops.aggregate import Aggregate, Aggregation
from headwater.ops.distinct import Distinct
from headwater.ops.expressions import col
from headwater.ops.filter import Filter
from headwater.ops.join import Join
from headwater.ops.limit import Limit
from headwater.ops.repartition import Repartition
from headwater.ops.sample import Sample
from headwater.ops.sort import Sort, SortKey
from headwater.ops.union import Union
from headwater.planner import spec
from headwater.planner.optimizer import PHYSICAL_RULES, RULE_NAMES, optimize
from headwater.planner.options import PlanOptions
from headwater.planner.physical import build_plan

ROWS = 500
EVERY_RULE = PlanOptions()
NO_RULE = PlanOptions(disabled_rules=frozenset(RULE_NAMES + PHYSICAL_RULES))
MANY_PARTITIONS = PlanOptions(partition_bytes=1_000, broadcast_bytes=0)
OPTIONS = pytest.mark.parametrize(
    "options", [EVERY_RULE, NO_RULE, MANY_PARTITIONS], ids=["rules", "none", "small"]
)


@pytest.fixture
def tables() -> dict[str, pa.Table]:
    random = np.random.default_rng(5)
    zone = pa.array(random.integers(0, 50, ROWS).astype("int32"), mask=random.random(ROWS) < 0.1)
    rides = {
        "id": np.arange(ROWS),
        "zone": zone,
        "fare": random.integers(-5, 40, ROWS).astype(float),
        "tip": random.integers(0, 9, ROWS).astype(float),
    }
    zones = {
        "zone": np.arange(5, 40, dtype="int32"),
        "name": [f"zone {i % 7}" for i in range(35)],
        "people": np.arange(35) * 100,
    }
    return {"rides": pa.table(rides), "zones": pa.table(zones)}


@pytest.fixture
def r(scan, tables):
    return scan("rides", tables["rides"], 5)


@pytest.fixture
def z(scan, tables):
    return scan("zones", tables["zones"], 3)


@pytest.fixture
def rows(execute):
    def run(node, options):
        after, trace = optimize({"out": node}, options, spec.check_rewrite)
        plan = build_plan(after, options, trace)
        spec.check_physical(plan)
        return execute(plan).output("out")

    return run


@pytest.fixture
def duck(tables):
    connection = duckdb.connect()
    for name, table in tables.items():
        connection.register(name, table)
    return lambda query: connection.execute(query).fetchall()


def as_rows(table: pa.Table) -> list[tuple]:
    return list(zip(*(column.to_pylist() for column in table.columns)))


def same_rows(ours: pa.Table, theirs: pa.Table | list[tuple]) -> bool:
    """Whether both are the same rows, at least one, in whatever order."""
    expected = as_rows(theirs) if isinstance(theirs, pa.Table) else theirs
    return sorted(as_rows(ours), key=repr) == sorted(expected, key=repr) and ours.num_rows > 0


@OPTIONS
def test_joined_filtered_grouped_sorted_limited(r, z, rows, duck, options, with_columns):
    joined = with_columns(Join(r, z, ("zone",), ("zone",), "left"), total=col("tip") + col("fare"))
    kept = Filter(Filter(joined, col("fare") > 0), col("people") > 500)
    groups = Aggregate(kept, ("name",), (Aggregation("t", "sum", "total"), Aggregation("n", "count", None)))
    ours = rows(Limit(Sort(groups, (SortKey("t", True), SortKey("name"))), 4), options)
    theirs = duck(
        "select name, sum(tip + fare) t, count(*) n from rides join zones using (zone) "
        "where fare > 0 and people > 500 group by name order by t desc, name limit 4"
    )
    assert as_rows(ours) == theirs


@OPTIONS
@pytest.mark.parametrize("how", ["inner", "left", "semi", "anti"])
def test_joins_with_predicates_on_keys_and_both_sides(r, z, rows, duck, options, how):
    node = Filter(Join(r, z, ("zone",), ("zone",), how), (col("zone") > 8) & (col("fare") > 3))
    columns = "rides.*, name, people" if how in ("inner", "left") else "rides.*"
    theirs = duck(
        f"select {columns} from rides {how} join zones on rides.zone = zones.zone "
        "where rides.zone > 8 and fare > 3"
    )
    assert same_rows(rows(node, options), theirs)


@OPTIONS
def test_rows_without_a_match_of_a_left_join(r, z, rows, duck, options):
    node = Filter(Join(r, z, ("zone",), ("zone",), "left"), col("people").is_null())
    theirs = duck("select rides.*, name, people from rides left join zones using (zone) where people is null")
    assert same_rows(rows(node, options), theirs)


@OPTIONS
def test_a_self_join_of_a_shared_part(r, rows, duck, options, select):
    best = Aggregate(Filter(r, col("fare") > 2), ("zone",), (Aggregation("fare", "max", "fare"),))
    node = select(Join(Filter(r, col("fare") > 2), best, ("zone", "fare"), ("zone", "fare")), "id", "fare")
    theirs = duck(
        "with kept as (select * from rides where fare > 2), "
        "best as (select zone, max(fare) fare from kept group by 1) "
        "select id, fare from kept join best using (zone, fare)"
    )
    assert same_rows(rows(node, options), theirs)


@OPTIONS
def test_sorts_keep_the_order_of_all_rows(r, rows, duck, options):
    node = Sort(Union((r, Filter(r, col("tip") > 4))), (SortKey("zone", False, True), SortKey("id", True)))
    theirs = duck(
        "select * from (from rides union all select * from rides where tip > 4) "
        "order by zone nulls first, id desc"
    )
    assert as_rows(rows(node, options)) == theirs


@OPTIONS
def test_distinct_rows_of_a_union_filtered_by_key(r, rows, duck, options, select):
    pairs = select(Union((r, r)), "zone", "tip")
    node = Filter(Distinct(pairs), col("zone") > 10)
    assert same_rows(rows(node, options), duck("select distinct zone, tip from rides where zone > 10"))


@OPTIONS
def test_first_rows_follow_partition_order(r, rows, options, tables):
    assert rows(Limit(r, 150), options).equals(tables["rides"].slice(0, 150))
    kept = Filter(r, col("tip") > 3)
    expected = tables["rides"].filter(tables["rides"]["tip"].to_numpy() > 3)
    assert rows(Limit(Union((kept, r)), 300), options).equals(
        pa.concat_tables([expected, tables["rides"]]).slice(0, 300)
    )


@OPTIONS
def test_totals_of_no_rows(r, rows, options):
    none = Filter(r, col("fare") > 1_000)
    totals = Aggregate(none, (), (Aggregation("n", "count", None), Aggregation("t", "sum", "fare")))
    assert rows(totals, options).to_pylist() == [{"n": 0, "t": None}]
    assert rows(Sort(none, (SortKey("id"),)), options).num_rows == 0


@OPTIONS
@pytest.mark.parametrize("kind", ["hash", "range", "count"])
def test_repartitioned_rows_are_the_same_rows(r, rows, options, tables, kind):
    node = Repartition(
        r, kind, 3, ("id",) if kind != "count" else (), (SortKey("id"),) if kind == "range" else ()
    )
    assert same_rows(rows(node, options), tables["rides"])


@OPTIONS
def test_a_split_by_two_samples_is_complementary_also_in_separate_runs(r, z, rows, options, select):
    clean = Filter(Join(r, z, ("zone",), ("zone",)), col("people") > 300)
    parts = [Sample(clean, low, high, 7, clean.key) for low, high in ((0, 0.6), (0.6, 1))]
    train = rows(select(parts[0], "id"), options)
    test = rows(Aggregate(parts[1], ("id",), (Aggregation("n", "count", None),)), options)
    everything = rows(select(clean, "id"), options)
    assert same_rows(pa.concat_tables([train, test.select(["id"])]), everything)
    assert 0 < train.num_rows < everything.num_rows
