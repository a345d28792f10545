"""Columns that a scan reads in another type: which they are, and that the rows stay the same."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headwater as hw
from headwater import col
from headwater.planner.options import PlanOptions
from headwater.planner.plan import ScanLeaf, all_leaves
from headwater.session import plan

OFF = PlanOptions(disabled_rules=frozenset(["read_types"]))
FLAG = pa.dictionary(pa.int32(), pa.string())


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> hw.Dataset:
    """Two files with other values in other orders, nulls, a text of many values, and a hive column."""
    folder = tmp_path_factory.mktemp("rows")
    for part, flags in enumerate((["a", "b", None, "a"], ["c", "a", "b", "c"])):
        n = 3000
        table = pa.table(
            {
                "flag": pa.array([flags[i % 4] for i in range(n)]),
                "name": pa.array([f"name {part} {i}" for i in range(n)]),
                "price": pa.array(
                    [None if i % 7 == 0 else Decimal(i * 37) / 100 for i in range(n)], pa.decimal128(15, 2)
                ),
                "other": pa.array([Decimal(i % 11) for i in range(n)], pa.decimal128(15, 2)),
                "n": pa.array(range(n)),
            }
        )
        (folder / f"year={part}").mkdir()
        pq.write_table(table, folder / f"year={part}" / "rows.parquet", row_group_size=700)
    return hw.read_parquet(str(folder))


def types(dataset: hw.Dataset) -> dict[str, pa.DataType]:
    """The types that the scan of a plan yields."""
    stages = plan({"result": dataset.node}).stages
    (leaf,) = [leaf for stage in stages for leaf in all_leaves(stage.operator) if isinstance(leaf, ScanLeaf)]
    return {field.name: field.type for field in leaf.schema}


def answers(dataset: hw.Dataset) -> list[pa.Table]:
    found = []
    for options in (None, OFF):
        with hw.Session("inline", progress=False, options=options) as session:
            found.append(dataset.compute(session))
    return found


price = col("price").cast("float64")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (lambda d: d.group_by("flag").agg(rows=hw.count()), {"flag": FLAG}),
        (lambda d: d.group_by("flag", "year").agg(rows=hw.count(), sum_n=hw.sum("n")), {"flag": FLAG}),
        (
            lambda d: (
                d.filter(col("n") > 5)
                .select("flag", p=price, q=price * 2)
                .group_by("flag")
                .agg(sum_p=hw.sum("p"), max_q=hw.max("q"))
            ),
            {"flag": FLAG, "price": pa.float64()},
        ),
        (
            lambda d: d.select(k=col("flag"), p=price).group_by("k").agg(mean_p=hw.mean("p")),
            {"flag": FLAG, "price": pa.float64()},
        ),
    ],
)
def test_keys_stay_dictionaries_and_decimals_become_floats(rows, query, expected):
    dataset = query(rows)
    found = types(dataset)
    assert {name: found[name] for name in expected} == expected
    with_rule, without = answers(dataset)
    assert with_rule.schema == without.schema
    assert with_rule.equals(without)


@pytest.mark.parametrize(
    "query",
    [
        lambda d: d.filter(col("flag") == "a").group_by("flag").agg(rows=hw.count()),
        lambda d: d.group_by("flag").agg(u=hw.n_unique("flag"), rows=hw.count()),
        lambda d: (
            d.select("flag", upper=col("flag").str.upper()).group_by("flag").agg(max_upper=hw.max("upper"))
        ),
        lambda d: d.group_by("name").agg(rows=hw.count()),
        lambda d: (
            d.select("n", p=price, exact=col("price") + 1)
            .group_by("n")
            .agg(sum_p=hw.sum("p"), sum_exact=hw.sum("exact"))
        ),
        lambda d: d.filter(col("price") > 3).select("n", p=price).group_by("n").agg(sum_p=hw.sum("p")),
        lambda d: d.select("price", "n").group_by("price").agg(sum_n=hw.sum("n")),
    ],
)
def test_columns_that_are_used_otherwise_are_left_alone(rows, query):
    dataset = query(rows)
    assert not {str(type) for type in types(dataset).values()} & {str(FLAG), "double"}
    with_rule, without = answers(dataset)
    assert with_rule.equals(without)


def test_the_plan_says_it(rows):
    assert (
        "+ read_types: Aggregate by [flag] rows=count(): flag as dictionary"
        in rows.group_by("flag").agg(rows=hw.count()).explain()
    )
